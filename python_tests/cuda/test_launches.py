"""How many kernels the host launches for a call on a GPU: those of torch, and ours as the emulated
runtime counts them.

In a build with the emulator and LSNN_EMULATE=1; elsewhere nothing counts them.
"""
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lsnn_ext import ALIF, LIF, LSNN, _ops, functional
from lsnn_ext._ops import autograd
from lsnn_ext.modules import delays, neuron, readout
from operator_calls import EMULATED

pytestmark = pytest.mark.skipif(not EMULATED, reason="launches are counted by the emulator, with "
                                                     "LSNN_EMULATE=1 in a build that has it")
if os.environ.get("LSNN_DESIGN") == "step":
    pytest.skip("the design step launches kernels for each step", allow_module_level=True)

# Operators of torch that launch nothing: memory, views and what asks for the form of a tensor.
NOTHING = {
    "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "can_cast",
    "conj", "detach", "detach_", "empty", "empty_like", "empty_strided", "expand", "flatten",
    "is_nonzero", "item", "lift_fresh", "narrow", "new_empty", "numpy_T", "permute",
    "promote_types", "reshape", "resolve_conj", "resolve_neg", "result_type", "select", "set_",
    "slice", "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view",
    # of the coefficients of a layer on the CPU, which a GPU does not compare
    "equal", "is_same_size",
    # what they launch are operators of their own inside
    "linear", "matmul", "clone", "contiguous", "stack", "zeros", "new_zeros", "ones", "full",
    "zeros_like", "ones_like", "_to_copy",
}
# And those that launch one kernel, whatever they call on the CPU.
ONE = {"mm", "addmm", "cat", "sum", "exp", "mul", "add", "add_", "reciprocal", "copy_", "fill_",
       "zero_", "masked_fill", "masked_fill_", "div", "neg", "eye"}


def _torch_launches(events: Any) -> list[str]:
    """Names of operators that would launch a kernel, of a profile on the CPU."""
    found: list[str] = []

    def look(event: Any) -> None:
        name = event.name.removeprefix("aten::")
        if event.name.startswith("aten::") and name in ONE:
            shapes = event.input_shapes
            if not shapes or 0 not in shapes[0]:  # nothing is launched for no elements
                found.append(name)
            return
        if event.name.startswith("aten::"):
            assert name in NOTHING, f"{event.name}: launches a kernel or not? Name it in this test"
        for child in event.cpu_children:
            look(child)

    for event in events:
        if event.cpu_parent is None:
            look(event)
    return found


def launches(call: Callable[[], Any]) -> tuple[int, list[str]]:
    """Of our kernels, and names of torch's; after a first call, which makes what is kept."""
    call()
    before = _ops._C.launches()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        call()
    return _ops._C.launches() - before, _torch_launches(profile.events())


T, B, I, N, O = 40, 32, 8, 64, 5
ADAPTIVE = {"alpha": 0.95, "rho": 0.99, "theta": 0.3, "beta": 1.8}


def _weights(*shape: int) -> Tensor:
    return (torch.randn(shape) / shape[-1] ** 0.5).requires_grad_()


def _layer(learned: bool, tensors: bool = True, **given: Any) -> Callable[[], Any]:
    """Calls of functional.layer, forward or forward and backward."""
    torch.manual_seed(0)
    x: Any = (torch.rand(T, B, I) < 0.3).float()
    w_in, w_rec = _weights(N, I), _weights(N, N)
    if given.pop("bits", False):
        x = functional.pack_spikes(x)
    neuron = {name: torch.full((N,), value) if tensors else value
              for name, value in ADAPTIVE.items()}
    weights = [w_in, w_rec]
    if given.pop("readout", False):
        weights.append(_weights(O, N))
        given |= {"w_out": weights[-1], "k_out": 0.9, "spikes": False}
    outside = torch.rand(T, B, O if "w_out" in given else N)

    def call() -> Any:
        if not learned:
            with torch.no_grad():
                return functional.layer(x, w_in, w_rec, **neuron, **given)
        out = functional.layer(x, w_in, w_rec, **neuron, **given)
        return torch.autograd.grad(out.spikes if out.readout is None else out.readout, weights,
                                   outside)

    return call


def _module(module: torch.nn.Module, learned: bool) -> Callable[[], Any]:
    """Calls of a module, forward or forward and backward."""
    torch.manual_seed(0)
    x = (torch.rand(T, B, I) < 0.3).float()
    outside = torch.rand(module(x)[0].shape)

    def call() -> Any:
        if not learned:
            with torch.no_grad():
                return module(x)
        return torch.autograd.grad(module(x)[0], list(module.parameters()), outside)

    return call


@pytest.mark.parametrize(("name", "call", "most"), [
    ("forward", lambda: _layer(False), 3),
    ("forward, coefficients as numbers", lambda: _layer(False, tensors=False), 3),
    ("forward and backward", lambda: _layer(True), 7),
    ("forward and backward, readout", lambda: _layer(True, readout=True), 10),
    ("forward, inputs as bits", lambda: _layer(False, bits=True), 4),
    ("forward and backward, inputs as bits", lambda: _layer(True, bits=True), 9),
    ("ALIF, forward", lambda: _module(ALIF(I, N), False), 3),
    ("ALIF, forward and backward", lambda: _module(ALIF(I, N), True), 8),
    ("LSNN, forward", lambda: _module(LSNN(I, N // 2, N // 2, O), False), 4),
    ("LSNN, forward and backward", lambda: _module(LSNN(I, N // 2, N // 2, O), True), 10),
    ("LIF, forward and backward", lambda: _module(LIF(I, N, bias=False), True), 7),
])
def test_a_call_launches_few_kernels(name: str, call: Callable[[], Any], most: int,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (delays, neuron, readout):
        monkeypatch.setattr(module, "is_readable", lambda _: False)  # as of tensors on a GPU
    ours, torchs = launches(call())
    print(name, ours, torchs)
    assert ours > 0 and ours + len(torchs) <= most, f"{ours} of ours, and of torch {torchs}"


@pytest.mark.parametrize("given", [{}, {"delay": 2}, {"sigma": 0.5}, {"bits": True}])
def test_weights_are_packed_once(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    call = _layer(True, **given)
    once, _ = launches(call)
    kept = call()
    monkeypatch.setattr(autograd, "_saves_packed", lambda *_: False)
    twice, _ = launches(call)
    assert once == twice - 1
    for one, other in zip(kept, call(), strict=True):
        assert torch.equal(one, other)


def test_packed_weights_take_little_memory() -> None:
    """Single steps, of which a loop records many, pack again."""
    def count_saved(T: int) -> int:
        x, w = torch.zeros(T, 4, N), _weights(N, N)
        z, _ = functional.alif(x, w, **ADAPTIVE)
        return len(z.grad_fn.saved_tensors)

    assert count_saved(1000) == count_saved(1) + 1


def test_a_general_layer_launches_both_kernels_only_where_the_host_does_not_know() -> None:
    fixed, _ = launches(_layer(False))
    told, _ = launches(_layer(False, sigma=0.0, eta=0.0, p=0.0))
    unknown, _ = launches(_layer(False, sigma=torch.zeros(N)))
    assert fixed == told == unknown - 1
