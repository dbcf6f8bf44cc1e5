"""profile: where the time of a module on the CPU goes."""

import mmap
import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ... import _ops
from ...modules import ALIF, LIF, LSNN, LeakyReadout
from .recorder import OpRecorder, Shape
from .report import Profile, phases_of

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_OURS = (ALIF, LIF, LSNN, LeakyReadout)
_one_at_a_time = threading.Lock()  # the counters are shared by all threads


class _Pass(NamedTuple):
    """What was measured in one repeat."""

    forward: float
    backward: float
    in_forward: dict[str, int]
    in_backward: dict[str, int]
    faults: int


def profile(
    layer: nn.Module, x: Tensor | PackedSequence, state: Any = None, *, repeats: int = 5,
    file: TextIO | None = None,
) -> Profile:
    """Runs a module forward and backward on x, prints where the time goes, and what would make it
    faster.

    The loss is the first tensor of the result times fixed random numbers, summed. Parameters, their
    gradients, buffers and the state of the random generator are afterwards what they were. While it
    runs, calls of lsnn_ext in other threads are counted too.

    Args:
        layer: ALIF, LIF, LSNN, or any module with some of them inside, which is called as layer(x)
            or layer(x, state).
        x: inputs on the CPU. A gradient is computed for them where they ask for one.
        state: the second argument of layer, None for none.
        repeats: passes that are timed, after some that are not; the report is about the one with
            the median time.
        file: where the report is printed, standard output by default.

    Returns:
        Profile: all the numbers; str() of it is the report, .advice its last sentences.

    Raises:
        TypeError, ValueError, RuntimeError: a wrong argument, or nothing to count: no compiled
            part, or tensors that are not on the CPU. The message names the argument, what is
            expected and what was given.

    Example:
        >>> spikes = (torch.rand(784, 64, 80) < 0.05).float()
        >>> report = lsnn_ext.profile(lsnn_ext.ALIF(80, 220), spikes)
    """
    _check(layer, x, repeats, file)
    threads = torch.get_num_threads()
    inputs = _detached((x,) if state is None else (x, state))
    wanted = [p for p in layer.parameters() if p.requires_grad] + [
        t for t in _tensors(inputs) if t.requires_grad
    ]
    cotangents: dict[tuple[int, ...], Tensor] = {}

    def forward() -> Tensor:
        result = next((t for t in _tensors(layer(*inputs)) if t.is_floating_point()), None)
        if result is None:
            raise TypeError(f"layer: expected a module that returns a tensor, got "
                            f"{type(layer).__name__} that does not")
        return result

    def backward(out: Tensor) -> None:
        if not wanted or not out.requires_grad:
            return
        if out.shape not in cotangents:
            random = torch.Generator().manual_seed(0)
            cotangents[out.shape] = torch.randn(out.shape, generator=random).to(out)
        torch.autograd.grad(out, wanted, cotangents[out.shape], allow_unused=True)

    def timed() -> _Pass:
        faults, start = _faults(), time.perf_counter()
        out = forward()
        middle = time.perf_counter()
        in_forward = _ops._C.counters()
        resumed = time.perf_counter()
        backward(out)
        end = time.perf_counter()
        return _Pass(middle - start, end - resumed, in_forward, _ops._C.counters(),
                     _faults() - faults)

    with _one_at_a_time, _unchanged(layer), torch.enable_grad():
        backward(forward())  # fills the cache of memory
        recorders = [(OpRecorder(*_shapes(layer)), OpRecorder(*_shapes(layer)))
                     for _ in range(min(3, repeats))]
        for ahead, back in recorders:
            with ahead:
                out = forward()
            with back:
                backward(out)
        del out
        before = _ops._C.profile(True)
        try:
            _ops._C.counters()
            passes = [timed() for _ in range(repeats)]
        finally:
            _ops._C.profile(before)
    median = sorted(passes, key=lambda p: p.forward + p.backward)[(repeats - 1) // 2]
    if not recorders[0][0].calls:
        raise ValueError("layer: expected a module that calls its layers of lsnn_ext, got one that "
                         "calls none")
    if not median.in_forward["neuron_steps"]:
        raise ValueError(f"x: expected one step and one sequence or more, got shape {_shape(x)}")
    report = _report(layer, repeats, threads, median, recorders)
    print(report, file=file)
    return report


def _report(
    layer: nn.Module, repeats: int, threads: int, measured: _Pass,
    recorders: list[tuple[OpRecorder, OpRecorder]],
) -> Profile:
    outside = [[statistics.median(pair[direction].seconds[which] for pair in recorders)
                for direction in (0, 1)] for which in (0, 1)]
    recorder, counters = recorders[0][0], {n: k + measured.in_backward[n]
                                           for n, k in measured.in_forward.items()}
    neuron_steps, replayed = counters["neuron_steps"], counters["replayed"]
    nonzero, inputs = (
        recorder.inputs[0] + counters["input_rows"], recorder.inputs[1] + counters["inputs"])
    kernels = counters["ns_forward_tiles"] + counters["ns_backward_tiles"]
    calls, ours, others = counters["forward_calls"], _fresh_byte(True), _fresh_byte(False)
    return Profile(
        layer=type(layer).__name__,
        repeats=repeats,
        threads=threads,
        cores=_cores(),
        lost=max(0.0, 1 - counters["ns_processor"] / max(1, kernels)),
        instruction_set=_ops._C.instruction_set(),
        forward=measured.forward,
        backward=measured.backward,
        phases=phases_of(
            threads,
            (measured.forward, measured.in_forward),
            (measured.backward, measured.in_backward),
            (outside[0][0], outside[0][1]),
            (outside[1][0], outside[1][1]),
        ),
        projection=tuple(recorder.kinds),
        rate=counters["spikes"] / max(1, neuron_steps),
        active=counters["active"] / replayed if replayed else None,
        input_density=nonzero / inputs if inputs else None,
        product_steps_dense=counters["product_steps_dense"],
        product_steps_active=counters["product_steps_active"],
        product_steps_sparse=counters["product_steps_sparse"],
        calls=calls,
        batch=counters["items"] / calls,
        tiles=counters["tiles"] / calls,
        neuron_steps=neuron_steps,
        delays=max((call.delays for call in recorder.calls), default=1),
        surrogates=tuple(dict.fromkeys(call.surrogate for call in recorder.calls)),
        checkpoint_every=max((call.checkpoint for call in recorder.calls), default=0),
        spikes_beside_readout=sum(
            call.spikes for call in recorder.calls if call.readout or recorder.readout_apart
        ),
        fresh_bytes=counters["fresh_bytes"],
        fresh_time=counters["fresh_bytes"] * ours[0],
        page_faults=measured.faults if resource else None,
        page_fault_time=max(0.0, measured.faults - counters["fresh_bytes"] * ours[1])
        * others[0]
        / others[1]
        if others[1]
        else 0.0,
        cache_mb=os.environ.get("LSNN_CACHE_MB", "1024"),
        counters=counters,
    )


def _check(layer: Any, x: Any, repeats: Any, file: Any) -> None:
    ours = ", ".join(kind.__name__ for kind in _OURS[:-1])
    if not isinstance(layer, nn.Module):
        raise TypeError(f"layer: expected a module with some of {ours} inside, got "
                        f"{type(layer).__name__}")
    if not any(isinstance(module, _OURS) for module in layer.modules()):
        raise ValueError(f"layer: expected a module with some of {ours} inside, got "
                         f"{type(layer).__name__} without")
    if not isinstance(x, Tensor | PackedSequence):
        raise TypeError(f"x: expected a tensor or a PackedSequence, got {type(x).__name__}")
    if isinstance(repeats, bool) or not isinstance(repeats, int):
        raise TypeError(f"repeats: expected an int >= 1, got {type(repeats).__name__}")
    if repeats < 1:
        raise ValueError(f"repeats: expected an int >= 1, got {repeats}")
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"file: expected a text file or None, got {type(file).__name__}")
    if _ops._C is None:
        raise RuntimeError(
            f"lsnn_ext.profile: expected the compiled part, whose kernels count, got none "
            f"({_ops.load_error})")
    if _ops._C.emulator and "LSNN_EMULATE" in os.environ:
        raise RuntimeError("lsnn_ext.profile: expected the CPU kernels, got LSNN_EMULATE, which "
                           "takes emulated ones")
    for name, device in (("x", next(_tensors((x,))).device),
                         ("layer", next(layer.parameters()).device)):
        if device.type != "cpu":
            raise ValueError(f"{name}: expected the CPU, as only its kernels count, got device "
                             f"{device}; "
                             "torch.profiler times kernels on other devices")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _detached(value: Any) -> Any:
    """The same without a history, so that it can be gone through again and again."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, list | tuple):
        parts = [_detached(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@contextmanager
def _unchanged(layer: nn.Module) -> Iterator[None]:
    """Gives buffers, the running means of a batch norm say, and the random generator their values
    back."""
    kept = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def _shape(x: Tensor | PackedSequence) -> Shape:
    return tuple(next(_tensors((x,))).shape)


def _shapes(layer: nn.Module) -> tuple[set[Shape], set[Shape]]:
    """Of the input weights and of the readouts' weights, in either order."""
    found: tuple[set[Shape], set[Shape]] = (set(), set())
    for module in layer.modules():
        which = 1 if isinstance(module, LeakyReadout) else 0
        names = (
            ["weight"]
            if which
            else [f"weight_ih{suffix}" for suffix in getattr(module, "_suffixes", ())]
        )
        for name in names if isinstance(module, _OURS) else ():
            shape = tuple(getattr(module, name).shape)  # of a parametrized weight too
            found[which].update({shape, shape[::-1]})
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _fresh_byte(huge: bool) -> tuple[float, float]:
    """Seconds and page faults, a byte, of touching fresh memory: in huge pages, as our blocks are,
    or in usual ones."""
    with mmap.mmap(-1, 16 << 20) as memory:
        if hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MADV_NOHUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        faults, start = _faults(), time.perf_counter()
        memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
        return (time.perf_counter() - start) / len(memory), (_faults() - faults) / len(memory)
