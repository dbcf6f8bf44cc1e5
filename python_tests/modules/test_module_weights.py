"""Weights that are computed at each call or given from outside."""
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from draws import draw
from lsnn_ext import ALIF, LeakyReadout
from module_kinds import Exp, run_steps
from steps import assert_equal, flat

I, N = 5, 9
NAMES = ("weight_ih_l0", "weight_hh_l0")


COMPUTED: dict[str, Callable[[nn.Module, str], Any]] = {
    "weight-norm": parametrizations.weight_norm,
    "spectral-norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "parametrize": lambda layer, name: parametrize.register_parametrization(layer, name, nn.Tanh()),
    "prune": lambda layer, name: prune.l1_unstructured(layer, name, 0.5),
    "old-weight-norm": nn.utils.weight_norm,
    "old-spectral-norm": nn.utils.spectral_norm}


def _names(layer: nn.Module) -> list[str]:
    """Parameters and buffers."""
    return [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]


def _run(how: str, layer: Any, gradients: bool) -> list[Tensor]:
    with torch.set_grad_enabled(gradients):
        return flat(layer(draw(12, 3, I)) if how == "forward" else run_steps(layer, draw(12, 3, I)))


def _plain(layer: Any, num_layers: int, **options: Any) -> ALIF:
    """A layer with the weights that the other one shows."""
    plain = ALIF(I, N, num_layers, **options)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(getattr(layer, name))
    return plain


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize("how", ["forward", "step"])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weight(kind: str, name: str, num_layers: int, how: str, gradients: bool) -> None:
    torch.manual_seed(0)
    layer = ALIF(I, N, num_layers)
    COMPUTED[kind](layer, name)
    layer.eval()  # a spectral norm in training is another one at each call
    for _ in range(2):
        layer(draw(1, 1, I))  # what is computed before a call has to be seen before it is copied
        want = _run(how, _plain(layer, num_layers), gradients)
        assert_equal([leaf.detach() for leaf in _run(how, layer, gradients)], want)
        assert want[0].any()
        with torch.no_grad():  # and again with other weights
            for parameter in layer.parameters():
                parameter.mul_(1.5)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_computed_weight_learns(kind: str, num_layers: int) -> None:
    torch.manual_seed(0)
    layer = ALIF(I, N, num_layers)
    COMPUTED[kind](layer, "weight_hh_l0")
    out, state = layer(draw(20, 3, I))
    state.v.square().sum().backward()
    learned = [parameter for name, parameter in layer.named_parameters() if "weight_hh_l0" in name]
    assert learned and all(p.grad is not None and p.grad.any() for p in learned)
    if hasattr(layer, "parametrizations"):  # torch copies no others
        assert torch.equal(copy.deepcopy(layer)(draw(20, 3, I))[0], out)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_spectral_norm_in_training(name: str, num_layers: int) -> None:
    """A weight is looked up once in a call: each time does a step of the power iteration."""
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(ALIF(I, N, num_layers), name)
    other = copy.deepcopy(layer)
    weight, plain = getattr(other, name).detach(), ALIF(I, N, num_layers)
    plain.load_state_dict({**{key: getattr(other.eval(), key) for key in _names(plain)},
                           name: weight})
    assert_equal([leaf.detach() for leaf in flat(layer(draw(12, 3, I)))], plain(draw(12, 3, I)))
    assert torch.equal(getattr(layer.eval(), name), getattr(other.eval(), name))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_parameters_from_outside(num_layers: int, gradients: bool) -> None:
    layer, other = ALIF(I, N, num_layers), ALIF(I, N, num_layers)
    given = {name: p.detach().clone() for name, p in other.named_parameters()}
    # short enough for a prepared layer, and so long that bits go from layer to layer
    for x in (draw(4, 2, I), draw(20, 2, I), draw(400, 80, I)):
        with torch.set_grad_enabled(gradients):
            own = layer(x)
            got = torch.func.functional_call(layer, given, (x,))
            assert_equal([leaf.detach() for leaf in flat(got)], other(x))
            assert_equal([leaf.detach() for leaf in flat(layer(x))], own)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("shape", [(20, 2), (400, 80)], ids=str)
def test_gradient_by_func(num_layers: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = ALIF(I, N, num_layers, learn=("threshold",)), draw(*shape, I)
    given = {name: p.detach().clone() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        spikes: Tensor = torch.func.functional_call(layer, parameters, (x,))[0]
        return (spikes * torch.linspace(1, 2, N)).sum()

    got = torch.func.grad(loss)(given)
    want = torch.autograd.grad(loss(dict(layer.named_parameters())), list(layer.parameters()))
    assert_equal(list(got.values()), list(want))
    assert all(gradient.any() for gradient in want)


@pytest.mark.parametrize("from_outside", [True, False])
@pytest.mark.parametrize("name", ["tau_mem", "tau_adapt", "threshold"])
def test_own_parametrization(name: str, from_outside: bool) -> None:
    """Registered with torch, or given to the constructor."""
    torch.manual_seed(0)
    layer, plain = (ALIF(I, N, 2, learn={name: form})
                    for form in ("plain" if from_outside else Exp(), "plain"))
    if from_outside:
        parametrize.register_parametrization(layer, f"{name}_l0", Exp())
    plain.load_state_dict({key: getattr(layer, key) for key in _names(plain)})
    for gradients in (True, False):
        for how in ("forward", "step"):
            assert_equal([leaf.detach() for leaf in _run(how, layer, gradients)],
                         _run(how, plain, gradients))
    layer(draw(20, 3, I))[0].sum().backward()
    assert layer.parametrizations[f"{name}_l0"].original.grad.any()  # type: ignore[union-attr,index]


def test_fresh_values_go_through_a_parametrization() -> None:
    torch.manual_seed(0)
    layer = ALIF(I, N, learn={"tau_mem": "plain"}, bias=False)
    parametrizations.weight_norm(layer, "weight_hh_l0")
    parametrize.register_parametrization(layer, "tau_mem_l0", Exp())
    before = layer.weight_hh_l0.detach()
    with torch.no_grad():
        layer.parametrizations.tau_mem_l0.original.fill_(0.0)  # type: ignore[union-attr,operator]
    layer.reset_parameters()
    assert layer.tau_mem_l0.item() == pytest.approx(20.0)
    assert not torch.equal(layer.weight_hh_l0, before)
    readout = parametrizations.weight_norm(LeakyReadout(N, 2), "weight")
    before = readout.weight.detach()
    readout.reset_parameters()
    assert not torch.equal(readout.weight, before)
    prune.l1_unstructured(layer, "weight_ih_l0", 0.5)
    with pytest.raises(RuntimeError, match="weight_ih_l0: expected a parameter or buffer"):
        layer.reset_parameters()
