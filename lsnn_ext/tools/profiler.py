"""profile: where the time of a forward and a backward pass on the CPU goes."""
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TextIO

import torch

from .. import _ops
from .._core.torch_internals import ObservingMode, find_tensors
from .passes import Passes, counting, one_at_a_time

# The phases of a pass in the order of the report. Their seconds in the kernels are those of all
# threads, divided by the number of threads, so that all phases together are the time of the pass.
FORWARD = {
    "products": "products and readouts outside",
    "projection": "projection of inputs",
    "sums": "events and sums of weights",
    "step": "step of the neurons",
    "readout": "readout",
    "write": "writing results",
    "pack_forward": "packing weights",
    "idle_forward": "threads that wait",
    "outside_forward": "everything else",
}
BACKWARD = {
    "recompute": "recomputation (checkpoint_every)",
    "replay": "replay of the states",
    "product_dense": "product with the weights, dense",
    "product_active": "product with the weights, active rows",
    "product_sparse": "product with the weights, sparse",
    "readout_adjoint": "adjoint of the readout",
    "adjoint": "adjoint of the step",
    "gradient": "gradient of the recurrent weights",
    "gradient_in": "gradient of inputs and their weights",
    "gradient_out": "gradient of the readout's weights",
    "sum_tiles": "sum of the tiles' gradients",
    "copy": "copying in the tiles",
    "pack_backward": "packing weights",
    "products_backward": "products and readouts outside",
    "idle_backward": "threads that wait",
    "outside_backward": "everything else",
}


class _Pass(NamedTuple):
    forward: float  # seconds
    backward: float
    in_forward: dict[str, int]  # what the kernels counted
    in_backward: dict[str, int]


def _find_phases(threads: int, measured: _Pass, products: Sequence[float]) -> dict[str, float]:
    """Seconds by phase; products: seconds of products and readouts outside of the operator, in both
    passes."""
    all_f, all_b, f, b = measured
    timed = ("events", "sums", "step", "readout", "wait_forward", "forward_tiles")
    seconds = {key: f["ns_" + key] * 1e-9 / threads for key in timed}
    own = f["input_rows"] / max(1, f["rows"])  # share of the rows that were added for inputs
    sums, in_operator = seconds["events"] + seconds["sums"], f["ns_forward"] * 1e-9
    phases = dict.fromkeys((*FORWARD, *BACKWARD), 0.0)
    phases |= {"projection": sums * own, "sums": sums * (1 - own), "step": seconds["step"],
               "readout": seconds["readout"], "pack_forward": f["ns_pack_forward"] * 1e-9}
    busy = seconds["forward_tiles"] - seconds["wait_forward"]
    phases["write"] = max(0.0, busy - sums - seconds["step"] - seconds["readout"])
    # What is left of an operator is time in which threads had no tile, or waited for the others at
    # one, and what is left of a pass lies outside.
    phases["idle_forward"] = max(0.0, in_operator - phases["pack_forward"] - busy)
    # they were timed in other passes
    phases["products"] = min(products[0], max(0.0, all_f - in_operator))
    phases["outside_forward"] = max(0.0, all_f - sum(phases[key] for key in FORWARD))

    kernels = list(BACKWARD)[: list(BACKWARD).index("sum_tiles")]
    phases |= {key: b["ns_" + key] * 1e-9 / threads for key in kernels}
    phases |= {key: b["ns_" + key] * 1e-9 for key in ("sum_tiles", "pack_backward")}
    busy, in_operator = (
        b["ns_backward_tiles"] - b["ns_wait_backward"]) * 1e-9 / threads, b["ns_backward"] * 1e-9
    phases["copy"] = max(0.0, busy - sum(phases[key] for key in kernels))
    phases["idle_backward"] = max(
        0.0, in_operator - phases["sum_tiles"] - phases["pack_backward"] - busy)
    phases["products_backward"] = min(products[1], max(0.0, all_b - in_operator))
    phases["outside_backward"] = max(0.0, all_b - sum(phases[key] for key in BACKWARD))
    return phases


@dataclass(frozen=True)
class Profile:
    """Where the time of a forward and a backward pass goes, in seconds of one pass; str() is the
    report. Times and counts are those of the repeat with the median time."""

    target: str  # class of the module, or name of the function
    repeats: int
    threads: int  # of torch
    lost: float  # share of the kernels' time in which other programs preempted them
    instruction_set: str  # of the kernels
    forward: float  # the whole pass
    backward: float  # the same; almost 0 if no gradient is wanted
    phases: dict[str, float]  # by the keys of FORWARD and BACKWARD; their sum is forward + backward
    rate: float  # share of neuron-steps with a spike
    active: float | None  # share of neuron-steps whose surrogate is not zero; None: no backward
    input_density: float | None  # share of the inputs of the operators that are not zero
    product_steps_dense: int  # steps of tiles in which the backward product was dense,
    product_steps_active: int  # or computed only the active rows,
    product_steps_sparse: int  # or only the synapses that are not zero
    calls: int  # of the operator in a forward pass
    batch: float  # sequences in a call, on average
    tiles: float  # pieces for threads that a call is divided into
    neuron_steps: int  # T * B * N, over all calls
    counters: dict[str, int] = field(repr=False)  # of the kernels, see csrc/cpu/counters.h

    @property
    def seconds(self) -> float:
        """Of both passes."""
        return self.forward + self.backward

    def __str__(self) -> str:
        lost = f"; preempted for {self.lost:.0%} of their time" if self.lost > 0.15 else ""
        lines = [f"{self.target}, {self.instruction_set}, {_count(self.threads, 'thread')}; median "
                 f"of {self.repeats}{lost}"]
        for title, seconds, names in (("forward", self.forward, FORWARD),
                                      ("backward", self.backward, BACKWARD)):
            lines.append(self._line(title, seconds))
            lines += [self._line("  " + name, self.phases[key]) for key, name in names.items()
                      if self.phases[key] >= 0.0005 * self.seconds]
        active = ("" if self.active is None
                  else f"; {self.active:.2%} have a surrogate that is not zero")
        lines.append(f"{self.rate:.2%} of the neurons fire in a step{active}")
        products = {"dense": self.product_steps_dense, "active rows": self.product_steps_active,
                    "sparse": self.product_steps_sparse}
        if total := sum(products.values()):
            texts = [f"{product} in {steps:,}" for product, steps in products.items() if steps]
            lines.append(f"backward product: {', '.join(texts)} of {total:,} steps of tiles")
        if self.input_density is not None:
            lines.append(f"{self.input_density:.2%} of the inputs of the operator are not zero")
        lines.append(f"{_count(self.calls, 'call')}, a batch of {self.batch:.3g} in "
                     f"{_count(self.tiles, 'tile')}, {self.neuron_steps:,} neuron-steps")
        return "\n".join(lines)

    def _line(self, name: str, seconds: float) -> str:
        return f"{name:40}{seconds * 1e3:10.2f} ms{seconds / self.seconds:8.1%}"


def _count(number: float, noun: str) -> str:
    text = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    return f"{text} {noun}" + ("" if number == 1 else "s")


_PRODUCTS = "mm", "addmm", "bmm", "baddbmm", "linear_events", "leaky_readout"


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
    passes = Passes("lsnn_ext.profile", target, inputs)
    if _ops._C.emulator and "LSNN_EMULATE" in os.environ:
        raise RuntimeError("lsnn_ext.profile: expected the CPU kernels, got LSNN_EMULATE")
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
    outside = [statistics.median(one.seconds for one in each) for each in zip(*timers, strict=True)]
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
        phases=_find_phases(threads, measured, outside),
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
