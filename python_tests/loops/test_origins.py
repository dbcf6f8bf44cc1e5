"""Where the tensors of a call come from, and what a call leaves behind."""
import functools
import random
import weakref
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsnn_ext.codegen.plain import MISSING, make_key
from lsnn_ext.loops import fuse
from lsnn_ext.loops.ir import Ref, Refused
from lsnn_ext.loops.origins import Origins, look_up
from lsnn_ext.loops.paths import format_path
from lsnn_ext.loops.record import record
from lsnn_ext.loops.snapshot import identify
from test_guards import Watched

GLOBAL = torch.tensor(0.5)
OTHER = torch.tensor(0.5)  # no function names it
COUNT = 0
_SHARED = [torch.ones(1)]


class Pair(NamedTuple):
    v: Any
    i: Any


@dataclass
class Settings:
    tau: Tensor
    count: int = 3


class Slots:
    __slots__ = ("theta",)

    def __init__(self) -> None:
        self.theta = torch.ones(2)


class Part(nn.Module):
    scale = torch.tensor(2.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))
        self.register_buffer("trace", torch.zeros(2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.settings = Settings(torch.ones(2))
        self.slots = Slots()
        self.state: Any = Pair(torch.zeros(1), [torch.zeros(2), {"a": torch.zeros(3)}, _scaled])
        self.queue = deque([torch.zeros(4)])
        self.step = functools.partial(_scaled, by=torch.tensor(3.0))
        self.inner = _closure(torch.tensor(4.0))
        self.anything: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return x * GLOBAL + _default(x)


def _scaled(x: Tensor, by: Tensor) -> Tensor:
    return x * by


def _closure(held: Tensor) -> Any:
    def inner(x: Tensor) -> Tensor:
        return x + held

    return inner


def _default(x: Tensor, bias: Tensor = torch.ones(1), *, more: Tensor = torch.ones(1)  # noqa: B008
             ) -> Tensor:
    return x + bias + more


def _places(model: Any) -> dict[str, Tensor]:
    return {
        "part.weight": model.part.weight, "part.trace": model.part.trace,
        "settings.tau": model.settings.tau, "slots.theta": model.slots.theta,
        "state.0": model.state.v, "state.1.0": model.state.i[0], "state.1.1.a": model.state.i[1][
            "a"],
        "queue.0": model.queue[0], "step.keywords.by": model.step.keywords["by"],
        "inner.closure held": model.inner.__closure__[0].cell_contents, "part.scale": Part.scale,
        "forward.global GLOBAL": GLOBAL,
        "forward.global _default.default 0": _default.__defaults__[0],
        "forward.global _default.more": _default.__kwdefaults__["more"],
    }


@pytest.mark.parametrize("name", _places(Model()))
def test_a_tensor_is_found_by_its_name_and_looked_up_again(name: str) -> None:
    model = Model()
    tensor = _places(model)[name]
    leaf = Origins(model, (), {}).find(tensor)
    assert leaf is not None and leaf.kind == "attribute" and format_path(leaf.path) == name
    assert look_up(leaf, model, []) is tensor
    other = Model()  # a path needs no reference to the tensor
    assert look_up(leaf, other, []) is _places(other)[name]


def test_inputs_are_found_by_their_place() -> None:
    a, b = torch.ones(1), torch.ones(1)
    origins = Origins(Model(), (3, [a]), {"b": b})
    leaf = origins.find(b)
    assert leaf is not None and leaf.kind == "input" and leaf.path == (2,)
    assert look_up(leaf, None, [3, a, b]) is b
    with pytest.raises(LookupError, match="expected a tensor, got int"):
        look_up(leaf, None, [3, a, 7])


@pytest.mark.parametrize("tensor", [torch.ones(1), OTHER, torch.ones(2)[:1]])
def test_other_tensors_are_of_unknown_origin(tensor: Tensor) -> None:
    assert Origins(Model(), (), {}).find(tensor) is None


def test_a_place_counts_only_if_it_held_the_tensor_before() -> None:
    model = Model()
    origins = Origins(model, (), {})
    model.anything = torch.ones(1)
    assert origins.find(model.anything) is None


def test_tensors_that_are_gone_raise() -> None:
    model = Model()
    leaf = Origins(model, (), {}).find(model.state.i[0])
    assert leaf is not None
    model.state = Pair(torch.ones(1), 3)
    with pytest.raises(LookupError, match="state.1.0: expected a tensor, got none"):
        look_up(leaf, model, [])


def test_bound_methods_and_functions_are_walked() -> None:
    model = Model()
    for function in (model.forward, functools.partial(model.forward), lambda: model(1)):
        leaf = Origins(function, (), {}).find(model.part.weight)
        assert leaf is not None and look_up(leaf, function, []) is model.part.weight


def test_objects_are_known_or_the_same_or_others() -> None:
    one, two, three = torch.zeros(3)
    inner: list[Any] = [two]
    inner.append(inner)
    trees = [one, {"a": inner, "b": inner}, two, three, 1, one]
    assert identify(trees, {id(one): 7}) == [7, -1, -2, -3, -4, -4, -2, -4, 7]


def test_plain_values_that_compare_equal_are_told_apart() -> None:
    values = [1, 1.0, True, 0.0, -0.0, 0, False, None, "1", np.float64(1), np.float32(1),
              float("nan"), 1 + 0j, complex(1, -0.0), b"1"]
    found = [make_key(one) for one in values]
    assert all((one == other) == (i == k) for i, one in enumerate(found)
               for k, other in enumerate(found))
    assert make_key(float("nan")) == make_key(float("nan"))


# ------------------------------------------------------------------------------------- changes
def _changes(model: Model, call: Any) -> dict[str, Any]:
    origins = Origins(model, (), {})
    call(model)
    return {format_path(path): tree for path, tree in origins.changed(lambda one: Ref(len(one)))}


def _pop(model: Model) -> None:
    model.queue.popleft()
    model.queue.append(torch.ones(9))


# A change, its name, and what is found there.
CHANGES: dict[str, tuple[Any, str, Any]] = {
    "append": (lambda m: m.state.i.append(torch.ones(9)), "state.1", [Ref(9)]),
    "pop": (_pop, "queue", [Ref(9)]),
    "item": (lambda m: m.state.i.__setitem__(0, torch.ones(9)), "state.1.0", Ref(9)),
    "key": (lambda m: m.state.i[1].__setitem__("z", torch.ones(9)), "state.1.1.z", Ref(9)),
    "buffer": (lambda m: setattr(m.part, "trace", torch.ones(9)), "part.trace", Ref(9)),
    "count": (lambda m: setattr(m.settings, "count", m.settings.count + 1), "settings.count", 4),
    "slot": (lambda m: setattr(m.slots, "theta", torch.ones(9)), "slots.theta", Ref(9)),
    "state": (lambda m: setattr(m, "state", Pair(torch.ones(7), [torch.ones(8), {"b": 3}])),
              "state", Pair(Ref(7), [Ref(8), {"b": 3}]))}
REMOVED = (lambda m: delattr(m, "anything"), "anything", MISSING)


@pytest.mark.parametrize("call, name, tree", [*CHANGES.values(), REMOVED])
def test_changes_are_found(call: Any, name: str, tree: Any) -> None:
    found = _changes(Model(), call)
    assert list(found) == [name] and found[name] == tree
    assert type(found[name]) is type(tree)


def _set_global(model: Model) -> None:
    global COUNT
    COUNT += 1


def test_changes_of_globals_are_found() -> None:
    origins = Origins(_set_global, (), {})
    _set_global(Model())
    ((path, value),) = origins.changed(lambda one: Ref(0))
    assert format_path(path) == "global COUNT" and value == COUNT


def test_nothing_changes_where_equal_values_are_set() -> None:
    def call(model: Model) -> None:
        model.settings.count, model.anything = 3, None

    assert _changes(Model(), call) == {}


@pytest.mark.parametrize("call, reason", [
    (lambda model: setattr(model, "anything", Settings(torch.ones(1))), "anything: .*Settings"),
    (lambda model: setattr(model, "anything", lambda: 3), "anything: .*function"),
    (lambda model: setattr(model, "anything", model.state.i), "anything: .*list"),
    (lambda model: setattr(model, "anything", np.ones(3)), "anything: .*ndarray"),
    (lambda model: model.seen.add(3), "seen: .*set"),
    (lambda model: model.numbers.fill(3), "numbers: .*ndarray"),
    (lambda model: model.cached(4), "cached: .*lru_cache"),
    (lambda model: random.random(), "generators of torch"),
    (lambda model: np.random.rand(), "generators of torch"),  # noqa: NPY002
    (lambda model: model.generator.random(), "generator: .*Generator"),
    (lambda model: [setattr(model, name, _SHARED) for name in ("anything", "other")],
     "other: expected another list than anything"),
])
def test_what_cannot_be_repeated_is_refused_by_name(call: Any, reason: str) -> None:
    model: Any = Model()
    model.seen, model.numbers = {1}, np.ones(3)
    model.cached = functools.lru_cache(lambda n: n + 1)
    model.generator = np.random.default_rng(0)
    with pytest.raises(Refused, match=reason):
        _changes(model, call)


def test_everything_is_put_back() -> None:
    model = Model()
    model.anything = OrderedDict(a=[1, 2])
    before = {name: (one, one.detach().clone()) for name, one in _places(model).items()}
    held = model.state, model.queue, model.anything
    numbers = torch.random.get_rng_state(), random.getstate()
    origins = Origins(model, (), {}, has_copies=True)
    for call, *_ in CHANGES.values():
        call(model)
    model.anything["a"].append(3)
    model.anything["b"] = 4
    model.extra = 3  # type: ignore[assignment]
    random.random()
    with torch.no_grad():
        model.part.weight.zero_()
    model.settings.tau.requires_grad_()
    origins.restore()
    assert random.getstate() == numbers[1]
    assert all(one is other for one, other in zip(held, (model.state, model.queue, model.anything),
                                                  strict=True))
    assert model.anything == OrderedDict(a=[1, 2]) and not hasattr(model, "extra")
    assert model.settings.count == 3 and not model.settings.tau.requires_grad
    after = _places(model)
    assert all(after[name] is one and torch.equal(one, number)
               for name, (one, number) in before.items())


def a_unused(x: Tensor) -> Tensor:
    return b_class.second(x)


class b_class:  # noqa: N801
    first = staticmethod(lambda x: x + 1)
    second = staticmethod(lambda x: x * 2)


def c_used(x: Tensor) -> Tensor:
    return b_class.first(b_class.second(x))


class Switched(nn.Module):
    """Names of attributes are met in another order where functions that did not run are left out.
    Globals are visited by name."""

    def forward(self, x: Tensor) -> Tensor:
        return c_used(x) if isinstance(self, b_class) or not self.training else a_unused(x)


def test_the_order_in_which_names_are_met_does_not_matter() -> None:
    assert Watched(Switched().eval()).holds() == (True, True)


WEAK_CACHE: Any = weakref.WeakKeyDictionary()


class CachesParts(nn.Module):
    """Keeps references to its parts at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self not in WEAK_CACHE:
            WEAK_CACHE[self] = tuple(map(weakref.ref, self.modules()))
        return WEAK_CACHE[self][1]()(x)


def test_weak_references_to_parts_are_set_again() -> None:
    watched = Watched(CachesParts(), calls=1)
    (_, made), = watched.recording.changed
    assert [one() for one in made] == [watched.model, watched.model.part]
    assert watched.holds() == (False, False)
    WEAK_CACHE.data.clear()
    assert watched.holds() == (True, True)
    watched.guard.set_changed([made])
    assert WEAK_CACHE[watched.model] == made
    assert Watched(watched.model).holds() == (True, True)


class ReferencesOther(CachesParts):
    def forward(self, x: Tensor) -> Tensor:
        self.reference = weakref.ref(type(x))
        return self.part(x)


def test_weak_references_to_what_is_out_of_reach_are_refused() -> None:
    model, x = ReferencesOther(), torch.rand(4, 2, 3)
    _, recording = record(model, (x,), {}, Origins(model, (x,), {}))
    assert isinstance(recording, Refused)
    assert "reference: expected" in str(recording)


def test_a_result_that_holds_itself_is_refused() -> None:
    def function(x: Tensor) -> list[Any]:
        found: list[Any] = [x * 2]
        found.append(found)
        return found

    with pytest.raises(Refused, match="result: expected no container that holds itself"):
        fuse(function, torch.randn(3, 2))


REGISTRY: Any = weakref.WeakKeyDictionary()


class SetsAll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for model in list(REGISTRY):
            REGISTRY[model] = [3.0]
        return x * 2


def test_a_change_of_what_another_model_has_in_a_registry_is_seen() -> None:
    REGISTRY[other := nn.Linear(2, 2)] = [1.0]
    model, x = SetsAll(), torch.rand(3)
    _, recording = record(model, (x,), {}, Origins(model, (x,), {}))
    assert isinstance(recording, Refused) or any(
        "REGISTRY" in str(path) for path, _ in recording.changed)
    assert REGISTRY[other] == [3.0]
