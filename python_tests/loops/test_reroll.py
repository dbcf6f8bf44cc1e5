"""find_loops: the loops that it finds are the recording, call by call; it finds the loops that are
there; its time is linear in the number of calls.

LSNN_RECORDINGS sets the number of random recordings (120).
"""
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, islice
from typing import Any

import pytest
import torch

from lsnn_ext.loops.ir import Before, Call, Fixed, Loop, Now, Numbers, Part, Recording, Ref, Varying
from lsnn_ext.loops.modes import prepare_recording
from lsnn_ext.loops.reroll import find_loops
from recordings import FUNCTIONS, NO_GRAD, Recorder, add_loop, check, covered, draw_recording, words

RECORDINGS = int(os.environ.get("LSNN_RECORDINGS", "120"))
F, G, H = FUNCTIONS[:3]
LEAST = 6  # calls of a loop that must be found
MANY = 20_000
SECONDS = 20.0  # for so many calls; the slowest take 2 s on a shared processor


# -------------------------------------------------------------------------------------- random
@pytest.mark.parametrize("perturb", [0.0, 0.1, 0.5])
def test_random_recordings_expand_to_themselves(perturb: float) -> None:
    for seed in range(RECORDINGS):
        recording = draw_recording(seed, perturb)
        before = replace(recording, calls=list(recording.calls))  # calls of first iterations move
        parts = find_loops(recording)
        try:
            check(parts, recording)
            check(parts, before)
        except AssertionError as error:
            raise AssertionError(f"recording {seed}, {perturb}: {error}") from error


def test_random_loops_are_found() -> None:
    """Without perturbations all but a few iterations of each loop are in loops."""
    for seed in range(RECORDINGS):
        r, recorder = random.Random(f"loop {seed}"), Recorder()
        recorder.leaf()
        calls = add_loop(r, recorder, 0.0)
        recording = recorder.recording(recorder.count)
        parts = find_loops(recording)
        check(parts, recording)
        body = _period(recording)
        if calls - 5 * body >= max(LEAST, 3 * body):
            assert covered(parts) >= calls - 5 * body, (seed, calls, body, parts)


