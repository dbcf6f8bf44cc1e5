"""Recordings that no program made, and loops written out again as calls."""
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from lsnn_ext.loops.ir import (
    Before,
    BodyCall,
    Call,
    Fixed,
    Kind,
    Leaf,
    Loop,
    Mode,
    Now,
    Numbers,
    Part,
    Recording,
    Ref,
    Varying,
    flatten_arguments,
)

GRAD = Mode(True, (None, None))
NO_GRAD = Mode(False, (None, None))
KIND = Kind((2, 3), torch.float32, torch.device("cpu"), True)


def _function(name: str) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a recording is analysed without a call")

    function.__name__ = name
    return function


FUNCTIONS = [_function(f"f{i}") for i in range(6)]


class Recorder:
    """Makes a recording call by call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.leaves: dict[int, Leaf] = {}
        self.count = 0

    def value(self) -> int:
        self.count += 1
        return self.count

    def leaf(self) -> int:
        value = self.value()
        self.leaves[value] = Leaf("input", (len(self.leaves),))
        return value

    def call(self, function: Callable[..., Any], *args: Any, outputs: int = 1,
             writes: Sequence[int] = (), mode: Mode = GRAD, is_random: bool = False,
             line: str = "user.py:1", **kwargs: Any) -> tuple[int, ...]:
        """Notes a call and returns its outputs: results, then what it has written to."""
        leaves, spec = flatten_arguments(args, kwargs)
        made = tuple(self.value() for _ in range(outputs))
        results = Ref(made[0]) if outputs == 1 else tuple(map(Ref, made))
        written = tuple((before, self.value()) for before in writes)
        self.calls.append(Call(function, tuple(leaves), spec, results, written, mode, is_random,
                               line))
        return self.calls[-1].outputs

    def recording(self, *results: int) -> Recording:
        kinds = dict.fromkeys(range(1, self.count + 1), KIND)
        return Recording(self.calls, self.leaves, kinds, tuple(map(Ref, results)), [], {}, {})


# ------------------------------------------------------------------------------- loops as calls
def _read(slot: Any, t: int, loop: Loop) -> Any:
    """The leaf of a call at iteration t."""
    if isinstance(slot, Fixed):
        return Ref(slot.value)
    if isinstance(slot, Now):
        return Ref(loop.made[t][slot.position][slot.output])
    if isinstance(slot, Before):
        assert slot.lag >= 1 and len(slot.initial) == slot.lag
        if t < slot.lag:
            return Ref(slot.initial[t])
        return Ref(loop.made[t - slot.lag][slot.position][slot.output])
    if isinstance(slot, Varying | Numbers):
        assert len(slot.values) == loop.iterations
        return Ref(slot.values[t]) if isinstance(slot, Varying) else slot.values[t]
    assert not isinstance(slot, Ref)
    return slot


def _expand_call(body: BodyCall, t: int, position: int, loop: Loop) -> Call:
    """The call at iteration t: its outputs are those of loop.made, in the order of Call.outputs.
    A tensor that is written to is found by its places among the leaves."""
    call, made = body.call, loop.made[t][position]
    assert len(body.slots) == len(call.leaves)
    assert len(made) == len(call.outputs)
    assert len(set(made)) == len(made)
    renamed = dict(zip(call.outputs, made, strict=True))
    leaves = tuple(_read(slot, t, loop) for slot in body.slots)
    written = []
    for before, after in call.written:
        places = [i for i, leaf in enumerate(call.leaves) if leaf == Ref(before)]
        found = {leaves[i] for i in places}
        assert len(found) == 1, "a tensor that is written to is not known by its places"
        written.append((found.pop().value, renamed[after]))
    results = pytree.tree_map_only(Ref, lambda ref: Ref(renamed[ref.value]), call.results)
    return call.replace(leaves=leaves, results=results, written=tuple(written))


def expand(parts: Sequence[Part], leaves: dict[int, Leaf]) -> list[Call]:
    """The calls of all iterations. Raises AssertionError where a loop is not well formed."""
    calls: list[Call] = []
    known = set(leaves)
    for part in parts:
        if isinstance(part, Call):
            calls.append(part)
            known.update(part.outputs)
            continue
        assert part.iterations >= 2 and len(part.made) == part.iterations
        assert all(len(row) == len(part.body) for row in part.made)
        for position, body in enumerate(part.body):
            for slot in body.slots:
                before = {slot.value} if isinstance(slot, Fixed) else {
                    *(slot.values if isinstance(slot, Varying) else ()),
                    *(slot.initial if isinstance(slot, Before) else ())}
                assert before <= known, "a value from before the loop that the loop makes"
                assert not isinstance(slot, Now) or slot.position < position
        for t in range(part.iterations):
            calls += [_expand_call(body, t, i, part) for i, body in enumerate(part.body)]
        known.update(value for row in part.made for values in row for value in values)
    return calls


# --------------------------------------------------------------------------------- comparing
def difference(a: Call, b: Call) -> str | None:
    """Words for what differs between two calls, apart from their lines. 1, 1.0 and True differ,
    and so do 0.0 and -0.0."""
    for name in ("function", "spec", "results", "written", "mode", "is_random"):
        if getattr(a, name) != getattr(b, name):
            return f"{name}: {getattr(a, name)} and {getattr(b, name)}"
    for x, y in zip(a.leaves, b.leaves, strict=True):
        if type(x) is not type(y) or repr(x) != repr(y):
            return f"leaves: {x!r} and {y!r}"
    return None


def check(parts: Sequence[Part], recording: Recording) -> None:
    """Raises AssertionError unless the parts are the recording, each value made before it is
    read and random calls in their order."""
    found = expand(parts, recording.leaves)
    assert len(found) == len(recording.calls), (len(found), len(recording.calls))
    place = {call.outputs: i for i, call in enumerate(recording.calls) if call.outputs}
    assert len(place) == len(recording.calls), "this check knows calls by their outputs"
    order = [place.get(call.outputs, -1) for call in found]
    assert sorted(order) == list(range(len(found))), "other calls than recorded"
    for i, call in zip(order, found, strict=True):
        words = difference(call, recording.calls[i])
        assert words is None, f"call {i}: {words}"
    known = set(recording.leaves)
    for call in found:
        assert known.issuperset(call.inputs), "a value is read before it is made"
        known.update(call.outputs)
    draws = [i for i in order if recording.calls[i].is_random]
    assert draws == sorted(draws), "random calls in another order"


def covered(parts: Sequence[Part]) -> int:
    """The number of calls in loops."""
    return sum(part.iterations * len(part.body) for part in parts if isinstance(part, Loop))


# ------------------------------------------------------------------------- random recordings
class Argument:
    """An argument of a call in a body: what it is at iteration t."""

    def __init__(self, r: random.Random, recorder: Recorder, made: list[tuple[int, int]],
                 body: list[int], T: int, is_mixed: bool) -> None:
        """made: (position, output) of this iteration; body: outputs of each call in the body;
        is_mixed: constants of several types."""
        self.kind = r.choice(("fixed", "now", "now", "now", "before", "before", "varying", "equal",
                              "number", "number"))
        if self.kind == "now" and not made:
            self.kind = "before"
        self.place = r.choice(made) if self.kind == "now" else (0, 0)
        self.lag = r.choice((1, 1, 1, 2, 3))
        if self.kind == "before":
            position = r.randrange(len(body))
            self.place = position, r.randrange(body[position])
            shared = recorder.leaf()
            self.values = [shared if r.random() < 0.5 else recorder.leaf() for _ in range(self.lag)]
        elif self.kind == "fixed":
            shared = list(recorder.leaves) if is_mixed else []
            self.values = [r.choice([*shared, recorder.leaf()])] * T
        elif self.kind == "varying":
            self.values = [recorder.leaf() for _ in range(T)]
        slope, first = r.choice((1, 2, -1)), r.randrange(5)
        self.numbers: list[Any] = [slope * t + first for t in range(T)]
        if self.kind == "equal":
            self.numbers = [r.choice((3, 0.5, None, "mean", -1, True))] * T
        elif is_mixed and r.random() < 0.3:
            pool = r.choice((
                (0.0, -0.0, 0, False), (1, 1.0, True), (0j, -0j), (slice(0, 1), slice(0, True)),
                ((1,), (1.0,), (True,)), (None, float("nan"), torch.float32, torch.float64)))
            self.numbers = [r.choice(pool) for _ in range(T)]
        elif r.random() < 0.2:
            self.numbers = [slice(t, t + 1) for t in range(T)]

    def at(self, t: int, rows: list[list[tuple[int, ...]]]) -> Any:
        position, output = self.place
        if self.kind == "now":
            return Ref(rows[t][position][output])
        if self.kind == "before":
            if t < self.lag:
                return Ref(self.values[t])
            return Ref(rows[t - self.lag][position][output])
        return Ref(self.values[t]) if self.kind in ("fixed", "varying") else self.numbers[t]


def add_loop(r: random.Random, recorder: Recorder, perturb: float) -> int:
    """Records a loop of random calls, of which some differ from their period. Returns how many."""
    T, P = r.randrange(2, 25), r.randrange(1, 9)
    body = [r.choice((1, 1, 1, 2)) for _ in range(P)]
    functions = [r.choice(FUNCTIONS) for _ in range(P)]
    made: list[tuple[int, int]] = []
    arguments = []
    for position, outputs in enumerate(body):
        arguments.append([Argument(r, recorder, made, body, T, perturb > 0)
                          for _ in range(r.randrange(1, 4))])
        made += [(position, k) for k in range(outputs)]
    writes = [next((i for i, a in enumerate(each) if a.kind in ("now", "before")), None)
              if r.random() < 0.2 else None for each in arguments]
    is_random = [r.random() < 0.1 for _ in range(P)]
    keywords = [{"alpha": 1} if r.random() < 0.2 else {} for _ in range(P)]
    changes = r.sample(range(10), 3)
    is_other = [r.random() < perturb and t not in range(2, 2 + T // 2) for t in range(T)]
    rows: list[list[tuple[int, ...]]] = []
    start = len(recorder.calls)
    for t in range(T):
        rows.append([])
        for p in range(P):
            function, mode, draws = functions[p], GRAD, is_random[p]
            args = [a.at(t, rows) for a in arguments[p]]
            where, outputs, keyword, is_in_place = writes[p], body[p], keywords[p], False
            if is_other[t] and r.random() < 0.5:
                change = r.choice(changes)
                if change == 0:
                    function = r.choice(FUNCTIONS)
                elif change == 1:
                    mode = NO_GRAD
                elif change == 2:
                    args[r.randrange(len(args))] = r.choice((7, 0.25, Ref(recorder.count)))
                elif change == 3:
                    args.append(r.choice((1, Ref(r.choice(list(recorder.leaves))))))
                elif change == 4:
                    where = r.choice((None, *range(len(args))))
                elif change == 5:
                    keyword = {"beta": 1}
                elif change == 6:
                    outputs = 2
                elif change == 7:
                    is_in_place = outputs == 1
                elif change == 8:
                    draws = not draws
                else:
                    recorder.call(r.choice(FUNCTIONS), Ref(recorder.count))
            if not any(isinstance(a, Ref) for a in args):
                where = None
            written = []
            if where is not None and isinstance(args[where], Ref):
                written = [args[where].value]
                if r.random() < 0.2:
                    args.append(args[where])
            is_in_place = is_in_place and bool(written)
            found = recorder.call(function, *args, outputs=0 if is_in_place else outputs,
                                  writes=written, mode=mode, is_random=draws, **keyword)
            if is_in_place:
                recorder.calls[-1] = recorder.calls[-1].replace(results=Ref(found[0]))
            rows[t].append(found)
    return len(recorder.calls) - start


def draw_recording(seed: int, perturb: float) -> Recording:
    """Straight calls and loops in turns."""
    r = random.Random(f"recording {seed} {perturb}")
    recorder = Recorder()
    for _ in range(3):
        recorder.leaf()
    for _ in range(r.choice((1, 1, 2, 3))):
        for _ in range(r.choice((0, 0, 1, 4))):
            recorder.call(r.choice(FUNCTIONS), Ref(r.randrange(1, recorder.count + 1)))
        add_loop(r, recorder, perturb)
    for _ in range(r.choice((0, 2))):
        recorder.call(r.choice(FUNCTIONS), Ref(r.randrange(1, recorder.count + 1)))
    return recorder.recording(recorder.count)


def words(letters: Iterator[int] | Sequence[int], chained: bool = True) -> Recording:
    """A call for each letter: of the call before, or all of one leaf."""
    recorder = Recorder()
    first = last = recorder.leaf()
    for letter in letters:
        last, = recorder.call(FUNCTIONS[letter], Ref(last if chained else first))
    return recorder.recording(last)
