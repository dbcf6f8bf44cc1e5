"""find_loops: finds repeated calls of a recording and describes them as loops, exactly.

Calls become tokens, equal where two calls may be the same call of two iterations. Gaps between
equal tokens give candidates for the number of calls of an iteration. A candidate becomes a loop
only over iterations in which a Slot describes each argument of each call. The rest stays a call.
Calls that make the first states may stand within the first iteration: they move before it.
"""
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import sub
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from ..codegen.plain import make_key
from . import ir
from .functions import is_pointwise
from .ir import Call, Loop, Part, Recording, Ref
from .rewrite import make_call

LEAST_ITERATIONS = 3
LEAST_CALLS = 6  # of all iterations: fewer gain nothing
MOST_CANDIDATES = 5
MOST_USES = 4  # of equal calls in an iteration, such as a layer that runs for two directions
MOST_MOVED = 64  # calls within the first iteration
MOST_SEARCHES = 70  # for each call: many short loops in turn would take quadratic time
# Functions whose integers may be the index of time.
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)

# (position, output, lag) of a value that the loop makes, or None of one from before
Wire = tuple[int, int, int] | None


class _Found(NamedTuple):
    """A loop at calls first ... first + period * iterations."""

    first: int
    period: int
    iterations: int

    @property
    def end(self) -> int:
        return self.first + self.period * self.iterations


def find_loops(recording: Recording, prefers_inner: bool = False) -> list[Part]:
    """Returns the calls of a recording in order, with loops in place of repeated ones. Calls that
    make first states move before their loop, in recording.calls too.

    prefers_inner: where an iteration is mostly a loop, take that one, such as the loop over time
    of one of several equal layers.
    """
    return list(_Search(recording, prefers_inner).parts())


