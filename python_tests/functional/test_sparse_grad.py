"""sparse_grad="existing": bitwise the gradients of nonzero synapses, else 0."""
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same, outputs_and_gradients
from lsnn_ext import ALIF, LIF, LSNN, functional, init, optim, reference
from module_kinds import run_steps
from operator_calls import needs_compiled

K: dict[str, Any] = {"alpha": 0.75, "theta": 0.5, "rho": 0.875, "beta": 0.25}
# of w_rec and the delays of a layer of N neurons
FORMS = "one", "transposed", "delays", "matrices"


def _layer(form: str, N: int, density: float, dtype: torch.dtype) -> tuple[Tensor, Any]:
    random = torch.Generator().manual_seed(N)
    S = 10 if form == "delays" else 3 if form == "matrices" else 1
    shape = (S, N, N) if form == "matrices" else (N, N)
    w = torch.randn(shape, generator=random, dtype=dtype) / 5
    w = w * (torch.rand(shape, generator=random) < density)
    if form == "delays":
        return w, torch.randint(S, (N, N), generator=random)
    if form == "transposed":
        w = w.t().contiguous().t()
    return w, (0, 2, 5) if form == "matrices" else 1


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("N", "density"), [(7, 0.5), (33, 1.0), (70, 0.0), (130, 0.12),
                                            (130, 0.6), (220, 0.04)])
@pytest.mark.parametrize("form", FORMS)
def test_has_the_bits_of_all(form: str, N: int, density: float, dtype: torch.dtype) -> None:
    w, delay = _layer(form, N, density, dtype)
    x = torch.rand(25, 33, N, generator=torch.Generator().manual_seed(1), dtype=dtype) * 1.2
    leaves = x.requires_grad_(), w.requires_grad_()
    (*existing, d_w), (*of_all, all_w) = (outputs_and_gradients(
        partial(functional.alif, delay=delay, sparse_grad=which, **K), leaves, *leaves)
        for which in ("existing", "all"))
    assert_same("outputs, d x, d w", [*existing, d_w], [*of_all, all_w.where(w != 0, 0.0)])
    assert bool((all_w[w == 0] != 0).any()) == (density < 1)
    assert bool((d_w != 0).any()) == (density > 0)


# ------------------------------------------------------------------------------------------ modules
@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize("by_steps", [False, True])
def test_of_modules(kind: Any, by_steps: bool) -> None:
    torch.manual_seed(0)
    layer = kind(6, 20, sparse_grad="existing")
    with torch.no_grad():
        layer.weight_hh_l0 *= torch.rand(20, 20) < 0.2
    x = torch.rand(15, 3, 6)
    (run_steps(layer, x) if by_steps else layer(x))[0].sum().backward()
    weight = layer.weight_hh_l0
    assert not weight.grad[weight == 0].any() and weight.grad.any()


@pytest.mark.parametrize("given", [True, "none", None])
def test_refused(given: Any) -> None:
    said = "sparse_grad: expected 'all' or 'existing', got "
    for alif in functional.alif, reference.alif:
        with pytest.raises(ValueError, match=said):
            alif(torch.zeros(2, 1, 3), torch.zeros(3, 3), sparse_grad=given, **K)
    with pytest.raises(ValueError, match=said):
        ALIF(2, 3, sparse_grad=given)
    with pytest.raises(ValueError, match=said):
        LSNN(2, 3, 3, 1, sparse_grad=given)


# ------------------------------------------------------------------------------------------- DEEP R
@needs_compiled
def test_deep_r_takes_the_same_path() -> None:
    """It moves connections alone, so their gradients are all that it needs: with an optimizer that
    keeps no averages the weights stay the same, to the bit, while synapses come and go."""

    def train(sparse_grad: str) -> tuple[list[Tensor], int]:
        random = torch.Generator().manual_seed(3)
        torch.manual_seed(3)
        net = LSNN(10, 20, 20, 4, delay=torch.randint(4, (40, 40), generator=random),
                   sparse_grad=sparse_grad)
        signs = init.dale(net, 0.12, generator=random)
        rewiring = optim.DeepR.of(net, torch.optim.SGD, 0.12, signs=signs, lr=0.05, l1=0.05,
                                  generator=random)
        x = (torch.rand(30, 8, 10, generator=random) < 0.3).float()
        target = torch.randn(30, 8, 4, generator=random)
        rewired = 0
        for _ in range(25):
            rewiring.zero_grad()
            ((net(x)[0] - target) ** 2).mean().backward()
            rewiring.step()
            rewired += rewiring.rewired
        return [weight.detach() for weight in net.parameters()], rewired

    (existing, rewired), (of_all, _) = train("existing"), train("all")
    assert rewired > 25
    assert_same("weights", existing, of_all)
