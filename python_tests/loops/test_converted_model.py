"""A converted model is the same object, and does what the original does in every call."""
import abc
import copy
import gc
import inspect
import io
import logging
import os
import pickle
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from lsnn_ext.loops import Refused, convert, fuse, revert
from lsnn_ext.loops.run import Plan
from lsnn_ext.zoo.surrogates import triangle


@pytest.fixture(autouse=True)
def _plans_are_useful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replays do not depend on what can be fused. Counts them."""
    run = Plan.__call__

    def counted(self: Plan, leaves: Any, frames: Any = None) -> Any:
        if frames is None:  # else verify calls
            _replays.append(self)
        return run(self, leaves, frames)

    monkeypatch.setattr(Plan, "is_useful", property(lambda self: True))
    monkeypatch.setattr(Plan, "__call__", counted)
    yield
    _replays.clear()


_replays: list[Plan] = []


class Net(nn.Module):
    spike = staticmethod(triangle)

    def __init__(self) -> None:
        super().__init__()
        self.project, self.back = nn.Linear(5, 4), nn.Linear(4, 4, bias=False)
        self.beta = 0.9
        self.calls = 0  # of no use to forward

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Spikes."""
        v = z = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        spikes = []
        for t in range(len(x)):
            v = self.beta * v + gain * self.project(x[t]) + self.back(z)
            z = self.spike(v - 0.3)
            spikes.append(z)
        return torch.stack(spikes)

    def double_of(self, x: Tensor) -> Tensor:
        return 2 * self(x)


class Stateful(Net):
    def __init__(self) -> None:
        super().__init__()
        self.v: Any = None
        self.log: Any = []
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("last", torch.zeros(1, 4))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        v = torch.zeros(x.shape[1], 4) if self.v is None else self.v.detach()
        z = torch.zeros_like(v)
        self.log = []
        for t in range(len(x)):
            v = self.beta * v + self.project(x[t]) + self.back(z)
            z = triangle(v - 0.3)
            self.log.append(z)
        with torch.no_grad():
            self.total += z.sum(0)
        self.v, self.last = v, z.detach()
        return torch.stack(self.log)


class Random(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.5) + torch.rand(3, 2, 5))


class Smooth(Net):
    spike = staticmethod(torch.sigmoid)


class Meta(Net, metaclass=abc.ABCMeta):
    pass


def _x(T: int = 3, seed: int = 0) -> Tensor:
    return 2 * torch.rand(T, 2, 5, generator=torch.Generator().manual_seed(seed))


def _pair(kind: type[Any] = Net) -> tuple[Any, Any]:
    """A converted model and a copy of the original."""
    torch.manual_seed(0)
    original = kind()
    model, report = convert(copy.deepcopy(original), _x())
    assert report.converted
    _replays.clear()
    return model, original


def _assert_same(model: Any, original: Any, *args: Any, replays: bool | None = None) -> None:
    count = len(_replays)
    results = []
    for one in (model, original):
        one.zero_grad()
        torch.manual_seed(3)
        result = one(*args)
        if result.requires_grad:
            result.sum().backward()
        results.append((result, [p.grad for p in one.parameters()],
                        [b.clone() for b in one.buffers()],
                        getattr(one, "v", None), list(getattr(one, "log", [])),
                        torch.random.get_rng_state()))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].requires_grad == results[1][0].requires_grad
    if replays is not None:
        assert (len(_replays) > count) == replays


@pytest.mark.parametrize("kind", [Net, Stateful, Random, Meta])
def test_calls_are_as_those_of_the_original(kind: type[Any]) -> None:
    model, original = _pair(kind)
    for seed in range(4):
        _assert_same(model, original, _x(seed=seed))
    _assert_same(model, original, _x(), replays=True)


def test_a_converted_model_is_the_same_object() -> None:
    model = Net()
    parameters = dict(model.named_parameters())
    signature, text = inspect.signature(model.forward), str(model)
    state = {key: one.clone() for key, one in model.state_dict().items()}
    converted, report = convert(model, _x())
    assert converted is model and isinstance(model, Net) and type(model) is not Net
    assert all(one is parameters[name] for name, one in model.named_parameters())
    assert len(list(model.modules())) == 3 and str(model) == text
    assert inspect.signature(model.forward) == signature and model.forward.__doc__ == "Spikes."
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert torch.equal(model.double_of(_x()), 2 * model(_x()))
    assert revert(model) is model and type(model) is Net
    assert vars(model).keys() == vars(Net()).keys()


