"""What `python -m bench.rows` prints of a model beside `lsnn`, and `python -m bench.products`."""
import pytest
import torch

from bench import products, rows
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


def test_products_are_timed_and_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    points = [products.measure(N, items, density, share, torch.float32)
              for N in (32, 48) for items in (1, 4) for density in (0.3, 1.0)
              for share in (0.1, 0.9)]
    for point in points:
        assert set(point.ns) == {"dense", "active", "automatic"} | (
            {"sparse"} if point.density < 1 else set())
        assert min(point.ns.values()) > 0 and point.loss() >= 1
    assert points[0].share < 0.2 < 0.5 < points[1].share < 0.9
    products.fit(points, torch.float32)
    printed = capsys.readouterr().out
    assert all(name in printed for names in products.NAMES.values() for name in names)
