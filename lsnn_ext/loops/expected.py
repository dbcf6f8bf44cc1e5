"""Expected: the numbers of a recording, and whether others are those but for rounding."""
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import rounding
from .ir import Call, Loop, Recording
from .plan import Plan
from .rounding import STEP, Tolerance, VerificationError
from .stages import Stage
from .values import Frame, Layout, Place, Values, run_call


class Expected:
    """The numbers of a recording, and what was compared with them."""

    def __init__(self, plan: Plan) -> None:
        """Runs each recorded call again from recorded numbers. Raises VerificationError."""
        self.recording = recording = plan.recording
        self.loops = plan.loops
        self.inside = {value for loop, _ in plan.loops for value in loop.places()}
        self.makers = {value: call for call in recording.calls for value in call.outputs}
        self.run = rounding.tolerance_of(kind.dtype for kind in recording.kinds.values())
        self.ulps, self.values, self.flips = 0.0, 0, 0
        outdated = _find_outdated(recording)
        self.uninitialized = _find_uninitialized(recording)
        self.numbers = {value: recording.numbers[value] for value in recording.leaves}
        for call in recording.calls:
            for value, new in run_call(call, self.numbers):
                old = recording.numbers.get(value)
                if old is None or value in outdated:
                    old = new.detach()
                elif not self.is_uninitialized(call) and not rounding.is_close(new, old):
                    raise VerificationError("the recorded call gives another result", call.line)
                self.numbers[value] = old

    def is_uninitialized(self, call: Call) -> bool:
        """Whether a call returns uninitialized memory, or writes to a part of such."""
        return not self.uninitialized.isdisjoint(call.outputs)

    def frame(self, loop: Loop, without: Collection[int]) -> Frame:
        """Returns a frame with the recorded numbers of all calls but some."""
        frame = Frame(loop.iterations, Values(self.numbers, Layout({}, {}, True)))
        frame.sequences = _Sequences(self.numbers, loop)
        for stage in next(stages for one, stages in self.loops if one is loop):
            for q in stage.positions:
                if stage.kind == "invariant" and q not in without:
                    frame.invariant |= {(q, k): self.numbers[value]
                                        for k, value in enumerate(loop.made[0][q])}
        return frame

    def compare(self, loop: Loop, place: Place, got: Tensor, start: int,
                calls: Callable[[int], Sequence[Call]]) -> None:
        """Counts flips of a value in iterations start, ... Raises VerificationError for other
        differences. got: (iterations, ...); calls: the recorded ones that make the value, by
        iteration."""
        q, k = place
        if self.is_uninitialized(loop.body[q].call):
            return
        values = [made[q][k] for made in loop.made[start : start + len(got)]]
        want, line = torch.stack([self.numbers[value] for value in values]), loop.body[q].call.line
        rounding.check_kind(got, want, line, start)
        self.values += want.numel()
        if torch.equal(got, want):
            return
        limit = STEP.of(want)
        distance = rounding.find_distance(got, want)
        wrong = ~(distance <= limit)
        self.flips += int(wrong.sum())
        if limit:
            apart = float(distance.masked_fill_(wrong, 0).max())
            ulps = STEP.share(want.dtype) / torch.finfo(want.dtype).eps
            self.ulps = max(self.ulps, apart / limit * ulps)
        for i in wrong.reshape(len(wrong), -1).any(1).nonzero().flatten().tolist():
            self.check_flips(values[i], got[i], calls(start + i), limit, STEP, start + i)

    def check_flips(self, value: int, got: Tensor, calls: Sequence[Call], limit: float,
                    tolerance: Tolerance, step: int | None) -> None:
        """Raises VerificationError unless numbers of a value that differ by more than the limit are
        flips."""
        want = self.numbers[value]
        left = rounding.find_differences(got, want, limit)
        for made in self._perturbed_runs(calls, tolerance):
            left = left & rounding.find_differences(got, made[value], limit)
            if not bool(left.any()):
                return
        at = tuple(left.nonzero()[0].tolist())
        raise VerificationError(f"expected {want[at].item()!r}, got {got[at].item()!r}",
                                self.makers[value].line, step, at)

    def _perturbed_runs(self, calls: Sequence[Call],
                        tolerance: Tolerance) -> Iterator[Mapping[int, Tensor]]:
        """Yields the values of recorded calls, with their inputs perturbed by rounding."""
        random = torch.Generator().manual_seed(0)
        given = {one: self.numbers[one] for call in calls for one in call.inputs}
        # by a share of each number where it is small beside the others of its tensor, as well
        for share, is_own in itertools.product(rounding.PERTURBATIONS, (False, True)):
            for sign in (1, -1, *(0,) * rounding.DRAWS):
                made: dict[int, Tensor] = {}
                for one, tensor in given.items():
                    size: Any = tolerance.of(tensor)
                    if size and (is_own or one not in self.inside):  # such as weights
                        size = tolerance.share(tensor.dtype) * tensor.abs()
                    made[one] = rounding.perturb(tensor, share * size, sign, random)
                for call in calls:
                    made.update((value, one.detach()) for value, one in run_call(call, made))
                yield made


class _Sequences(dict[Place, Tensor]):
    """Recorded numbers by place, (n, ...)."""

    def __init__(self, numbers: Mapping[int, Tensor], loop: Loop) -> None:
        super().__init__()
        self.numbers, self.loop = numbers, loop

    def __missing__(self, place: Place) -> Tensor:
        return torch.stack([self.numbers[made[place[0]][place[1]]] for made in self.loop.made])


def list_results(loop: Loop, frame: Frame, stage: Stage) -> Iterator[tuple[Place, int, Tensor]]:
    """Yields the results of a stage: place, first iteration, (iterations, ...)."""
    n = loop.iterations
    for place in loop.list_places(stage.positions):
        start = n - 1 if place in frame.last else 0
        if any(place in made for made in (frame.invariant, frame.products, frame.sequences,
                                          frame.last)):
            yield place, start, frame.range(place, start, n - start, 1)


def _find_uninitialized(recording: Recording) -> set[int]:
    found: set[int] = set()
    for call in recording.calls:
        if "empty" in call.name:
            found.update(call.outputs)
        elif call.name in ("__setitem__", "index_put_", "index_copy_", "scatter_", "masked_fill_"):
            found.update(after for before, after in call.written if before in found)
    return found


def _find_outdated(recording: Recording) -> set[int]:
    """Returns the values whose numbers a later write has changed."""
    sharing: dict[int, list[int]] = {}
    for value, tensor in recording.numbers.items():
        sharing.setdefault(tensor.untyped_storage().data_ptr(), []).append(value)
    found: set[int] = set()
    for call in recording.calls:
        for _, after in call.written:
            storage = recording.numbers[after].untyped_storage().data_ptr()
            found.update(value for value in sharing[storage] if value < after)
    return found