def test_convert_leaves_no_trace() -> None:
    model = Stateful()
    x = _x()
    model.total.fill_(3.0)
    model.project.weight.grad = gradient = torch.ones(4, 5)
    before = copy.deepcopy(model.state_dict())
    numbers = torch.random.get_rng_state()
    log = model.log
    convert(model, lambda one: one(x).sum().backward())
    assert model.v is None and model.log is log and not log
    assert model.project.weight.grad is gradient and (gradient == 1).all()
    assert model.back.weight.grad is None
    torch.testing.assert_close(model.state_dict(), before)
    assert torch.equal(torch.random.get_rng_state(), numbers)


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle", "save"])
def test_copies_and_pickles_are_converted_and_record_anew(name: str) -> None:
    model, original = _pair()
    if name == "save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        make = {"copy": copy.copy, "deepcopy": copy.deepcopy,
                "pickle": lambda one: pickle.loads(pickle.dumps(one))}[name]
        other = make(model)
    assert type(other) is type(model)
    _assert_same(other, original, _x(), replays=False)
    _assert_same(other, original, _x(), replays=True)
    other.beta = 0.1
    _assert_same(model, original, _x(), replays=True)


def test_each_shape_is_recorded_once() -> None:
    model, original = _pair()
    for replays in (False, True):
        _assert_same(model, original, _x(5), replays=replays)
        _assert_same(model, original, _x()[:, :1], replays=replays)
        _assert_same(model, original, _x().requires_grad_(), replays=replays)
        _assert_same(model, original, _x(), 2.0, replays=replays)
        with torch.no_grad():
            _assert_same(model, original, _x(), replays=replays)
        with torch.autocast("cpu"):
            _assert_same(model, original, _x(), replays=None if replays else False)


def test_a_model_of_another_dtype_records_anew() -> None:
    model, original = _pair()
    for one in (model, original):
        one.double()
    _assert_same(model, original, _x().double(), replays=False)
    _assert_same(model, original, _x().double(), replays=True)


