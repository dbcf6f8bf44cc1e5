"""Layers under compilers, autocast, checkpoints, functional_call and on meta."""
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from test_operator import needs_compiler
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from compare import assert_same, flat, outputs_and_gradients, through_exported_file
from lsnn_ext import ALIF, LSNN, LeakyReadout, LSNNState, State, _ops, functional
from operator_calls import needs_compiled
from synaptic_readouts import BOTH, B, N, T, make, spikes, start

pytestmark = needs_compiled
K: dict[str, Any] = {"alpha": 0.9, "theta": 0.3}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "ALIF-stacked": lambda: ALIF(5, 7, 2, learn=("tau_mem", "beta")),
    "ALIF-delays": lambda: ALIF(5, 7, delay=torch.arange(49).view(7, 7) % 3),
    "LSNN": lambda: LSNN(5, 4, 3, 2)}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield MODULES[request.param]()


def _x(steps: int = 20, batch: int = 3) -> Tensor:
    return torch.randn(steps, batch, 5, generator=torch.Generator().manual_seed(steps))


def _results(call: Callable[..., Any], parameters: Any, *args: Any) -> list[Tensor]:
    """The first output, then the gradients of the parameters of a weighted sum of it."""
    return outputs_and_gradients(lambda *given: call(*given)[0], parameters, *args)


def _assert_alike(got: list[Tensor], want: list[Tensor], tolerance: float = 0.0) -> None:
    assert any(gradient.any() for gradient in want[1:])
    assert_same("results", got, want, tolerance=tolerance)


# ---------------------------------------------------------------------------------- torch.compile
@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("options", [{"mode": "reduce-overhead"}, {"dynamic": True}], ids=str)
def test_compile_modes(options: dict[str, Any]) -> None:
    """The default mode stands in test_operator.py."""
    torch.manual_seed(0)
    module = LSNN(5, 4, 3, 2)
    compiled = torch.compile(module, fullgraph=True, **options)
    for x in (_x(), _x(31, 4)):
        _assert_alike(_results(compiled, module.parameters(), x),
                      _results(module, module.parameters(), x), tolerance=1e-5)


# A call, and its arguments, of which floating point tensors want a gradient.
COMPILED: dict[str, Callable[[], tuple[Callable[..., Any], list[Any]]]] = {
    "readout": lambda: (LeakyReadout(5, 3), [_x()]),
    "synaptic readout": lambda: (make(learn=BOTH), [spikes(T, B, N), start()]),
    "step": lambda: ((layer := ALIF(5, 7)).step, [_x(1)[0], layer(9 * _x())[1].detach()]),
    "dropout": lambda: (ALIF(5, 7, recurrent_dropout=0.4), [_x()]),
    "network": lambda: (LSNN(5, 4, 5, 3), [_x(6)]),
    "network with a learned readout": lambda: (
        LSNN(5, 4, 5, 3, learn="tau_out", per_neuron=True), [_x(6)]),
    "network from a state": lambda: (net := LSNN(5, 4, 5, 3), [_x(6), net(_x(6))[1].detach()]),
    "existing synapses": lambda: (
        partial(functional.alif, sparse_grad="existing", **K),
        [_x(20), torch.rand(5, 5) * (torch.rand(5, 5) < 0.5)]),
    "cutoff": lambda: (
        partial(functional.alif, w_rec=None, dynamics="srnn", surrogate_cutoff=1e-3, **K),
        [torch.linspace(-9, 9, 40)[None, None]]),
    "no recurrence": lambda: (partial(functional.alif, w_rec=None, **K), [_x()]),
    "weights of each delay": lambda: (
        partial(functional.alif, delay=(0, 1, 3), **K), [_x(), torch.randn(3, 5, 5)]),
    "kernel and mask": lambda: (
        lambda x, w, kernel, mask: functional.alif(
            x, w, delay=(0, 1, 3), delay_kernel=kernel, recurrent_mask=mask, **K),
        [3 * _x(), torch.randn(5, 5), torch.randn(3, 5), torch.rand(3, 5) < 0.7]),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(("syn", "net")) else name
    for name in COMPILED])