def _period(recording: Recording) -> int:
    """An upper bound of the calls of one iteration: those up to the second call of the function
    and the arguments' number of the first."""
    names = [(call.function, len(call.leaves)) for call in recording.calls]
    total = len(names)
    return next(p for p in range(1, total + 1)
                if total % p == 0 and names == names[:p] * (total // p))


# -------------------------------------------------------------------------------------- written
def _simple(T: int, change: Callable[[int, Recorder, list[int]], None] = lambda *_: None
            ) -> Recording:
    """v = f(v, x, w); v = v - z; z = g(v): change may record more, or change the states."""
    recorder = Recorder()
    x, w, v, z = (recorder.leaf() for _ in range(4))
    state = [v, z]
    for t in range(T):
        now, = recorder.call(H, Ref(x), t)
        a, = recorder.call(F, Ref(state[0]), Ref(now), Ref(w), 0.9)
        b, = recorder.call(F, Ref(a), Ref(state[1]))
        z, = recorder.call(G, Ref(b))
        state[:] = [b, z]
        change(t, recorder, state)
    return recorder.recording(*state)


def _loops(recording: Recording) -> list[Loop]:
    parts = find_loops(recording)
    check(parts, recording)
    return [part for part in parts if isinstance(part, Loop)]


def test_a_loop_has_the_slots_of_its_program() -> None:
    loop, = _loops(_simple(10))
    assert loop.iterations == 10
    read, membrane, reset, spike = (body.slots for body in loop.body)
    assert read == (Fixed(1), Numbers(tuple(range(10))))
    assert membrane == (Before(2, 0, 1, (3,)), Now(0, 0), Fixed(2), 0.9)
    assert reset == (Now(1, 0), Before(3, 0, 1, (4,)))
    assert spike == (Now(2, 0),)


@pytest.mark.parametrize("T", [0, 1, 2, 3])
def test_short_loops(T: int) -> None:
    check(find_loops(_simple(T)), _simple(T))


def test_values_of_their_own_in_each_iteration() -> None:
    recorder = Recorder()
    rows = [recorder.leaf() for _ in range(7)]
    v = recorder.leaf()
    for x in rows:
        v, = recorder.call(F, Ref(v), Ref(x))
    loop, = _loops(recorder.recording(v))
    assert loop.body[0].slots == (Before(0, 0, 1, (8,)), Varying(tuple(rows)))


@pytest.mark.parametrize(("lag", "T", "least"), [(2, 30, 28), (3, 30, 27), (5, 30, 25),
                                                 (40, 50, 8)])
def test_values_of_several_iterations_before(lag: int, T: int, least: int) -> None:
    """x[t - 40] of a loop of 50 steps, as long delays have it, too."""
    recorder = Recorder()
    past = [recorder.leaf() for _ in range(lag)]
    for _ in range(T):
        past += recorder.call(F, Ref(past[-lag]), Ref(past[-1]))
    loops = _loops(recorder.recording(past[-1]))
    assert covered(loops) >= least
    slots = [slot for loop in loops for slot in loop.body[0].slots]
    assert lag == 40 or {one.lag for one in slots if isinstance(one, Before)} == {1, lag}


def _more(recorder: Recorder, state: list[int], **options: Any) -> None:
    state[0], = recorder.call(F, Ref(state[0]), *options.pop("args", ()), **options)


CHANGES: dict[str, Callable[[Recorder, list[int]], None]] = {
    "swap": lambda _, state: state.reverse(),
    "old": lambda _, state: state.__setitem__(0, state[0] - 4),  # of an iteration before
    "reset": lambda _, state: state.__setitem__(0, 3),
    "more": lambda recorder, state: _more(recorder, state, args=(0.5,)),
    "without a gradient": lambda recorder, state: _more(recorder, state, mode=NO_GRAD)}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("step", [0, 1, 7, 15, 18, 19])
def test_one_step_that_differs(name: str, step: int) -> None:
    recording = _simple(20, lambda t, *args: CHANGES[name](*args) if t == step else None)
    longest = max(step, 19 - step) - 3
    assert max((covered([loop]) for loop in _loops(recording)), default=0) >= 4 * longest


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1), (0, 1, 0), (1, 0, 0)])
def test_the_written_argument_is_known_by_its_place(places: tuple[int, ...]) -> None:
    """f(a, b) writes to a or to b; in the first iteration a is b, in others not."""
    recorder = Recorder()
    v = recorder.leaf()
    others = [v, *(recorder.leaf() for _ in range(11))]
    for t, other in enumerate(others):
        place = places[t % len(places)]
        made = recorder.call(F, Ref(v), Ref(other), outputs=0, writes=[(v, other)[place]])
        v, = recorder.call(G, Ref(made[0]))
    recording = recorder.recording(v)
    for call in recording.calls[::2]:
        assert len(call.outputs) == 1
    check(find_loops(recording), recording)


def test_values_read_after_the_loop_stay() -> None:
    """Values of single iterations: an expansion that renames them is found."""
    recording = _simple(9)
    recorder = Recorder()
    recorder.calls, recorder.count, recorder.leaves = recording.calls, 40, recording.leaves
    made = [call.outputs[0] for call in recording.calls]
    recorder.call(F, *map(Ref, made[3::8]))
    recording = recorder.recording(recorder.count, *made[::5])
    loop, = _loops(recording)
    assert set(made) == set(loop.places())


def test_nested_loops_and_two_loops_in_turn() -> None:
    recorder = Recorder()
    x, v = recorder.leaf(), recorder.leaf()
    for inner in (3, 3, 3, 5, 5, 0, 3):
        for t in range(6):
            now, = recorder.call(H, Ref(x), t)
            for _ in range(inner):
                v, = recorder.call(F, Ref(v), Ref(now))
            v, = recorder.call(G, Ref(v))
        v, = recorder.call(G, Ref(v), 0.5)
    recording = recorder.recording(v)
    parts = find_loops(recording)
    check(parts, recording)
    assert covered(parts) >= len(recording.calls) // 2


@pytest.mark.parametrize("uses", [2, 3, 4])
def test_layers_that_run_several_times_in_an_iteration(uses: int) -> None:
    """As for two directions, so that all equal calls have several distances."""
    recorder = Recorder()
    leaves = [recorder.leaf() for _ in range(2 * uses)]
    weights = [recorder.leaf() for _ in range(2)]
    for _ in range(9):
        for k in range(uses):
            for layer in range(2):
                one = leaves[2 * k + layer], = recorder.call(
                    F, Ref(leaves[2 * k + layer]), Ref(weights[layer]))
                for _ in range(k):  # of its own length
                    one = recorder.call(H, Ref(one[0]))
    recording = recorder.recording(*leaves)
    parts = find_loops(recording)
    check(parts, recording)
    loop, = _loops(recording)
    assert loop.iterations >= 8


