"""Verification: the model as it was beside what it would become, on copies of both."""
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from . import comparison, copies, linears, tree, trial
from .comparison import Pair
from .known import Known
from .report import Comparison, Difference, Speed
from .trial import Given, Run

BITS = (8, 6, 5)  # below the largest weight: in turn, until no spike hangs on rounding
INPUT_BITS = 7
SEEDS = (1, 2, 3, 4)  # of the changes of the loss in its last place
SECONDS = 20.0  # that timing may take, beyond two rounds


class ConversionError(RuntimeError):
    """The converted model does not compute what the original does; the model is as it was.

    report: what was found.
    """

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


Sides: TypeAlias = tuple[nn.Module, nn.Module, list[Pair]]
# makes both sides anew, in a dtype or as they are
Candidates: TypeAlias = Callable[[torch.dtype | None], Sides]


class Maker(NamedTuple):
    """How a model is converted."""

    table: dict[str, Known]
    steps: bool  # replace modules of which a call is one step
    linears: list[str]  # names of those that are replaced beside the layers


def both(model: nn.Module, how: Maker) -> Candidates:
    """A copy of a model, another one converted, and their modules in pairs."""
    def make(dtype: torch.dtype | None) -> Sides:
        theirs, ours = copies.duplicate(model), copies.duplicate(model)
        if dtype is not None:
            copies.cast(theirs, dtype)
            copies.cast(ours, dtype)
        plan = tree.plan(ours, how.table, how.steps)
        ours = tree.replace(ours, [*plan.replaced, *linears.entries(ours, how.linears)])
        pairs = []
        for entry in plan.replaced:
            assert entry.new is not None
            pairs.append(Pair(entry.name, theirs.get_submodule(entry.name), entry.new, entry.time,
                              entry.keeps, entry.spikes))
        return theirs, ours, pairs

    return make


def verified(model: nn.Module, given: Given, how: Maker) -> Comparison:
    """Both on the same inputs, with weights and inputs of few bits."""
    found: Comparison | None = None
    for bits in BITS:
        few = copies.duplicate(model)
        copies.round_weights(few, bits)
        found = compared(both(few, how), rounded(given), bits)
        if found.verdict != "rounding":
            break
    assert found is not None
    return found


def rounded(given: Given) -> Given:
    """Inputs of few bits; a function of the model keeps its own."""
    if isinstance(given, Tensor):
        return copies.rounded(given.detach(), INPUT_BITS)
    if isinstance(given, tuple):
        return tuple(copies.rounded(value.detach(), INPUT_BITS) if isinstance(value, Tensor)
                     else value for value in given)
    return given


def compared(make: Candidates, given: Given, bits: int) -> Comparison:
    """In float64 where the original computes in it, else in its own dtype."""
    first = next((p.dtype for p in make(None)[0].parameters() if p.is_floating_point()),
                 torch.float32)
    for dtype in dict.fromkeys((torch.float64, first)):
        theirs, ours, pairs = make(dtype)
        # what stays in a layer has to be right too
        times = 1 + any(pair.keeps for pair in pairs)
        modules = {pair.name: (copies.duplicate(pair.theirs), copies.duplicate(pair.ours))
                   for pair in pairs}
        try:
            before = trial.run(theirs, given, {pair.name: pair.theirs for pair in pairs},
                               dtype=dtype, times=times)
            computed = {value.dtype for calls in before.calls.values() for call in calls
                        for value in call.results.values() if value.is_floating_point()}
            if dtype != first and computed != {dtype}:
                continue
        except Exception:
            if dtype == first:
                raise
            continue  # it does not compute in float64
        try:
            after = trial.run(ours, given, {pair.name: pair.ours for pair in pairs}, dtype=dtype,
                              times=times)
        except Exception as error:
            raise ConversionError(
                f"model: the converted one fails where the original runs: "
                f"{type(error).__name__}: {error}; the model is as it was") from error
        pairs = [replace(pair, theirs=modules[pair.name][0], ours=modules[pair.name][1])
                 for pair in pairs]
        return judged(before, after, pairs, dtype, bits, partial(_moved, make, given, dtype, times))
    raise AssertionError("the last dtype is the model's own")


def _moved(make: Candidates, given: Given, dtype: torch.dtype, times: int) -> list[Run]:
    """Runs of the original with the loss changed in its last place."""
    return [trial.run(make(dtype)[0], given, {}, dtype=dtype, times=times, moved=seed)
            for seed in SEEDS]


