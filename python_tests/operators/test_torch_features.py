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
from lsnn_ext import ALIF, LSNN, LeakyReadout, _ops, functional
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


@pytest.mark.parametrize(("name", "mode", "kinds"), [
    ("network", torch.enable_grad, ("LSNNState", "State")),
    ("readout", torch.no_grad, ("ReadoutState",))], ids=["network", "readout"])
def test_export_takes_and_returns_states_by_their_names(name: str, mode: Any,
                                                        kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    is_network = name == "network"
    module, x = (LSNN(5, 4, 3, 2, delay=2), _x()) if is_network else (make(), spikes(T, B, N))
    with mode():
        _, state = module(x)
        program = through_exported_file(torch.export.export(module, (x, state)))
        (got, after), (want, other) = program.module()(2 * x, state), module(2 * x, state)
    assert_same("y", got, want)
    leaves, spec = pytree.tree_flatten(after)
    assert_same("state", leaves, pytree.tree_leaves(other))
    told = pytree.treespec_dumps(spec)
    assert all(f"lsnn_ext.{kind}" in told for kind in kinds)
    again = pytree.tree_unflatten(leaves, pytree.treespec_loads(told))
    assert type(again) is type(after) is type(state)


# -------------------------------------------------------------------------- autocast, scaled losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scaled_loss_under_autocast(dtype: torch.dtype) -> None:
    """As torch.amp.GradScaler scales it: gradients are as large, and show an overflow."""
    torch.manual_seed(0)
    first, neurons, last, x = nn.Linear(5, 6), ALIF(6, 7), nn.Linear(7, 2), _x()
    leaves = [*first.parameters(), *neurons.parameters(), *last.parameters()]

    def gradients(scale: float) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype):
            spikes, state = neurons(first(x))
            y = last(spikes)
        assert (spikes.dtype, y.dtype, state.v.dtype) == (dtype, dtype, torch.float32)
        return torch.autograd.grad(scale * y.float().square().mean(), leaves)

    want = gradients(1.0)
    assert all(gradient.any() for gradient in want)
    assert_same("scaled", gradients(16.0), [16 * one for one in want], tolerance=1e-2)
    assert not any(bool(gradient.isfinite().all()) for gradient in gradients(torch.inf))


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