class _Search:
    """The calls, their tokens, and the call that makes each value."""

    def __init__(self, recording: Recording, prefers_inner: bool) -> None:
        self.recording, self.prefers_inner = recording, prefers_inner
        self.calls = recording.calls
        self.made = {value: (i, k) for i, call in enumerate(self.calls)
                     for k, value in enumerate(call.outputs)}
        self.inputs = [call.inputs for call in self.calls]
        self.uses = Counter(value for inputs in self.inputs for value in inputs)
        self.uses.update(recording.find_results())
        # such as weights; a state from before the call is used by the first iteration only
        self.invariant = {value for value in recording.leaves
                          if self.uses[value] >= LEAST_ITERATIONS}
        self.strict, self.loose = self._tokens()

    def parts(self) -> Iterator[Part]:
        left: list[_Found | tuple[int, int]] = [(0, len(self.calls))]
        work = MOST_SEARCHES * len(self.calls)
        while left:
            region = left.pop()
            if isinstance(region, _Found):
                yield self._describe(region)
                continue
            work -= region[1] - region[0]
            found = self._find(*region) if work >= 0 else None
            while self.prefers_inner and found is not None:
                inner = self._find(found.first, found.first + found.period)
                if inner is None or 2 * _size(inner) < found.period:
                    break
                found = inner
            if found is None:
                yield from self.calls[slice(*region)]
                continue
            length = len(self.calls)
            found = self._extend(found, region[0])
            if added := len(self.calls) - length:
                region = region[0], region[1] + added
                left = [one._replace(first=one.first + added) if isinstance(one, _Found) else
                        (one[0] + added, one[1] + added) for one in left]
            left += [(found.end, region[1]), found, (region[0], found.first)]

    # ---------------------------------------------------------------------------- search
    def _tokens(self) -> tuple[list[int], list[int]]:
        """Returns two tokens for each call. Strict: numbers are equal, except indices."""
        strict: dict[Any, int] = {}
        loose: dict[Any, int] = {}
        kinds = self.recording.kinds

        def key_of(leaf: Any) -> Any:
            if isinstance(leaf, Ref):
                same = leaf.value if leaf.value in self.invariant else None
                return (same, *kinds[leaf.value][:3])
            return make_constant_key(leaf)

        found: tuple[list[int], list[int]] = [], []
        for call in self.calls:
            rest = (call.function, id(call.spec), _form(call), call.mode, call.is_random,
                    tuple(kinds[value][:3] for value in call.outputs))
            types = tuple(type(leaf) if isinstance(leaf, int | float | slice | range)
                          and not isinstance(leaf, bool) else key_of(leaf) for leaf in call.leaves)
            keys = types if call.function in INDEXING else tuple(map(key_of, call.leaves))
            for key, numbers, tokens in ((keys, strict, found[0]), (types, loose, found[1])):
                tokens.append(numbers.setdefault((key, rest), len(numbers)))
        return found

    def _find(self, first: int, end: int) -> _Found | None:
        """Returns the loop that covers the most calls of a region."""
        if end - first < LEAST_CALLS:
            return None
        for tokens in (self.strict, self.loose):
            best: _Found | None = None
            for period in self._candidates(tokens, first, end):
                for start, n in _runs(tokens, first, end, period):
                    found = self._verify(start, period, n)
                    if found is not None and (best is None or _rank(found) > _rank(best)):
                        best = found
                if best is not None and _size(best) > 0.9 * (end - first):
                    return best
            if best is not None:
                return best
        return None

    @staticmethod
    def _candidates(tokens: Sequence[int], first: int, end: int) -> list[int]:
        """Returns candidates for the number of calls of an iteration, the likeliest first."""
        places: dict[int, list[int]] = defaultdict(list)
        for i, token in enumerate(tokens[first:end], first):
            places[token].append(i)
        every: Counter[int] = Counter()
        counts = []
        for one in places.values():
            for uses in range(1, MOST_USES + 1):  # of equal calls in an iteration
                gaps = Counter(map(sub, one[uses:], one))
                if uses == 1:
                    every += gaps
                if not gaps:
                    break
                (gap, times), = gaps.most_common(1)
                if 2 * times > gaps.total():
                    counts.append((gaps.total(), gap))
                    every[gap] += times * (uses > 1)
                if 4 * times > 3 * gaps.total():
                    break
        rare = [gap for total, gap in sorted(counts) if total >= LEAST_ITERATIONS - 1]
        common = [gap for gap, times in every.most_common(MOST_CANDIDATES)]
        found = list(dict.fromkeys([*rare[:MOST_CANDIDATES], *common]))
        found = sorted(found, key=lambda gap: -every[gap])[: 2 * MOST_CANDIDATES]
        # a loop whose values change places takes two iterations as one
        return list(dict.fromkeys([*found, *(2 * gap for gap in found[:2])]))

    def _wires(self, start: int, period: int, n: int) -> list[tuple[Wire, ...]]:
        """Returns the sources of the arguments by iteration."""
        end = start + period * n
        found = []
        for t in range(n):
            row: list[Wire] = []
            for i in range(start + t * period, start + (t + 1) * period):
                for value in self.inputs[i]:
                    j, k = self.made.get(value, (-1, 0))
                    if start <= j < end:
                        row.append(((j - start) % period, k, t - (j - start) // period))
                    else:
                        row.append(None)
            found.append(tuple(row))
        return found

    def _verify(self, start: int, period: int, n: int) -> _Found | None:
        """Returns the longest range of these iterations that is a loop."""
        wires = self._wires(start, period, n)
        runs, t = [], 0
        for wire, group in groupby(wires):
            length = len(list(group))
            runs.append((length, t, wire))
            t += length
        length, first, wire = max(runs, key=lambda run: run[0])
        # The iterations before may differ in values that the first ones take from before the loop.
        exceptions: list[tuple[int, int, int]] = []  # iteration, lag, call that makes the value
        a = first
        for t in range(first - 1, -1, -1):
            more = self._exceptions(start, period, t, wires[t], wire)
            if more is None:
                break
            exceptions += more
            if all(at < t + lag and call < start + t * period for at, lag, call in exceptions):
                a = t
        iterations = first + length - a
        if iterations < LEAST_ITERATIONS or iterations * period < LEAST_CALLS:
            return None
        return _Found(start + a * period, period, iterations)

    def _exceptions(self, start: int, period: int, t: int, wires: tuple[Wire, ...],
                    pattern: tuple[Wire, ...]) -> list[tuple[int, int, int]] | None:
        """Returns where an iteration differs from the others; None: it is not one of them."""
        values = [value for i in range(start + t * period, start + (t + 1) * period)
                  for value in self.inputs[i]]
        found = []
        for value, wire, usual in zip(values, wires, pattern, strict=True):
            if wire == usual:
                continue
            if usual is None or usual[2] == 0:
                return None
            found.append((t, usual[2], self.made.get(value, (-1, 0))[0]))
        return found

    # ---------------------------------------------------------------------- first iteration
    def _extend(self, found: _Found, low: int) -> _Found:
        """Returns the loop with the iteration before it, if other calls stand among those of this
        one, or its states are broadcast: they move, or are expanded, before the loop."""
        first, p = found.first, found.period
        body: list[int] = []
        moved: list[int] = []
        i = first - 1
        while len(body) < p and i >= low and len(moved) < MOST_MOVED:
            (body if self._is_alike(i, first + p - 1 - len(body)) else moved).append(i)
            i -= 1
        if len(body) < p:
            return found
        body.reverse()
        made = {value for j in body for value in self.calls[j].outputs}
        is_random = any(self.calls[j].is_random for j in body)
        before: list[Call] = []
        for j in reversed(moved):
            call = self.calls[j]
            if not made.isdisjoint(self.inputs[j]) or (call.is_random and is_random):
                return found
            before.append(call)
        rows = self._expand(body, first, before)
        if rows is None or not before:
            return found
        self._replace(i + 1, first, before, rows)
        longer = self._verify(i + 1 + len(before), p, found.iterations + 1)
        if longer is not None and longer.first == i + 1 + len(before):
            return longer
        return found._replace(first=i + 1 + len(before) + p)

    def _is_alike(self, i: int, j: int) -> bool:
        """Whether calls are the same, but for arguments that are broadcast."""
        if self.strict[i] == self.strict[j]:
            return True
        one, other = self.calls[i], self.calls[j]
        if (one.name != other.name or one.function != other.function or one.spec is not other.spec
                or one.mode != other.mode or _form(one) != _form(other)
                or not is_pointwise(one) or one.written or one.is_random or other.is_random):
            return False
        kinds = self.recording.kinds

        def is_alike(leaf: Any, usual: Any) -> bool:
            if not isinstance(leaf, Ref) or not isinstance(usual, Ref):
                return make_constant_key(leaf) == make_constant_key(usual)
            a, b = kinds[leaf.value], kinds[usual.value]
            return a[1:3] == b[1:3] and _can_expand(a.shape, b.shape)

        return len(one.leaves) == len(other.leaves) and all(
            map(is_alike, one.leaves, other.leaves)) and all(
            kinds[a][1:3] == kinds[b][1:3] for a, b in zip(one.outputs, other.outputs, strict=True))

    def _expand(self, body: Sequence[int], first: int, before: list[Call]) -> list[Call] | None:
        """Returns the calls of an iteration with arguments of the usual shapes; None: a value of
        another shape is read elsewhere. Adds calls to `before` that expand the arguments."""
        kinds, rows = self.recording.kinds, []
        made = {value: kinds[usual] for q, j in enumerate(body) for value, usual in zip(
            self.calls[j].outputs, self.calls[first + q].outputs, strict=True)}
        changed = [value for value, kind in made.items() if kind.shape != kinds[value].shape]
        inside = Counter(value for j in body for value in self.inputs[j])
        if any(self.uses[value] != inside[value] for value in changed):
            return None
        for q, j in enumerate(body):
            call, leaves = self.calls[j], []
            for leaf, usual in zip(call.leaves, self.calls[first + q].leaves, strict=True):
                if isinstance(leaf, Ref) and leaf.value not in made and (
                        shape := kinds[usual.value].shape) != kinds[leaf.value].shape:
                    value = len(kinds)
                    kinds[value] = kinds[leaf.value]._replace(shape=shape, is_contiguous=False)
                    before.append(make_call(Tensor.expand, (leaf, list(shape)), Ref(value),
                                            call.mode, call.line))
                    leaf = Ref(value)
                leaves.append(leaf)
            rows.append(call.replace(leaves=tuple(leaves)))
        for value in changed:
            kinds[value] = made[value]._replace(requires_grad=kinds[value].requires_grad)
            self.recording.numbers.pop(value, None)  # of the other shape
        return rows

    def _replace(self, start: int, end: int, before: Sequence[Call], rows: Sequence[Call]) -> None:
        """Puts these calls in the place of others, of which rows are an iteration."""
        for tokens in (self.strict, self.loose):
            least = min(tokens)
            tokens[start:end] = [*(least - 1 - k for k in range(len(before))),
                                 *tokens[end : end + len(rows)]]
        self.calls[start:end] = [*before, *rows]
        self.inputs[start:end] = [call.inputs for call in (*before, *rows)]
        self.made = {value: (i, k) for i, call in enumerate(self.calls)
                     for k, value in enumerate(call.outputs)}

    # ------------------------------------------------------------------------ description
    def _describe(self, found: _Found) -> Loop:
        calls, p, n = self.calls, found.period, found.iterations
        rows = [calls[found.first + q : found.end : p] for q in range(p)]
        made = tuple(tuple(rows[q][t].outputs for q in range(p)) for t in range(n))

        def slot(leaves: Sequence[Any]) -> Any:
            if not isinstance(leaves[0], Ref):
                keys = {make_constant_key(leaf) for leaf in leaves}
                return leaves[0] if len(keys) == 1 else ir.Numbers(tuple(leaves))
            values = tuple(leaf.value for leaf in leaves)
            i, k = self.made.get(values[-1], (-1, 0))
            if found.first <= i < found.end:
                position, lag = (i - found.first) % p, n - 1 - (i - found.first) // p
                return ir.Before(position, k, lag, values[:lag]) if lag else ir.Now(position, k)
            return ir.Fixed(values[0]) if len(set(values)) == 1 else ir.Varying(values)

        leaves = [zip(*(call.leaves for call in row), strict=True) for row in rows]
        body = tuple(ir.BodyCall(row[0], tuple(map(slot, each)))
                     for row, each in zip(rows, leaves, strict=True))
        return Loop(n, body, made)


def make_constant_key(leaf: Any) -> Any:
    """Returns a key that is equal for equal constants: 1, 1.0 and True differ, as 0.0 and -0.0."""
    if isinstance(leaf, slice):
        return slice, *map(make_constant_key, (leaf.start, leaf.stop, leaf.step))
    if isinstance(leaf, Tensor):
        raise TypeError("a tensor is no constant")
    return make_key(leaf) or (type(leaf), id(leaf))


def _form(call: Call) -> Any:
    """Returns the places of arguments that are written to, and the source of each result."""
    places: dict[int, list[int]] = defaultdict(list)
    for i, leaf in enumerate(call.leaves):
        if isinstance(leaf, Ref):
            places[leaf.value].append(i)
    is_one = isinstance(call.results, Ref)
    results, tree = ([call.results], "") if is_one else pytree.tree_flatten(call.results)
    made = {value: -1 - k for k, value in enumerate(call.outputs)}
    return (tuple(tuple(places[before]) for before, _ in call.written), str(tree),
            tuple(made.get(one.value) or tuple(places[one.value]) if isinstance(one, Ref) else one
                  for one in results))


def _can_expand(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a tensor of a shape is broadcast to the other one."""
    missing = len(other) - len(shape)
    return missing >= 0 and all(a in (1, b) for a, b in zip(shape, other[missing:], strict=True))


def _size(found: _Found) -> int:
    return found.iterations * found.period


def _rank(found: _Found) -> tuple[int, int]:
    """Of loops over the same calls the one with the shortest iteration is first."""
    return _size(found), -found.period


def _runs(tokens: Sequence[int], first: int, end: int, period: int) -> list[tuple[int, int]]:
    """Returns the longest stretch with this period as (start, iterations), aligned both ways."""
    best, run = (0, first), 0
    for i in range(first + period, end + 1):
        if i < end and tokens[i] == tokens[i - period]:
            run += 1
            continue
        best = max(best, (run, i), key=lambda one: one[0])
        run = 0
    length = best[0] + period
    n = length // period
    if n < LEAST_ITERATIONS:
        return []
    return list(dict.fromkeys([(best[1] - n * period, n), (best[1] - length, n)]))
