"""The models *_stop compute e-prop: gradients by its definition, and those of the paper's code."""
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compare import assert_all_same, assert_same
from lsnn_ext import functional
from lsnn_ext.models import MODELS

pytest.importorskip("bench", reason="bench/ is not beside these tests")
from bench.eligibility import Gradients, sum_traces  # noqa: E402

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "eprop.md"
TOLERANCE = 1e-11  # of the largest value of a gradient
# Files of vectors/eprop: cells of the e-prop paper's own code, run in float64. LightLIF is its
# pattern generation and EligALIF the network of its numerical check with more steps; both computed
# the gradients by traces. CustomALIF computed them by autograd with stopped gradients.
CELLS = {"LightLIF": "eprop_stop", "EligALIF": "eprop_elig_stop", "CustomALIF": "eprop_timit_stop"}
OFFICIAL = [("LightLIF", "symmetric"), ("LightLIF", "random"), ("EligALIF", "symmetric"),
            ("EligALIF", "random"), ("EligALIF", "rate"), ("CustomALIF", "symmetric"),
            ("CustomALIF", "adaptive")]


def _readout_of_the_page() -> Callable[..., Tensor]:
    if not PAGE.exists():
        pytest.skip("docs/ is not beside these tests")
    block = re.search(r"^```python\n(def readout_with_feedback.*?)^```", PAGE.read_text(),
                      re.DOTALL | re.MULTILINE)
    assert block
    names: dict[str, Any] = {"functional": functional}
    exec(block[1], names)
    return names["readout_with_feedback"]  # type: ignore[no-any-return]


def _by_autograd(net: dict[str, Tensor], loss_of: Callable[[Tensor, Tensor], Tensor], *, k: float,
                 feedback: Tensor | None = None, **options: Any) -> tuple[Tensor, Gradients]:
    """Spikes and gradients by functional.layer; with feedback by the readout of the page."""
    net = dict(net, feedback=net["w_out"] if feedback is None else feedback)
    leaves = {name: net[name].detach().requires_grad_() for name in (
        "w_in", "w_rec", "w_out", "feedback")}
    out = functional.layer(net["x"], leaves["w_in"], leaves["w_rec"], w_out=leaves["w_out"],
                           k_out=k, autapses=False, **options)
    readout = out.readout
    if feedback is not None:
        readout = _readout_of_the_page()(out.spikes, leaves["w_out"], leaves["feedback"], k)
        assert torch.equal(readout, out.readout)
    found = torch.autograd.grad(loss_of(out.spikes, readout), list(leaves.values()),
                                allow_unused=True, materialize_grads=True)
    return out.spikes.detach(), dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize(("cell", "variant"), OFFICIAL)
def test_gradients_are_those_of_the_official_code(cell: str, variant: str) -> None:
    with np.load(TESTS / "vectors" / "eprop" / f"{cell}.npz") as file:
        data = {name: file[name].item() if file[name].ndim == 0 else torch.tensor(file[name])
                for name in file.files}
    k = data["k_out"]
    gain = data["readout_gain"] / (1 - k)  # their readout does not always have the factor 1 - k
    net = {"x": data["x"].transpose(0, 1), "w_in": data["w_in"].T, "w_rec": data["w_rec"],
           "w_out": gain * data["w_out"].T}
    target, feedback = data["target"].transpose(0, 1), gain * data["b_out"].T
    if variant in ("symmetric", "rate"):
        feedback = None
    options = {"alpha": np.exp(-1 / data["tau"]), "theta": data["thr"], "beta": data["beta"],
               "rho": np.exp(-1 / data["tau_a"]), "refractory": data["n_silent"],
               "dampening": data["dampening"], "dynamics": CELLS[cell]}
    task = float(variant != "rate")
    rate = data["reg"] / 2 if cell == "LightLIF" else float(variant == "rate")

    def excess(spikes: Tensor) -> Tensor:
        return spikes.mean((0, 1)) - data.get("f_target", 0.0)

    def loss_of(spikes: Tensor, readout: Tensor) -> Tensor:
        return task / 2 * (readout - target).square().sum() + rate * excess(spikes).square().sum()

    spikes, got = _by_autograd(net, loss_of, k=k, feedback=feedback, **options)
    assert_same("spikes", spikes, data["z"].transpose(0, 1))
    local = 2 * rate * excess(spikes).expand_as(spikes) / spikes[..., 0].numel()
    if variant == "rate":  # the readout has no error then
        target = functional.leaky_readout(spikes, net["w_out"], k)[0]
    _, traced = sum_traces(**net, target=target, k=k, feedback=feedback, local=local, **options)
    want = {"w_in": data[f"{variant}_in"].T, "w_rec": data[f"{variant}_rec"]}
    if f"{variant}_out" in data:
        want["w_out"] = data[f"{variant}_out"].T / gain
    if f"{variant}_feedback" in data:
        want["feedback"] = data[f"{variant}_feedback"].T / gain
    assert_all_same({name: got[name] for name in want}, want, tolerance=TOLERANCE)
    want.pop("feedback", None)
    assert_all_same({name: traced[name] for name in want}, want, tolerance=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dynamics", [name for name in MODELS if name.endswith("_stop")])
def test_gradients_are_eligibility_traces_times_learning_signals(dynamics: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    T, B, I, N, O = 90, 3, 7, 12, 2
    strength = 0.05 if dynamics == "eprop_stop" else 0.5  # that spikes stay neither rare nor all
    net = {"x": (torch.rand(T, B, I, generator=random) < 0.2).double(), "w_in": 0.4 * normal(N, I),
           "w_rec": 0.3 * normal(N, N), "w_out": normal(O, N)}
    beta = strength * torch.rand(N, generator=random, dtype=torch.float64)
    theta = 0.05 if dynamics == "eprop_stop" else 0.7
    options = {"alpha": 0.9, "theta": theta, "rho": 0.97, "beta": beta, "k": 0.8,
               "refractory": 2 * seed, "dampening": 0.4}
    target, local, feedback = normal(T, B, O), normal(T, B, N), normal(O, N)

    def loss_of(spikes: Tensor, readout: Tensor) -> Tensor:
        return (readout - target).square().sum() / 2 + (local * spikes).sum()

    for other in (None, feedback):
        spikes, got = _by_autograd(net, loss_of, feedback=other, dynamics=dynamics, **options)
        traced, want = sum_traces(**net, target=target, local=local, feedback=other,
                                 dynamics=dynamics, **options)
        assert_same("spikes", spikes, traced)
        assert_all_same({name: got[name] for name in want}, want, tolerance=TOLERANCE)
    assert 0.02 < float(spikes.mean()) < 0.3
    full = _by_autograd(net, loss_of, dynamics=dynamics.removesuffix("_stop"), feedback=feedback,
                        **options)[1]
    with pytest.raises(AssertionError, match="w_rec.* off by"):
        assert_same("w_rec", full["w_rec"], want["w_rec"], tolerance=1e-2)
