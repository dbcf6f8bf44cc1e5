"""Two runs side by side, before and after: where they differ first, and whether numbers were
rounded otherwise there or are others."""
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from .copies import cast, duplicate
from .report import Difference
from .trial import Call, Named, Run, detached, record

# What rounding may make of a value, as a share of the largest of its kind.
STATES = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENTS = {torch.float64: 1e-9, torch.float32: 1e-4}
# How far an input is moved, in units of the last place, to see whether a spike hangs on rounding.
ULPS = (0, 1, 4, 16, 64)
MOST = 16  # items of a batch whose first difference is looked at
# How much farther apart gradients may be than those of the original alone are from pass to pass,
# where the loss changes in its last place.
BUT_ROUNDING = 64.0


@dataclass
class Pair:
    """A module and what stands for it, both as they were before the runs."""

    name: str
    theirs: nn.Module
    ours: nn.Module
    time: int  # the axis of steps in its results and inputs; -1: a call is a step
    keeps: bool = False  # state from one call to the next
    spikes: int = 0  # which of the results they are

    def spikes_of(self, call: Call) -> Tensor | None:
        """The spikes of a call; None where it returns none."""
        return next(islice(call.results.values(), self.spikes, None), None)


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference, as a share of the largest magnitude of what is wanted."""
    if got.shape != want.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    a, b = got.detach().double(), want.detach().double()
    error = float((a - b).abs().nan_to_num(nan=float("inf")).max())
    largest = float(b.abs().max())
    return error / largest if largest > 0 else error


def distances(got: Named, want: Named) -> dict[str, float]:
    """distance() of all that both have."""
    return {name: distance(got[name], value) for name, value in want.items() if name in got}


def first_in(theirs: Run, ours: Run, pairs: list[Pair], dtype: torch.dtype) -> Difference | None:
    """The first difference of spikes or states in the first module that has one; another mapping
    goes before rounding, which hides nothing but what follows from it in the same item."""
    by_name = {pair.name: pair for pair in pairs}
    rounded: Difference | None = None
    items: dict[int, set[int]] = {}  # by the size of the batch: those that rounding has parted
    for name in theirs.calls:
        pair, before, after = by_name[name], theirs.calls[name], ours.calls.get(name, [])
        found = _form(pair, before, after) or _spikes(pair, before, after, dtype, items)
        if found is None and not items:
            found = _states(pair, before, after, dtype)
        if found is not None and found.kind == "mapping":
            return found
        rounded = rounded or found
    return rounded


def _form(pair: Pair, before: list[Call], after: list[Call]) -> Difference | None:
    if len(before) != len(after):
        return Difference(pair.name, "calls", "mapping", largest=float(abs(len(before) -
                                                                           len(after))),
                          detail=f"called {len(before)} times before, {len(after)} times after")
    for k, (one, other) in enumerate(zip(before, after, strict=True)):
        forms = [{name: (tuple(value.shape), value.dtype) for name, value in call.results.items()}
                 for call in (one, other)]
        if forms[0] != forms[1]:
            return Difference(pair.name, "results", "mapping", call=k,
                              detail=f"returned {_text(forms[0])} before, {_text(forms[1])} after")
    return None


def _text(form: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> str:
    parts = [f"{name or 'a tensor'} {shape} {str(dtype).removeprefix('torch.')}"
             for name, (shape, dtype) in form.items()]
    return ", ".join(parts) or "nothing"


def _spikes(pair: Pair, before: list[Call], after: list[Call], dtype: torch.dtype,
            items: dict[int, set[int]]) -> Difference | None:
    """The first step with another spike that is no rounding, or else the first with one. Each item
    is looked at once, MOST at most."""
    first: Difference | None = None
    for k, (one, other) in enumerate(zip(before, after, strict=True)):
        want, got = pair.spikes_of(one), pair.spikes_of(other)
        if want is None or got is None or torch.equal(want, got):
            continue
        differs = want != got
        if pair.time > 0:
            differs = differs.movedim(pair.time, 0)
        elif pair.time < 0:
            differs = differs[None]
        if differs.dim() < 3:  # a single sequence
            differs = differs[:, None]
        parted = items.setdefault(differs.shape[1], set())
        for step, item in differs.flatten(2).any(2).nonzero().tolist():
            if item in parted or len(parted) >= MOST:
                continue
            found = _judged(pair, before, after, (k, step, item), differs, dtype, bool(parted))
            parted.add(item)
            if found.kind == "mapping":
                return found
            first = first or found
    return first


def _judged(pair: Pair, before: list[Call], after: list[Call], place: tuple[int, int, int],
            differs: Tensor, dtype: torch.dtype, alone: bool) -> Difference:
    """The first difference of an item, in a call and step; alone: others may have parted before."""
    k, step, item = place
    neuron = tuple(int(index) for index in differs[step, item].nonzero()[0])
    where = (item, *neuron)
    theirs, ours = _history(pair, before, after, k, step)
    if alone:
        size = differs.shape[1]
        theirs, ours = ({name: _of_item(value, item, size, pair.time)
                         for name, value in side.items()} for side in (theirs, ours))
    apart = max(distances(ours, theirs).values(), default=0.0)
    kind, ulps, changed = "mapping", None, False
    if apart <= STATES[dtype]:
        spikes = pair.spikes_of(before[k])
        assert spikes is not None
        single = spikes.dim() - (pair.time >= 0) < 2  # without an axis of items
        ulps, changed = _ulps(pair, before, after, (k, step, neuron if single else where), dtype)
        kind = "mapping" if ulps is None or changed else "rounding"
    wrong = int(differs.sum())
    also = ("; the model changes the state between the calls, as a reset does, and what it does "
            "acts otherwise on the layer that stands for it" if changed else "")
    return Difference(
        pair.name, "spikes", kind, call=k, step=step if pair.time >= 0 else k, where=where,
        largest=wrong / differs.numel(), ulps=ulps,
        detail=f"{wrong} of {differs.numel()} entries of this call differ; before this step states "
               f"differ by {apart:.1e} of the largest{also}")


def _of_item(value: Tensor, item: int, items: int, time: int) -> Tensor:
    """The part of an item, of a value whose axis of items is known by its size."""
    for axis in (1, 0) if time == 0 and value.dim() > 2 else (0, 1):
        if value.dim() > axis and value.shape[axis] == items:
            return value.select(axis, item)
    return value


def _states(pair: Pair, before: list[Call], after: list[Call],
            dtype: torch.dtype) -> Difference | None:
    """A state that is another although all spikes are equal, and the first step after which."""
    for k, (one, other) in enumerate(zip(before, after, strict=True)):
        found = distances(other.results | other.state, one.results | one.state)
        name = max(found, key=found.__getitem__, default="")
        if not found or found[name] <= STATES[dtype]:
            continue
        step = k if pair.time < 0 else _first_step(pair, before, after, k, dtype)
        return Difference(pair.name, f"state {name}", "mapping", call=k, step=step,
                          largest=found[name],
                          detail=f"{name} differs by {found[name]:.1e} of the largest, although "
                                 f"all spikes are equal")
    return None


def _first_step(pair: Pair, before: list[Call], after: list[Call], k: int,
                dtype: torch.dtype) -> int | None:
    """The step after which states differ first, by halves; None where no part of it shows one."""
    low, high = 0, _steps(pair, before[k])  # equal after low steps, another after high
    while high - low > 1:
        middle = (low + high) // 2
        past = _history(pair, before, after, k, middle)
        if max(distances(past[1], past[0]).values(), default=0.0) > STATES[dtype]:
            high = middle
        else:
            low = middle
    return high - 1


def _steps(pair: Pair, call: Call) -> int:
    spikes = pair.spikes_of(call)
    return 1 if spikes is None or pair.time < 0 else spikes.shape[pair.time]


def _history(pair: Pair, before: list[Call], after: list[Call], k: int,
             step: int) -> tuple[Named, Named]:
    """Results and states of both after all steps before this one."""
    if not k and not step:
        return {}, {}
    sides = ((pair.theirs, before), (pair.ours, after))
    theirs, ours = (_replayed(module, calls, k, step, pair.time) for module, calls in sides)
    return theirs.results | theirs.state, ours.results | ours.state


def _replayed(module: nn.Module, calls: list[Call], k: int, step: int, time: int,
              scale: float = 1.0, dtype: torch.dtype | None = None) -> Call:
    """The last of the calls up to call k, of which only the steps before this one."""
    module = duplicate(module)
    if dtype is not None:
        cast(module, dtype)
    made = None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for index, call in enumerate(calls[: k + 1]):
            if index == k and not step:
                break
            args, kwargs = detached(call.args, dtype), detached(call.kwargs, dtype)
            args, kwargs = _changed(args, kwargs, scale, step if index == k else None, time)
            torch.set_rng_state(call.random)
            made = record(args, kwargs, module(*args, **kwargs), module, call.random)
    assert made is not None
    return made


def _changed(args: tuple[Any, ...], kwargs: dict[str, Any], scale: float, steps: int | None,
             time: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the first tensor, which is the input, scaled and cut to so many steps."""
    def change(x: Tensor) -> Tensor:
        if steps is not None and time >= 0:
            x = x.narrow(time, 0, steps)
        return x * scale if x.is_floating_point() and scale != 1 else x

    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:index], change(value), *args[index + 1:]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, kwargs | {name: change(value)}
    return args, kwargs


