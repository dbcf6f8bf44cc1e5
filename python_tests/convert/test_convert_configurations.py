"""lsnn_ext.convert in every configuration of the recurrent layers of other packages: spikes equal,
states and gradients to rounding; or a refusal that says why."""
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from configuration_rows import Row
from configurations import ROWS
from lsnn_ext.convert import Comparison
from originals import assert_equal, tolerance

EQUAL = [row for row in ROWS if not row.reason]


def _name(row: Row) -> str:
    return row.name


def _check(found: Comparison | None, row: Row) -> None:
    """What convert itself has found."""
    assert found is not None and found.verdict == "equal"
    assert found.dtype == str(row.dtype).removeprefix("torch.")
    assert min(found.rates.values()) > 0.02, "a silent layer would show nothing"
    for values in (found.states, found.outputs, found.gradients):
        assert max(values.values(), default=0.0) < tolerance(row.dtype), values


def _learned(layer: nn.Module, row: Row) -> dict[str, Tensor]:
    """Parameters, and what norse keeps beside them."""
    found: dict[str, Tensor] = dict(layer.named_parameters())
    values = getattr(getattr(layer, "p", None), "_asdict", dict)()
    found |= {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: value for name, value in found.items()
            if value.requires_grad and name not in row.unlearned}


@pytest.mark.parametrize("row", EQUAL, ids=_name)
def test_equal(row: Row) -> None:
    """By the report of convert, and by a run of both layers, which share their parameters; where
    the package goes step by step, in the user's loop and as one call."""
    theirs, how = row.make(), row.package
    x = how.inputs(theirs)
    run = how.loop
    verify: Any = x if run is None else lambda layer: run(layer, x)["spikes"]
    if run is not None:
        _, report = lsnn_ext.convert(theirs, verify=verify, repeats=0)
        (one,) = report.in_loop
        _check(one.comparison, row)
    ours, report = lsnn_ext.convert(theirs, verify=verify, repeats=0, steps=run is not None)
    assert type(ours).__module__.startswith("lsnn_ext.") and len(report.replaced) == 1
    _check(report.comparison, row)
    leaves = {"x": x.requires_grad_(), **_learned(theirs, row)}
    for ways in ({how.sequence} if run is None else {run, how.sequence}):
        assert_equal(lambda: (run or how.sequence)(theirs, x),
                     lambda ways=ways: ways(ours, x), leaves,  # type: ignore[misc]
                     tolerance(next(iter(theirs.parameters())).dtype))


@pytest.mark.parametrize("row", [row for row in ROWS if row.reason], ids=_name)
def test_refused(row: Row) -> None:
    """In a model, where it stays the very module."""
    layer = row.make()
    model, report = lsnn_ext.convert(nn.Sequential(nn.Identity(), layer))
    assert isinstance(model, nn.Sequential) and model[1] is layer
    assert report.replaced == report.in_loop == ()
    (left,) = report.left
    assert left.name == "1" and row.reason in left.reason and left.reason in str(report)


def test_all_are_there() -> None:
    """21 and more configurations of the five packages that share one form, and the others."""
    names = {row.name for row in ROWS}
    assert len(names) == len(ROWS)
    five = ("norse", "snnTorch", "sinabs", "SpikingJelly", "Yin")
    count = {kind: sum(row.name.startswith(kind) for row in EQUAL)
             for kind in (*five, "sparch", "SEAdLIF")}
    assert all(count.values()) and sum(count[kind] for kind in five) > 21
    assert torch.tensor(list(count.values())).sum() == len(EQUAL)