# ---------------------------------------------------------------------------------------- time
def _find_in_time(recording: Recording, limit: float = SECONDS) -> Sequence[Part]:
    start = time.process_time()
    with prepare_recording():  # as in replay.py: they search the objects of other tests
        parts = find_loops(recording)
    seconds = time.process_time() - start
    check(parts, recording)
    assert seconds < limit
    return parts


def _fibonacci() -> Iterator[int]:
    a, b = [0], [0, 1]
    while len(b) < MANY:
        a, b = b, b + a
    return iter(b)


def _random() -> Iterator[int]:
    r = random.Random(1)
    return (r.randrange(2) for _ in count())


WORDS: dict[str, Callable[[], Iterator[int]]] = {
    "fibonacci": _fibonacci,
    "random": _random,
    "ruler": lambda: (((t + 1) & -(t + 1)).bit_length() % 6 for t in count()),
    "growing": lambda: (int(t == 0) for n in count(1) for t in range(n)),
    "late": lambda: iter(([0] * 99 + [1]) * 100 + [2] + ([0] * 99 + [1]) * 100),
    "long body": lambda: iter(2 * [random.Random(t).randrange(6) for t in range(MANY // 2)]),
}


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("name", WORDS)
def test_time_is_linear(name: str, chained: bool) -> None:
    recording = words(islice(WORDS[name](), MANY), chained)
    _find_in_time(recording, SECONDS * max(1.0, len(recording.calls) / MANY))


def _body(calls: int, T: int, wide: bool) -> Recording:
    """A loop whose body has so many calls, each of which reads the ones before and an index."""
    recorder = Recorder()
    x, w = recorder.leaf(), recorder.leaf()
    state = [recorder.leaf() for _ in range(calls)]
    for t in range(T):
        now, = recorder.call(torch.Tensor.__getitem__, Ref(x), (slice(None), t) if wide else t)
        for i in range(calls):
            state[i], = recorder.call(FUNCTIONS[i % 3], Ref(state[i]), Ref(now), Ref(w), 0.5)
            now = state[i]
    return recorder.recording(*state)


@pytest.mark.parametrize("calls, T", [(3, 5000), (19, 1000), (199, 100), (999, 20)])
@pytest.mark.parametrize("wide", [False, True])
def test_time_of_real_loops(calls: int, T: int, wide: bool) -> None:
    assert covered(_find_in_time(_body(calls, T, wide))) >= (calls + 1) * (T - 1)


def test_time_with_lists_that_grow() -> None:
    """The result of all steps stacked, and a lag of a thousand steps."""
    recorder = Recorder()
    past = [recorder.leaf() for _ in range(1000)]
    for _ in range(MANY // 2):
        past += recorder.call(F, Ref(past[-1000]), Ref(past[-1]))
        past += recorder.call(G, Ref(past[-1]))
    recorder.call(H, *map(Ref, past[1000:]))
    _find_in_time(recorder.recording(recorder.count))


# -------------------------------------------------------------------- the check can find faults
@pytest.mark.parametrize("position, place, slot", [
    (0, 1, Numbers((0, 1, 2, 3, 4, 4))), (0, 1, Numbers((0, 1, 2, 3, 4, 5.0))), (0, 0, Fixed(2)),
    (1, 0, Before(2, 0, 1, (4,))), (1, 0, Before(2, 0, 2, (3, 3))), (1, 0, Before(1, 0, 1, (3,))),
    (1, 3, 0.8), (2, 0, Before(1, 0, 1, (3,))), (2, 0, Now(0, 0)),
])
def test_a_wrong_slot_is_found(position: int, place: int, slot: object) -> None:
    recording = _simple(6)
    loop, = _loops(recording)
    body = list(loop.body)
    slots = list(body[position].slots)
    slots[place] = slot
    body[position] = body[position]._replace(slots=tuple(slots))
    with pytest.raises(AssertionError):
        check([loop._replace(body=tuple(body))], recording)


def test_lost_and_moved_calls_are_found() -> None:
    recording = _simple(6)
    loop, = _loops(recording)
    calls: list[Call] = recording.calls
    check(list(calls), recording)
    for wrong in (calls[:-1], [calls[1], calls[0], *calls[2:]], [loop, calls[0]]):
        with pytest.raises(AssertionError):
            check(wrong, recording)
