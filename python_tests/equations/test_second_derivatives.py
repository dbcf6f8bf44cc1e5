"""Spikes have no second derivative: what would need one raises an error."""
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same
from lsnn_ext import ALIF, LSNN, _ops, functional, reference
from module_kinds import run_steps
from operator_calls import needs_compiled

K = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}
Alif = Callable[..., Any]
FUNCTIONS: list[Alif] = [functional.alif, reference.alif]


def _leaves() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 5, generator=generator) * 3
    return x.requires_grad_(), (torch.rand(5, 5, generator=generator) - 0.5).requires_grad_()


def _layer(x: Tensor, w: Tensor, **given: Any) -> tuple[Tensor, Any]:
    out = functional.layer(x, torch.eye(5), w, **given)
    return out.spikes, out.state


def _assert_refused(loss: Callable[[], Tensor], leaves: dict[str, Tensor],
                    behind: tuple[str, ...] = ()) -> None:
    """A penalty on the gradient of a leaf raises, beside a loss too, whichever leaf is named.

    behind: leaves that only the spikes themselves meet, so that their own gradient has a first
    derivative.
    """
    def grad(total: Tensor, leaf: Tensor) -> None:
        torch.autograd.grad(total, [leaf])

    def backward(total: Tensor, leaf: Tensor) -> None:
        total.backward(inputs=[leaf])

    for penalized in leaves.keys() - set(behind):
        for named, leaf in leaves.items():
            for call in (grad, backward):
                value = loss()
                g, = torch.autograd.grad(value, [leaves[penalized]], create_graph=True)
                with pytest.raises(RuntimeError, match="second derivative"):
                    call(value + g.square().sum(), leaf)
                    pytest.fail(f"{call.__name__}: a penalty on {penalized} is lost for {named}")


@pytest.mark.parametrize("alif", [*FUNCTIONS, _layer], ids=["compiled", "reference", "layer"])
@pytest.mark.parametrize(("learn", "of", "smooth"), [
    (("x", "w", *K), "spikes", False), *itertools.product(
        [("x",), ("w",), ("x", "w")], ["spikes", "v"], [False, True])], ids=str)
def test_penalty_beside_a_loss(learn: tuple[str, ...], of: str, smooth: bool, alif: Alif) -> None:
    x, w = _leaves()
    coefficients = {name: torch.full((5,), value) for name, value in K.items()}
    coefficients["alpha"] = torch.tensor(0.9)
    leaves = {"x": x, "w": w, **coefficients}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in learn)

    def loss() -> Tensor:
        spikes, state = alif(x, w, smooth=smooth, **coefficients)
        return (spikes if of == "spikes" else state.v).sum()

    _assert_refused(loss, {name: leaves[name] for name in learn})


@pytest.mark.parametrize("stepped", [False, True], ids=["sequence", "steps"])
@pytest.mark.parametrize("name", ["ALIF", "LSNN"])
def test_penalty_beside_a_loss_of_a_module(name: str, stepped: bool) -> None:
    """Also where a leaf in front of the layer, or behind it, is named."""
    torch.manual_seed(0)
    module: Any = ALIF(5, 4, learn=("tau_mem", "beta")) if name == "ALIF" else LSNN(
        5, 2, 2, 2, learn=("tau_mem",))
    front, scale = torch.eye(5, requires_grad=True), torch.ones(4, 3, 1, requires_grad=True)
    leaves = {"front": front, "scale": scale, **dict(module.named_parameters())}
    leaves.pop("readout.bias", None)  # no gradient depends on it

    def loss() -> Tensor:
        x, state = torch.ones(4, 3, 5) * 3 @ front, None
        if not stepped:
            return (module(x)[0] * scale).sum()
        return (run_steps(module, x, state)[0] * scale).sum()

    _assert_refused(loss, leaves, behind=("scale", "readout.weight"))


@pytest.mark.parametrize("alif", FUNCTIONS, ids=["compiled", "reference"])
def test_first_derivatives_may_be_recorded(alif: Alif) -> None:
    """create_graph alone changes no number, and a penalty elsewhere in the model works."""
    x, w = _leaves()
    want = torch.autograd.grad(alif(x, w, **K)[0].sum(), (x, w))
    scale = torch.tensor(2.0, requires_grad=True)
    spikes, _ = alif(x, w, **K)
    got = torch.autograd.grad(spikes.sum() + scale**3, (x, w, scale), create_graph=True)
    assert_same("gradient", got[:2], want)
    (second,) = torch.autograd.grad(got[2], scale)
    assert second == 12


@needs_compiled
@pytest.mark.parametrize("few", [False, True], ids=["many-outputs", "few-outputs"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_linear_map_has_second_derivatives_at_every_size(sparse: bool, few: bool) -> None:
    """As torch's own: above the size from which memory is reused too."""
    generator = torch.Generator().manual_seed(0)
    outputs = 16 if few else 64
    x = torch.rand(9, 2048, 12, generator=generator) - (0.95 if sparse else 0.5)
    x = x.clamp(min=0) if sparse else x
    w, b = torch.rand(outputs, 12, generator=generator), torch.rand(outputs, generator=generator)
    assert not _ops.why_not_reused(x, w) and _ops.is_mostly_zero(x) == sparse

    def second(linear: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [leaf.clone().double().requires_grad_() for leaf in (x, w, b)]
        first = torch.autograd.grad(linear(*leaves).pow(3).mean(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    assert_same("second derivatives", second(functional.linear),
                second(torch.nn.functional.linear), tolerance=1e-12, nonzero=True)
