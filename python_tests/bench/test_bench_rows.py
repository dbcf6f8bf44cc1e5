"""What `python -m bench.rows` prints of a model beside `lsnn`."""
import pytest

from bench import rows
from bench.problem import Shape, custom

LEARNED = {"lsnn": "alpha theta rho beta", "snntorch_sub": "alpha theta"}


@pytest.mark.parametrize("learned", [False, True])
def test_what_bounds_a_model(learned: bool) -> None:
    problem = custom(Shape(60, 8, 20, 40)).problem()
    lsnn, snntorch = rows.compare(list(LEARNED), problem, repeats=2, ways=[learned])
    for line in (lsnn, snntorch):
        assert line.learned == (LEARNED[line.row] if learned else "")
        assert 0 < line.least_forward <= line.forward and line.forward < line.both
        assert 0 < line.product < line.both
    assert 0 < lsnn.active < 100 == snntorch.active

    assert "least" not in rows.table([snntorch], 2.5)  # lsnn was not measured


def test_what_learning_costs() -> None:
    """Of each model by itself."""
    problem = custom(Shape(60, 8, 20, 40)).problem()
    lines = rows.compare(list(LEARNED), problem, repeats=2, ways=[False, True])
    assert [(line.row, bool(line.learned)) for line in lines] == [
        (row, learned) for row in LEARNED for learned in (False, True)]
    a, b, c, d = (line.both for line in lines)
    assert rows.price(lines) == f"lsnn {b / a:.2f}, snntorch_sub {d / c:.2f}"
