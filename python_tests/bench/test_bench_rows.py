"""What `python -m bench.rows` prints of a model beside `lsnn`, and `python -m bench.products`."""
import itertools
import re
from pathlib import Path

import pytest
import torch

from bench import products, rows
from bench.problem import Shape, custom

LEARNED = {"lsnn": "alpha theta rho beta", "snntorch_sub": "alpha theta"}


def test_what_bounds_a_model_and_what_learning_costs() -> None:
    problem = custom(Shape(60, 8, 20, 40)).problem()
    lines = rows.compare(list(LEARNED), problem, repeats=2, ways=[False, True])
    assert [(line.row, line.learned) for line in lines] == [
        (row, words) for row, learned in LEARNED.items() for words in ("", learned)]
    for line in lines:
        assert 0 < line.least_forward <= line.forward and line.forward < line.both
        assert 0 < line.product < line.both
        assert 0 < line.active < 100 if line.row == "lsnn" else line.active == 100
    assert "least" not in rows.table(lines[2:], 2.5)  # lsnn was not measured
    a, b, c, d = (line.both for line in lines)
    assert rows.price(lines) == f"lsnn {b / a:.2f}, snntorch_sub {d / c:.2f}"


# ------------------------------------------------------------------------------- bench.products
COSTS = Path(__file__).parents[2] / "csrc" / "cpu" / "costs.h"
CONSTANTS = [name for names in products.NAMES.values() for name in names if name]


def _costs(point: products.Point, constants: dict[str, float]) -> dict[str, float]:
    """Of each algorithm, by the terms of bench.products."""
    vector = products.find_vector(torch.float32)
    return {algorithm: sum(constants.get(name, 1.0) * term for name, term in zip(
        names, products.find_terms(point, algorithm, *vector), strict=True))
        for algorithm, names in products.NAMES.items() if algorithm in point.times()}


@pytest.mark.skipif(not COSTS.exists(), reason="csrc/ is not beside these tests")
def test_kernels_choose_by_these_costs() -> None:
    found = re.findall(r"\b(\w+) = ([\d.]+)[,;]", COSTS.read_text())
    constants = {name: float(number) for name, number in found if name in CONSTANTS}
    chosen = set()
    assert constants.keys() == {*CONSTANTS}
    for sizes in itertools.product((64, 512), (1, 4), (0.05, 1.0), (0.02, 0.5, 1.0)):
        point = products.measure(*sizes, torch.float32)
        costs = _costs(point, constants)
        first, second, *_ = sorted(costs, key=costs.__getitem__)
        if costs[second] > 1.1 * costs[first]:  # activity differs from step to step
            assert point.chosen == first, point
            chosen.add(point.chosen)
    assert chosen == set(products.ALGORITHMS)


def test_constants_are_fitted() -> None:
    """To times that the terms make of known constants."""
    wanted = {name: 1.0 + k for k, name in enumerate(CONSTANTS)} | {"": 0.25}
    points = []
    for sizes in itertools.product((32, 48, 200), (1, 4, 16), (0.1, 0.3), (0.1, 0.4, 0.9)):
        point = products.Point(*sizes, 1.0, 1.0, 1.0, 1.0, "")
        for algorithm, cost in _costs(point, wanted | {"": 1.0}).items():
            setattr(point, algorithm, 0.25 * point.N * cost)
        points.append(point)
    assert products.fit(points, *products.find_vector(torch.float32)) == pytest.approx(wanted)


def test_products_are_written(tmp_path: Path, own_threads: None,
                              capsys: pytest.CaptureFixture[str]) -> None:
    products.main(["--sizes", "32", "--out", str(tmp_path / "products.csv")])
    lines = (tmp_path / "products.csv").read_text().splitlines()
    assert "# command: python -m bench.products --sizes 32" in lines
    assert sum(not line.startswith("#") for line in lines) == 1 + 4 * (8 + 5 * 3)
    assert "lost on average" in capsys.readouterr().out