def test_compiled_calls_are_bitwise_identical(name: str) -> None:
    torch.manual_seed(0)
    call, args = COMPILED[name]()
    leaves = [one.requires_grad_() for one in args
              if isinstance(one, Tensor) and one.is_floating_point()]
    module = getattr(call, "__self__", call)
    leaves += list(module.parameters()) if isinstance(module, nn.Module) else []
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")

    def run(call: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(0)
        return (outputs_and_gradients(call, leaves, *args) if torch.is_grad_enabled()
                else flat(call(*args)))

    with torch.no_grad():
        assert_same(name, run(compiled), run(call))
    got, want = run(compiled), run(call)
    assert want[0].any() and all(gradient.any() for gradient in want[-len(leaves):])
    assert_same(name, got, want)


# ----------------------------------------------------------------------------------- torch.export
def test_export_for_any_length_and_batch(module: nn.Module) -> None:
    """Also beyond 128 steps, from which on more than one state is saved."""
    shapes = ({0: torch.export.Dim("T", min=2, max=5000), 1: torch.export.Dim("B", max=64)},)
    program = torch.export.export(module, (_x(),), dynamic_shapes=shapes).module()
    for x in (_x(6, 7), _x(40, 1), _x(300, 4)):
        _assert_alike(_results(program, program.parameters(), x),
                      _results(module, module.parameters(), x), tolerance=1e-6)


class Carries(nn.Module):
    """A network whose caller keeps the state."""

    def __init__(self) -> None:
        super().__init__()
        self.lsnn = LSNN(5, 4, 3, 2, delay=2)

    def forward(self, x: Tensor, state: LSNNState) -> tuple[Tensor, LSNNState]:
        return self.lsnn(x, state)


def test_export_takes_and_returns_states_by_their_names() -> None:
    torch.manual_seed(0)
    module = Carries()
    _, state = module.lsnn(_x())
    program = through_exported_file(torch.export.export(module, (_x(), state)))
    (got, after), (want, other) = program.module()(2 * _x(), state), module(2 * _x(), state)
    assert isinstance(after, LSNNState) and isinstance(after.neurons, State)
    assert_same("y", got, want)
    leaves, spec = pytree.tree_flatten(after)
    assert_same("state", leaves, pytree.tree_leaves(other))
    told = pytree.treespec_dumps(spec)
    assert "lsnn_ext.LSNNState" in told and "lsnn_ext.State" in told
    assert isinstance(pytree.tree_unflatten(leaves, pytree.treespec_loads(told)), LSNNState)


# -------------------------------------------------------------------------- autocast, scaled losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scaled_loss_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = nn.Linear(5, 6)
    module = nn.ModuleDict({"first": first, "neurons": ALIF(6, 7), "last": nn.Linear(7, 2)})
    other, x = copy.deepcopy(module), _x()

    def loss(net: nn.ModuleDict) -> Tensor:
        with torch.autocast("cpu", dtype):
            spikes, state = net["neurons"](net["first"](x))
            y = net["last"](spikes)
        assert (spikes.dtype, y.dtype, state.v.dtype) == (dtype, dtype, torch.float32)
        return y.float().square().mean()

    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    learns, plain = (torch.optim.SGD(one.parameters(), 0.1) for one in (module, other))
    before = [p.detach().clone() for p in module.parameters()]
    for _ in range(3):
        learns.zero_grad()
        scaler.scale(loss(module)).backward()
        scaler.step(learns)
        scaler.update()
        plain.zero_grad()
        (16.0 * loss(other)).backward()
        for p in other.parameters():
            p.grad /= 16.0
        plain.step()
    for old, one, two in zip(before, module.parameters(), other.parameters(), strict=True):
        assert not torch.equal(old, one)
        assert_same("parameter", one.detach(), two.detach(), tolerance=1e-6)
    # a step that overflows is left out, and the scale falls
    kept = [p.detach().clone() for p in module.parameters()]
    learns.zero_grad()
    (scaler.scale(loss(module)) * torch.inf).backward()
    scaler.step(learns)
    scaler.update()
    assert scaler.get_scale() == 8.0
    assert all(torch.equal(old, one) for old, one in zip(kept, module.parameters(), strict=True))


# -------------------------------------------------------------- checkpoints, parameters, algorithms
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoint(module: nn.Module, reentrant: bool) -> None:
    x = _x().requires_grad_()
    got = _by_backward(lambda x: checkpoint(module, x, use_reentrant=reentrant), module, x)
    _assert_alike(got, _results(module, module.parameters(), x))


@pytest.mark.parametrize("learn", [(), ("tau_mem", "beta")], ids=str)
def test_activation_checkpoint_of_the_first_step(learn: tuple[str, ...]) -> None:
    """What a layer keeps from step to step is built inside of the checkpoint and used after it."""
    torch.manual_seed(0)
    layer, x = ALIF(5, 7, learn=learn), _x(1)[0]
    plain = copy.deepcopy(layer)

    def gradients(layer: ALIF, call: Callable[..., Any]) -> list[Tensor]:
        return [x, *torch.autograd.grad(call(x)[1].v.square().sum(), list(layer.parameters()),
                                        materialize_grads=True)]

    want = gradients(plain, plain.step)
    for call in (*[lambda x: checkpoint(layer.step, x, use_reentrant=False)] * 2, layer.step):
        _assert_alike(gradients(layer, call), want)


def _by_backward(call: Callable[..., Any], module: nn.Module, x: Tensor) -> list[Tensor]:
    """_results by loss.backward(), which reentrant checkpoints need."""
    module.zero_grad()
    y = call(x)[0]
    (y * torch.linspace(-1, 1.5, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def test_saved_tensors_may_move(module: nn.Module) -> None:
    want = _results(module, module.parameters(), _x())
    with torch.autograd.graph.save_on_cpu():
        _assert_alike(_results(module, module.parameters(), _x()), want)


def test_deterministic_algorithms(module: nn.Module) -> None:
    """Nothing in a layer is refused, and memory that PyTorch fills shows what nobody wrote."""
    want = _results(module, module.parameters(), _x(200))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        _assert_alike(_results(module, module.parameters(), _x(200)), want)
    finally:
        torch.use_deterministic_algorithms(False)


# ------------------------------------------------------------------------ devices without kernels
@pytest.mark.parametrize("call", ["alif", "layer", "leaky_readout"])
def test_devices_without_kernels_are_told_of_the_reference(call: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """As MPS and XPU: this build is said to have no kernels for the CPU."""
    monkeypatch.setattr(_ops, "DEVICES", ("cuda", "meta"))
    x, w = _x(), torch.zeros(5, 5)
    calls = {"alif": lambda: functional.alif(x, w, alpha=0.9, theta=0.3),
             "layer": lambda: functional.layer(x, w, w, alpha=0.9, theta=0.3),
             "leaky_readout": lambda: functional.leaky_readout(x, w, 0.9)}
    with pytest.raises(RuntimeError, match=r"tensor on cuda or meta.* got device cpu.*"
                                           r"with lsnn_ext\.use_reference\(\)"):
        calls[call]()
    with functional.use_reference():
        calls[call]()