def judged(before: Run, after: Run, pairs: list[Pair], dtype: torch.dtype, bits: int,
           moved: Callable[[], list[Run]]) -> Comparison:
    """What two runs have in common; pairs: modules as they were before; moved: as of
    comparison.gradients_of."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    first: Difference | None = comparison.first_in(before, after, pairs, exact)
    outputs: dict[str, float] = {}
    gradients: dict[str, float] = {}
    but_rounding: tuple[str, ...] = ()
    states: dict[str, float] = {}
    by_name = {pair.name: pair for pair in pairs}
    if first is None:
        for name, calls in before.calls.items():
            for one, other in zip(calls, after.calls[name], strict=True):
                apart = comparison.distances(other.results | other.state,
                                             one.results | one.state)
                spikes_are = list(one.results)[by_name[name].spikes]
                for key, value in apart.items():
                    if key == spikes_are:
                        continue
                    label = " ".join(part for part in (name, key) if part)
                    states[label] = max(states.get(label, 0.0), value)
        outputs, first = comparison.outputs_of(before, after, exact)
        gradients, but_rounding, wrong = comparison.gradients_of(before, after, exact, moved)
        first = first or wrong
    spikes: dict[str, list[Tensor]] = {
        name: [spike for call in calls
               if (spike := by_name[name].spikes_of(call)) is not None]
        for name, calls in before.calls.items()}
    counts = {name: sum(value.numel() for value in values) for name, values in spikes.items()}
    return Comparison(
        verdict="equal" if first is None else first.kind, dtype=str(exact).removeprefix("torch."),
        bits=bits, spikes=sum(counts.values()),
        rates={name: float(sum(float((value != 0).sum()) for value in values)) / counts[name]
               for name, values in spikes.items() if counts[name]},
        states=states, outputs=outputs, gradients=gradients, but_rounding=but_rounding,
        first=first)


def own_weights(make: Candidates, given: Given) -> float:
    """Share of the spikes that differ with the model's own weights and dtype."""
    theirs, ours, pairs = make(None)
    before = trial.run(theirs, given, {pair.name: pair.theirs for pair in pairs}, backward=False)
    after = trial.run(ours, given, {pair.name: pair.ours for pair in pairs}, backward=False)
    wrong = entries = 0
    for pair in pairs:
        for one, other in zip(before.calls.get(pair.name, []), after.calls.get(pair.name, []),
                              strict=True):
            want, got = pair.spikes_of(one), pair.spikes_of(other)
            if want is not None and got is not None and want.shape == got.shape:
                wrong += int((want != got).sum())
                entries += want.numel()
    return wrong / max(1, entries)


def timed(make: Candidates, given: Given, repeats: int) -> Speed:
    """Forward and backward of both in turns, from the same state each time."""
    theirs, ours, _ = make(None)
    return in_turns([one_pass(theirs, given), one_pass(ours, given)], repeats)


def one_pass(model: nn.Module, given: Given) -> tuple[Callable[[], None], Callable[[], None]]:
    """What makes ready for a pass, and a pass."""
    kept = copies.Kept(model)
    drawn: list[Tensor] = []  # in the round that is not counted: it may take longer than the pass

    def run() -> None:
        result, inputs = trial.call(model, given, leaves=False)
        outputs = [value for _, value in trial.named_tensors(result) if value.requires_grad]
        wanted = list((trial.parameters_of(model) | inputs).values())
        if outputs and wanted:
            drawn[:] = drawn or trial.cotangents(outputs)
            torch.autograd.grad(outputs, wanted, drawn, allow_unused=True)

    return kept.give_back, run


def in_turns(contestants: list[tuple[Callable[[], None], Callable[[], None]]],
             repeats: int) -> Speed:
    """The times of two, one after the other in every round, after a round that is not counted."""
    seconds: list[list[float]] = [[] for _ in contestants]
    start = time.perf_counter()
    for turn in range(repeats + 1):
        if turn > 2 and time.perf_counter() - start > SECONDS:
            break
        for (ready, run), times in zip(contestants, seconds, strict=True):
            ready()
            began = time.perf_counter()
            run()
            if turn:
                times.append(time.perf_counter() - began)
    before, after = seconds
    return Speed(statistics.median(before), statistics.median(after), min(before), min(after),
                 len(before), torch.get_num_threads())