def _ulps(pair: Pair, before: list[Call], after: list[Call],
          place: tuple[int, int, tuple[int, ...]], dtype: torch.dtype) -> tuple[int | None, bool]:
    """By how many units in the last place the inputs must move for our spike to become theirs, in
    float64; None: by more than rounding may. And whether our own spike never comes of the calls
    alone, so that something else has acted on the layer between them."""
    k, step, where = place

    def of(call: Call) -> float:
        spikes = pair.spikes_of(call)
        assert spikes is not None
        return float(spikes.movedim(pair.time, 0)[(step, *where)] if pair.time >= 0
                     else spikes[where])

    want, own, found = of(before[k]), of(after[k]), None
    repeated = not k or of(_replayed(pair.ours, after, k, step + 1, pair.time)) == own
    for ulps in ULPS:
        for sign in (1, -1):
            scale = 1 + sign * ulps * torch.finfo(dtype).eps
            got = of(_replayed(pair.ours, after, k, step + 1, pair.time, scale, torch.float64))
            found = ulps if found is None and got == want else found
            repeated = repeated or got == own
            if found is not None and repeated:
                return found, False
    return found, not repeated


def gradients_of(theirs: Run, ours: Run, dtype: torch.dtype,
                 moved: Callable[[], list[Run]]) -> tuple[dict[str, float], tuple[str, ...],
                                                          Difference | None]:
    """How far the gradients are apart, by name; the names of those that are but rounding, as of a
    bias in front of a normalization, which takes it away; and the one that is not that of before.

    moved: makes the original's own with the loss changed in its last place.
    """
    apart: dict[str, float] = {}
    for name in theirs.gradients.keys() | ours.gradients.keys():
        want, got = theirs.gradients.get(name), ours.gradients.get(name)
        some = want if want is not None else got
        if some is None:
            continue
        zero = torch.zeros_like(some)
        apart[name] = distance(zero if got is None else got, zero if want is None else want)
    doubtful = [name for name, value in apart.items() if value > GRADIENTS[dtype]]
    rounded = _but_rounding(theirs, ours, moved(), doubtful) if doubtful else ()
    apart = {name: value for name, value in apart.items() if name not in rounded}
    worst = max(apart, key=apart.__getitem__, default="")
    if not apart or apart[worst] <= GRADIENTS[dtype]:
        return apart, rounded, None
    missing = " here" if worst not in ours.gradients else (
        " there" if worst not in theirs.gradients else "")
    detail = f"it does not learn{missing}" if missing else (
        f"it differs by {apart[worst]:.1e} of the largest, although all spikes are equal")
    return apart, rounded, Difference("", f"gradient of {worst}", "mapping",
                                      largest=apart[worst], detail=detail)


