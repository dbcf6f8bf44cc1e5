"""convert on small models of other packages' recurrent layers, in every setting: spikes equal,
states and gradients to rounding, and the recurrence in a kernel."""
from typing import Any

import pytest
import torch
from torch import Tensor

import lsnn_ext
import originals
from compare import assert_same
from originals import tolerance
from package_models import Row, Small, Values
from package_rows import ROWS

COMPILED = {"norse LSNNRecurrent", "snnTorch RLeaky subtract late", "SEAdLIF", "Yin SRNN",
            "sinabs ALIFRecurrent MembraneSubtract", "sinabs LIFRecurrent MultiSpike",
            "sparch RadLIFLayer normalization=none",
            "SpikingJelly LIFNode v_reset=0.0"}  # the interpreter runs the others


def learned(model: Small, row: Row) -> dict[str, Tensor]:
    """Parameters, and what norse keeps beside them."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    values = getattr(getattr(model.layer, "p", None), "_asdict", dict)()
    found |= {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: value for name, value in found.items()
            if value.requires_grad and name not in row.unlearned}


def results(model: Small, x: Tensor, row: Row, names: tuple[str, ...] = ()) -> Values:
    """What a call returns, and the gradients of a weighted sum of all that is named."""
    torch.manual_seed(7)  # of the states that are drawn
    model.reset()
    x = x.clone().requires_grad_()
    return originals.results(lambda: model(x), {"x": x, **learned(model, row)}, names)


def assert_equal(ours: Small, theirs: Small, x: Tensor, row: Row) -> None:
    """Spikes bit for bit, all else and all gradients to rounding: of the spikes, and of all."""
    for names in (("spikes",), ()):
        want, got = (results(side, x, row, names) for side in (theirs, ours))
        rate = float(want["spikes"].mean())
        assert row.is_smooth or 0.02 < rate < 0.97, "a silent layer would show nothing"
        assert want.keys() == got.keys()
        for name, value in want.items():
            if value is None or got[name] is None:
                # a component has a gradient for all that its results depend on
                is_part = bool(names) and got[name] is not None
                assert value is got[name] or (is_part and not got[name].any()), name
            else:
                exact = name == "spikes" and not row.is_smooth
                # a surrogate of snnTorch divides infinity by infinity
                assert torch.equal(got[name].isnan(), value.isnan()), name
                assert_same(name, got[name].nan_to_num(), value.nan_to_num(),
                            tolerance=0 if exact else tolerance(row.dtype))


# Words of the report for calls that no recurrence needs, and that stay one for each step.
NO_RECURRENCE = ("random draws", "a random draw", "exact=True", "a constant that changes",
                 "no rule of torch.vmap")


def was_fused(report: Any) -> bool:
    """Whether every recurrence is in a kernel."""
    return bool(report.fused) and all(kept.reason.startswith(NO_RECURRENCE)
                                      for loop in report.loops for kept in loop.unfused)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_equal(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side has a layer of its own, which is made the same way."""
    monkeypatch.setenv("LSNN_COMPILE", str(int(row.name in COMPILED)))
    theirs, model = row.model(row.make()), row.model(row.make())
    assert all(torch.equal(value, model.state_dict()[name])
               for name, value in theirs.state_dict().items())
    x = theirs.inputs(3)
    model.reset()
    torch.manual_seed(7)
    ours, report = lsnn_ext.convert(model, x.clone().requires_grad_())
    assert ours is model
    for seed in (3, 4):  # other inputs than those of the recording too
        assert_equal(ours, theirs, theirs.inputs(seed), row)
    if row.stays:
        assert not report.converted and row.stays in report.reason
    else:
        assert was_fused(report), str(report)


def test_all_are_there() -> None:
    names = {row.name for row in ROWS}
    assert len(names) == len(ROWS) and names >= COMPILED
    count = {kind: sum(row.name.startswith(kind) for row in ROWS) for kind in (
        "norse", "snnTorch", "sinabs", "SpikingJelly", "Yin", "sparch", "SEAdLIF")}
    assert sum(count.values()) == len(ROWS) and min(count.values()) >= 8