def test_changes_are_recorded_at_most_eight_times() -> None:
    model, original = _pair()
    for k in range(7):
        model.beta = original.beta = k / 10
        _assert_same(model, original, _x(), replays=False)
        _assert_same(model, original, _x(), replays=True)
    model.beta = original.beta = 0.75
    with pytest.warns(UserWarning, match="the model changes between calls"):
        _assert_same(model, original, _x(), replays=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _assert_same(model, original, _x(), replays=False)
        model.beta = original.beta = 0.5
        _assert_same(model, original, _x(), replays=True)


class Counts(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_counter_is_refused_by_name() -> None:
    model, report = convert(Counts(), _x())
    assert not report.converted and "calls" in str(report) and type(model) is Counts
    assert model.calls == 0
    with pytest.raises(Refused, match="calls: expected a value that each call sets anew"):
        fuse(model, _x())


class SetsTime(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        self.calls = 0
        for _ in range(len(x)):
            self.calls += 1
        return super().forward(x)


def test_a_value_that_each_call_sets_is_set_again() -> None:
    model, original = _pair(SetsTime)
    for T in (3, 4, 3, 4, 3, 4, 3, 4):
        _assert_same(model, original, _x(T))
        assert model.calls == T
    _assert_same(model, original, _x(), replays=True)


class Branches(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        if x.sum() > 1000:
            raise KeyError("large")
        return super().forward(x)


class Raises(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        if len(x) == 2:
            raise KeyError("short")
        return super().forward(x)


def test_what_cannot_be_recorded_stays_with_the_line() -> None:
    model, report = convert(Branches(), _x())
    assert type(model) is Branches and not report.converted
    assert "test_converted_model.py:" in str(report)
    with pytest.raises(Refused, match=r"test_converted_model.py:\d+: __bool__"):
        fuse(model.forward, _x())


@pytest.mark.parametrize("effect, name", [
    (lambda log: print(end=""), "print"), (lambda log: time.time(), "time"),
    (lambda log: os.environ.get("HOME"), "os.environ"), (lambda log: globals(), "globals"),
    (lambda log: sys.modules["math"], "sys.modules"),
    (lambda log: logging.getLogger("lsnn_ext.test").error(""), "logging"),
    (lambda log: log.append(1), "arguments"),
])
def test_what_a_replay_would_leave_out_is_refused(effect: Any, name: str) -> None:
    class Acts(Net):
        def forward(self, x: Tensor, log: Any = ()) -> Tensor:  # type: ignore[override]
            effect(log)
            return super().forward(x)

    with pytest.raises(Refused, match=f"{name}: expected"):
        fuse(Acts(), (_x(), []))


def test_exceptions_are_those_of_the_original() -> None:
    model, original = _pair(Raises)
    for _ in range(2):
        with pytest.raises(KeyError, match="short"):
            model(_x(2))
    _assert_same(model, original, _x(), replays=True)


def test_a_model_without_a_call_is_not_converted() -> None:
    model, report = convert(Net(), lambda model: None)
    assert type(model) is Net and not report.converted


def test_forward_as_an_attribute_is_not_converted() -> None:
    model = Net()
    model.forward = lambda x: x  # type: ignore[method-assign,assignment]
    assert not convert(model, _x())[1].converted and type(model) is Net


def test_a_function_is_fused() -> None:
    model = Net()
    weight = torch.rand(5, 5)

    def run(x: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return model(x @ weight) * scale, {"x": x * 2}

    fused = fuse(run, (_x(),))
    for seed in range(2):
        torch.testing.assert_close(fused(_x(seed=seed)), run(_x(seed=seed)))
    assert len(_replays) == 2 and fused.__name__ == "run" and revert(fused) is run
    weight = torch.rand(5, 5)
    torch.testing.assert_close(fused(_x()), run(_x()))
    model.beta = 0.1
    torch.testing.assert_close(fused(_x()), run(_x()))
    torch.testing.assert_close(fused(_x()), run(_x()))


def test_a_bound_method_is_fused() -> None:
    model = Net()
    fused = fuse(model.double_of, _x())
    torch.testing.assert_close(fused(_x(seed=1)), model.double_of(_x(seed=1)))
    assert len(_replays) == 1


def test_a_part_is_fused_inside_of_a_model() -> None:
    whole = nn.Sequential(nn.Linear(5, 5), Net())
    original = copy.deepcopy(whole)
    assert fuse(whole[1], torch.rand(3, 2, 5)) is whole[1]
    _assert_same(whole, original, _x())
    _assert_same(whole, original, _x(), replays=True)
    whole, report = convert(whole, _x())
    assert report.converted
    _replays.clear()
    _assert_same(whole, original, _x(), replays=True)
    assert len(_replays) == 1
    assert type(revert(whole)) is nn.Sequential and type(whole[1]) is Net


@pytest.mark.parametrize("run", [
    lambda model, x: torch.compile(model, backend="eager")(x),
    lambda model, x: torch.vmap(model)(x[None])[0],
    lambda model, x: torch.func.functional_call(
        model, {"back.weight": torch.zeros(4, 4)}, (x,)),
    lambda model, x: torch.jit.trace(model, x, check_trace=False)(x),
    lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    lambda model, x: torch.func.grad(lambda one: model(one).sum())(x),
    lambda model, x: _fake(model, x),
], ids=["compile", "vmap", "functional_call", "trace", "jvp", "grad", "fake"])
def test_what_looks_at_a_model_sees_the_original(run: Any) -> None:
    model, original = _pair(Smooth)
    torch.testing.assert_close(run(model, _x()), run(original, _x()))
    assert not _replays
    _assert_same(model, original, _x())  # torch.compile leaves an attribute
    _assert_same(model, original, _x(), replays=True)


def _fake(model: Any, x: Tensor) -> Tensor:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = model(mode.from_tensor(x))
    return torch.zeros(result.shape)


def test_modes_see_the_original() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model, original = _pair()
    counts = []
    for one in (model, original):
        with FlopCounterMode(display=False) as counter:
            one(_x())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0 and not _replays


def test_checkpoints_are_exact() -> None:
    model, original = _pair()
    for T in (3, 4):  # recorded before, and not
        x = _x(T)
        for one in (model, original):
            one.zero_grad()
            for _ in range(2):
                checkpoint(one, x, use_reentrant=False).sum().backward()
        torch.testing.assert_close([p.grad for p in model.parameters()],
                                   [p.grad for p in original.parameters()])


def test_a_call_inside_of_a_call_runs_the_original() -> None:
    class Twice(Net):
        depth = 0

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return self(x[:1]) if len(x) > 1 else super().forward(x)

    model, original = _pair(Twice)
    _assert_same(model, original, _x(), replays=True)


def test_other_threads_run_the_original_during_a_recording() -> None:
    class Waits(Net):
        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            if len(x) == 4 and threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=lambda: found.append(self(_x(5))))
                thread.start()
                thread.join()
            return super().forward(x)

    found: list[Tensor] = []
    model, original = _pair(Waits)
    first = model(_x(4))
    torch.testing.assert_close(first, Net.forward(original, _x(4)))
    torch.testing.assert_close(found[0], Net.forward(original, _x(5)))


def test_data_parallel_replicas_run_the_original() -> None:
    model, original = _pair()
    replica = model._replicate_for_data_parallel()
    assert type(replica) is type(model)
    assert torch.equal(replica(_x()), original(_x())) and not _replays


def test_a_written_buffer_that_is_an_input_runs_the_original() -> None:
    class Writes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(3, 2, 5))

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            self.kept += 1
            return super().forward(x + self.kept)

    model, original = _pair(Writes)
    _assert_same(model, original, _x(), replays=True)
    torch.testing.assert_close(model(model.kept), original(original.kept))
    torch.testing.assert_close(model(model.kept[:]), original(original.kept[:]))
    torch.testing.assert_close(model.kept, original.kept)
    assert len(_replays) == 1


def test_a_model_is_collected() -> None:
    model, _ = _pair(Stateful)
    model(_x())
    gone = weakref.ref(model)
    _replays.clear()
    del model
    gc.collect()
    assert gone() is None


def test_no_activation_stays_alive() -> None:
    model, _ = _pair()
    for T in (3, 4):
        for _ in range(2):
            model(_x(T))
    gc.collect()
    own = {id(one) for one in model.parameters()}
    entries = model._lsnn_recordings
    held = {id(one) for one in gc.get_referents(*_reachable(entries))
            if isinstance(one, Tensor)}
    assert held and held <= own


def _reachable(start: Any) -> list[Any]:
    found, waiting = {id(start): start}, [start]
    while waiting:
        for one in gc.get_referents(waiting.pop()):
            inside = type(one).__module__.startswith("lsnn_ext.loops")
            if id(one) not in found and (inside or type(one) in (dict, list, tuple)):
                found[id(one)] = one
                waiting.append(one)
    return list(found.values())


def test_second_derivatives_are_those_of_the_original_or_raise() -> None:
    model, original = _pair()
    x = _x().requires_grad_()
    model(x)
    found = []
    for one in (original, model):
        gradient, = torch.autograd.grad(one(x).sum(), x, create_graph=True)
        try:
            found.append(torch.autograd.grad(gradient.square().sum(), one.back.weight))
        except RuntimeError as error:
            assert one is model and "second derivative" in str(error)
    if len(found) == 2:
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("call, error, message", [
    (lambda: convert(3, _x()), TypeError, "model: expected a torch.nn.Module, got int"),  # type: ignore[type-var]
    (lambda: convert(nn.DataParallel(Net()), _x()), TypeError, "inside of the wrapper"),
    (lambda: convert(torch.compile(Net()), _x()), TypeError, "inside of the wrapper"),  # type: ignore[type-var]
    (lambda: convert(Net(), _x(), verify=1), TypeError, "verify: expected a bool"),  # type: ignore[arg-type]
    (lambda: convert(Net(), _x(), speed=1), TypeError, "speed: expected a bool"),
    (lambda: fuse(3, _x()), TypeError, "function: expected a callable"),  # type: ignore[arg-type]
    (lambda: revert(3), TypeError, "model: expected a torch.nn.Module"),
])
def test_wrong_arguments_raise(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_writes_that_no_version_shows_are_put_back() -> None:
    class Writes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)
            self.numbers, self.generator = np.zeros(3), torch.Generator()

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            self.project.weight.data += 1
            self.numbers += 1
            self.generator.manual_seed(int(self.numbers[0]))
            return super().forward(self.norm(x[0]).expand_as(x))

    model = Writes()
    before = copy.deepcopy(model.state_dict())
    state = model.generator.get_state()
    assert not convert(model, _x())[1].converted
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.numbers.any() and torch.equal(model.generator.get_state(), state)


def test_numpy_states_are_restored() -> None:
    class Draws(Net):
        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return super().forward(x) * float(np.random.rand())  # noqa: NPY002

    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    _, report = convert(Draws(), _x())
    assert not report.converted and "NumPy" in str(report)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
