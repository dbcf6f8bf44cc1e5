"""Report: what convert did with each loop, the differences, and the speed."""
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .component import Component
from .plan import Plan
from .stages import Stage
from .verify import Comparison

ROUNDS = 5
SECONDS = 2.0  # that timing may take beyond a first round and one that counts


@dataclass(frozen=True)
class Fused:
    """A recurrent component that runs in a kernel."""

    line: str  # of its spike or last result
    calls: int  # of torch in each iteration
    states: int
    currents: int
    has_product: bool  # of past spikes

    def __str__(self) -> str:
        product = ", recurrent product" if self.has_product else ""
        return (f"{self.line}: {_count(self.calls, 'call')}, {_count(self.states, 'state')}, "
                f"{_count(self.currents, 'current')}{product}")


@dataclass(frozen=True)
class Unfused:
    """Calls that still run once for each iteration."""

    line: str
    calls: int
    reason: str

    def __str__(self) -> str:
        return f"{self.line}: {_count(self.calls, 'call')}: {self.reason}"


@dataclass(frozen=True)
class LoopReport:
    """A loop of a model."""

    iterations: int
    calls: int  # of torch in each iteration
    fused: tuple[Fused, ...]
    batched: int  # calls that run for all iterations at once
    unfused: tuple[Unfused, ...]

    def lines(self) -> list[str]:
        """Returns the lines of the report."""
        return [f"  loop of {self.iterations} iterations, {_count(self.calls, 'call')} each, "
                f"{self.batched} of them for all iterations at once",
                *(f"    fused   {one}" for one in self.fused),
                *(f"    loop    {one}" for one in self.unfused)]


@dataclass(frozen=True)
class Speed:
    """Forward and backward of a whole model, original and converted in turns."""

    original: float  # seconds, of the round whose ratio is the median
    converted: float
    rounds: int
    threads: int
    original_bytes: int  # of activations that are kept for the backward pass
    converted_bytes: int

    @property
    def ratio(self) -> float:
        """How many times as fast the converted model is."""
        return self.original / self.converted

    def __str__(self) -> str:
        digits = 1 if self.ratio >= 1 else 2
        return (f"forward and backward {self.converted * 1e3:.1f} ms, original "
                f"{self.original * 1e3:.1f} ms: {self.ratio:.{digits}f} times as fast "
                f"({_count(self.rounds, 'round')} in turns, {_count(self.threads, 'thread')}); "
                f"kept for backward {self.converted_bytes / 1e6:.1f} MB, original "
                f"{self.original_bytes / 1e6:.1f} MB")


@dataclass(frozen=True)
class Report:
    """The result of convert. str() formats it as text."""

    model: str  # class
    converted: bool
    reason: str = ""  # why it is not converted, with the line
    loops: tuple[LoopReport, ...] = ()
    comparison: Comparison | None = None  # None: not verified
    speed: Speed | None = None  # None: not measured
    branches: int = 0  # bools of tensors that Python reads

    @property
    def fused(self) -> tuple[Fused, ...]:
        """The fused components of all loops."""
        return tuple(one for loop in self.loops for one in loop.fused)

    def __str__(self) -> str:
        what = "converted" if self.converted else f"not converted: {self.reason}"
        text = [f"{self.model}: {what}", *(line for loop in self.loops for line in loop.lines())]
        if not self.converted:
            return "\n".join(text)
        if self.branches:
            text.append(f"  {_count(self.branches, 'bool')} of tensors that Python reads: a call "
                        f"with others runs the original")
        text.append("  not verified" if self.comparison is None else f"  {self.comparison}")
        return "\n".join(text if self.speed is None else [*text, f"  {self.speed}"])


def describe(plan: Plan) -> tuple[LoopReport, ...]:
    """Returns the loops of a plan, after its first run."""
    found = []
    for loop, stages in plan.loops:
        unfused: list[Unfused] = []
        fused: list[Fused] = []
        for stage in stages:
            if isinstance(stage.run, Component):
                one = stage.run.found
                states = len(one.shared_states) or 1  # without others its output is its state
                z = next((place for place, name in one.places.items() if name == "z"), one.z)
                fused.append(Fused(
                    one.line(z[0]), len(stage.positions), states, len(one.shared_currents),
                    any(current.products for current in one.currents)))
            elif (reason := _reason_of(stage)):
                line = stage.line or loop.body[stage.positions[0]].call.line
                unfused.append(Unfused(line, len(stage.positions), reason))
        others = sum(one.calls for one in fused) + sum(one.calls for one in unfused)
        found.append(LoopReport(loop.iterations, len(loop.body), tuple(fused),
                                len(loop.body) - others, tuple(unfused)))
    found += [LoopReport(loop.iterations, len(loop.body), (), 0, (
        Unfused(refused.line, len(loop.body), refused.reason),)) for loop, refused in plan.refused]
    return tuple(found)


def _reason_of(stage: Stage) -> str:
    """Returns why a stage runs its calls for each iteration; empty: it does not."""
    if stage.kind == "drawn":
        return "random draws keep their order"
    if stage.kind in ("loop", "in order"):
        return stage.reason
    return "" if getattr(stage.run, "has_rule", True) else "no rule of torch.vmap"


def measure_speed(original: Callable[[], Any], converted: Callable[[], Any],
                  wanted: Sequence[Tensor], prepare: Callable[[], None] = lambda: None,
                  seconds: float = SECONDS) -> Speed:
    """Times forward and backward passes in turns, after a first round that does not count.

    Args:
        original, converted: run the model and return its result.
        wanted: parameters and inputs, whose gradients are computed but not kept.
        prepare: restores the state of the model before each pass.
        seconds: no further round starts after so much time. At least one round counts.

    Example:
        >>> measure_speed(lambda: model(x), lambda: fused(x), list(model.parameters()))
    """
    wanted = [one for one in wanted if one.requires_grad]

    def run(call: Callable[[], Any]) -> float:
        prepare()
        _synchronize()
        start = time.perf_counter()
        outputs = [one for one in pytree.tree_leaves(call())
                   if isinstance(one, Tensor) and one.requires_grad]
        if outputs and wanted:
            torch.autograd.grad(outputs, wanted, list(map(torch.ones_like, outputs)),
                                allow_unused=True)
        _synchronize()
        return time.perf_counter() - start

    def measure_bytes(call: Callable[[], Any]) -> int:
        found: dict[int, int] = {}  # bytes of storages by address, parameters excluded

        def pack(tensor: Tensor) -> Tensor:
            if not tensor.is_leaf or not tensor.requires_grad:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        prepare()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = call()
        del result
        return sum(found.values())

    sizes = [measure_bytes(call) for call in (original, converted)]
    run(original), run(converted)
    begin = time.perf_counter()
    times: list[tuple[float, float]] = []
    while not times or (len(times) < ROUNDS and time.perf_counter() - begin < seconds):
        times.append((run(original), run(converted)))
    prepare()
    middle = sorted(times, key=lambda pair: pair[0] / pair[1])[(len(times) - 1) // 2]
    return Speed(*middle, len(times), torch.get_num_threads(), *sizes)


def _synchronize() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