def _but_rounding(theirs: Run, ours: Run, moved: list[Run],
                  names: list[str]) -> tuple[str, ...]:
    """Those of the gradients that are no farther apart than rounding puts the original's own."""
    def largest(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other.double()).abs().max())

    found = []
    for name in names:
        want, got = theirs.gradients.get(name), ours.gradients.get(name)
        again = [run.gradients.get(name) for run in moved]
        if want is None or got is None or want.shape != got.shape:
            continue
        own = max((largest(value, want) for value in again if value is not None), default=0.0)
        if largest(got, want) <= BUT_ROUNDING * own:
            found.append(name)
    return tuple(found)


def outputs_of(theirs: Run, ours: Run, dtype: torch.dtype) -> tuple[dict[str, float],
                                                                    Difference | None]:
    """How far the model's own results are apart, by name, and the one that is another."""
    if theirs.outputs.keys() != ours.outputs.keys():
        return {}, Difference("", "results of the model", "mapping",
                              detail=f"{', '.join(theirs.outputs)} before, "
                                     f"{', '.join(ours.outputs)} after")
    apart = distances(ours.outputs, theirs.outputs)
    worst = max(apart, key=apart.__getitem__, default="")
    if not apart or apart[worst] <= GRADIENTS[dtype]:
        return apart, None
    return apart, Difference("", f"result {worst} of the model", "mapping", largest=apart[worst],
                             detail=f"it differs by {apart[worst]:.1e} of the largest, although "
                                    f"all spikes are equal")
