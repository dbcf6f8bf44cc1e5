"""profile: where the time of a forward and a backward pass on the CPU goes."""
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

import torch

from .. import _ops
from .._core.torch_internals import ObservingMode, find_tensors
from .passes import Passes, check_compiled, counting, one_at_a_time
from .profile_report import Profile, phases_of

_PRODUCTS = "mm", "addmm", "bmm", "baddbmm", "linear_events", "leaky_readout"


class _Pass(NamedTuple):
    forward: float
    backward: float
    in_forward: dict[str, int]
    in_backward: dict[str, int]


def profile(target: Callable[..., Any], *inputs: Any, repeats: int = 5,
            file: TextIO | None = None) -> Profile:
    """Returns where the time of a forward and a backward pass goes, and prints it.

    The loss is the first floating-point tensor of the result times fixed random numbers, summed.
    Parameters, gradients, buffers and random generators keep their values. Calls of lsnn_ext in
    other threads are counted too.

    Args:
        target: a module, a converted model, or a function that calls operators of lsnn_ext on the
            CPU; it is called as target(*inputs).
        *inputs: x, and what else the target takes, such as a state. A gradient is computed for
            tensors that require one.
        repeats: timed passes; the report is of the one with the median time.
        file: where the report is printed. Default standard output.

    Returns:
        Profile: the numbers; the report is its str().

    Raises:
        TypeError, ValueError, RuntimeError: a wrong argument, no call of lsnn_ext, no compiled
            part, or tensors that are not on the CPU.

    Example:
        >>> spikes = (torch.rand(784, 64, 80) < 0.05).float()
        >>> report = lsnn_ext.profile(lsnn_ext.ALIF(80, 220), spikes)
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int):
        raise TypeError(f"repeats: expected an int >= 1, got {type(repeats).__name__}")
    if repeats < 1:
        raise ValueError(f"repeats: expected an int >= 1, got {repeats}")
    if file is not None and not hasattr(file, "write"):
        raise TypeError(f"file: expected a text file or None, got {type(file).__name__}")
    check_compiled("lsnn_ext.profile")
    if _ops._C.emulator and "LSNN_EMULATE" in os.environ:
        raise RuntimeError("lsnn_ext.profile: expected the CPU kernels, got LSNN_EMULATE")
    passes = Passes(target, inputs)
    for tensor in passes.tensors():
        if not tensor.is_cpu:
            raise ValueError(f"target, inputs: expected tensors on the CPU, got device "
                             f"{tensor.device}; torch.profiler times kernels on other devices")

    def timed() -> _Pass:
        start = time.perf_counter()
        out = passes.forward()
        middle = time.perf_counter()
        in_forward = _ops._C.counters()
        resumed = time.perf_counter()
        passes.backward(out)
        end = time.perf_counter()
        return _Pass(middle - start, end - resumed, in_forward, _ops._C.counters())

    with one_at_a_time, passes.unchanged(), torch.enable_grad():
        passes.warm_up()
        timers = [(_Timer(), _Timer()) for _ in range(min(3, repeats))]
        for ahead, back in timers:
            with ahead:
                out = passes.forward()
            with back:
                passes.backward(out)
        del out
        with counting():
            measured = [timed() for _ in range(repeats)]
    median = sorted(measured, key=lambda one: one.forward + one.backward)[(repeats - 1) // 2]
    if not median.in_forward["neuron_steps"]:
        shape = next((tuple(one.shape) for one in find_tensors(passes.inputs)), ())
        raise ValueError(f"target: expected a call of lsnn_ext with one step and one sequence or "
                         f"more, got none by {passes.name} with inputs of shape {shape}")
    outside = [statistics.median(pair[direction].seconds for pair in timers)
               for direction in (0, 1)]
    report = _report(passes.name, repeats, median, outside)
    print(report, file=file)
    return report


def _report(name: str, repeats: int, measured: _Pass, outside: Sequence[float]) -> Profile:
    counted = {key: n + measured.in_backward[key] for key, n in measured.in_forward.items()}
    threads, calls = torch.get_num_threads(), counted["forward_calls"]
    kernels = counted["ns_forward_tiles"] + counted["ns_backward_tiles"]
    same = ("neuron_steps", *(f"product_steps_{kind}" for kind in ("dense", "active", "sparse")))
    return Profile(
        target=name, repeats=repeats, threads=threads,
        lost=max(0.0, 1 - counted["ns_processor"] / max(1, kernels)),
        instruction_set=_ops._C.instruction_set(),
        forward=measured.forward, backward=measured.backward,
        phases=phases_of(threads, (measured.forward, measured.in_forward),
                         (measured.backward, measured.in_backward), outside),
        rate=counted["spikes"] / max(1, counted["neuron_steps"]),
        active=counted["active"] / counted["replayed"] if counted["replayed"] else None,
        input_density=counted["input_rows"] / counted["inputs"] if counted["inputs"] else None,
        calls=calls, batch=counted["items"] / calls, tiles=counted["tiles"] / calls,
        counters=counted, **{key: counted[key] for key in same})


class _Timer(ObservingMode):
    """Times products of matrices and readouts outside of the operator of the recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__.startswith(_PRODUCTS):
            self.seconds += time.perf_counter() - start
        return out
