"""A converted model is the same object, and does what the original does in every call."""
import copy
import gc
import inspect
import logging
import os
import pickle
import random
import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compare import through_file
from converted_nets import (
    Meta,
    Net,
    Random,
    Stateful,
    assert_same,
    draw_x,
    make_pair,
    plans_are_useful,  # noqa: F401
    seen_replays,
)
from lsnn_ext import _ops
from lsnn_ext.loops import Refused, convert, fuse, revert
from lsnn_ext.loops.model import ATTRIBUTE
from lsnn_ext.zoo.surrogates import triangle
from small_loops import find_components


@pytest.mark.parametrize("kind", [Net, Stateful, Random, Meta])
def test_calls_are_as_those_of_the_original(kind: type[Any]) -> None:
    model, original = make_pair(kind)
    for seed in range(4):
        assert_same(model, original, draw_x(seed=seed))
    assert_same(model, original, draw_x(), replays=True)


def test_a_converted_model_is_the_same_object() -> None:
    model = Net()
    parameters = dict(model.named_parameters())
    signature, text = inspect.signature(model.forward), str(model)
    state = {key: one.clone() for key, one in model.state_dict().items()}
    converted, report = convert(model, draw_x())
    assert converted is model and isinstance(model, Net) and type(model) is not Net
    assert all(one is parameters[name] for name, one in model.named_parameters())
    assert len(list(model.modules())) == 3 and str(model) == text
    assert inspect.signature(model.forward) == signature and model.forward.__doc__ == "Spikes."
    assert model.state_dict().keys() == state.keys()
    model.load_state_dict(state)
    assert torch.equal(model.double_of(draw_x()), 2 * model(draw_x()))
    assert revert(model) is model and type(model) is Net
    assert vars(model).keys() == vars(Net()).keys()


def test_convert_leaves_no_trace() -> None:
    model = Stateful()
    x = draw_x()
    model.total.fill_(3.0)
    model.project.weight.grad = gradient = torch.ones(4, 5)
    before = copy.deepcopy(model.state_dict())
    versions = [one._version for one in model.parameters()]
    numbers = torch.random.get_rng_state()
    others = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    log = model.log
    convert(model, lambda one: one(x).sum().backward())
    assert model.v is None and model.log is log and not log
    assert model.project.weight.grad is gradient and (gradient == 1).all()
    assert model.back.weight.grad is None
    torch.testing.assert_close(model.state_dict(), before)
    assert versions == [one._version for one in model.parameters()]
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert others == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002


@pytest.mark.parametrize("name", ["copy", "deepcopy", "pickle", "save"])
def test_copies_and_pickles_are_converted_and_record_anew(name: str) -> None:
    model, original = make_pair()
    make = {"copy": copy.copy, "deepcopy": copy.deepcopy,
            "pickle": lambda one: pickle.loads(pickle.dumps(one)),
            "save": lambda one: through_file(one, weights_only=False)}[name]
    other = make(model)
    assert type(other) is type(model)
    assert_same(other, original, draw_x(), replays=False)
    assert_same(other, original, draw_x(), replays=True)
    other.beta = 0.1
    assert_same(model, original, draw_x(), replays=True)


def test_each_shape_is_recorded_once() -> None:
    model, original = make_pair()
    for replays in (False, True):
        assert_same(model, original, draw_x(5), replays=replays)
        assert_same(model, original, draw_x()[:, :1], replays=replays)
        assert_same(model, original, draw_x().requires_grad_(), replays=replays)
        assert_same(model, original, draw_x(), 2.0, replays=replays)
        with torch.no_grad():
            assert_same(model, original, draw_x(), replays=replays)
        with torch.autocast("cpu"):
            assert_same(model, original, draw_x(), replays=None if replays else False)


def test_changes_are_recorded_at_most_eight_times() -> None:
    model, original = make_pair()
    for k in range(7):
        model.beta = original.beta = k / 10
        assert_same(model, original, draw_x(), replays=False)
        assert_same(model, original, draw_x(), replays=True)
    model.beta = original.beta = 0.75
    with pytest.warns(UserWarning, match=r"the model changes between calls \(beta\)"):
        assert_same(model, original, draw_x(), replays=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(model, original, draw_x(), replays=False)
        model.beta = original.beta = 0.5
        assert_same(model, original, draw_x(), replays=True)


class Inverts(Net):
    """The inverse of a matrix, and what the user does where there is none."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        matrix = x[0].t() @ x[0] + torch.eye(5) * x[0, 0, 0]
        try:
            return super().forward(x @ torch.linalg.inv(matrix))
        except torch.linalg.LinAlgError:
            return super().forward(x * 0.5)


def test_a_replay_that_raises_gives_way_to_the_original_with_a_warning() -> None:
    model, original = make_pair(Inverts)
    singular = torch.zeros(3, 2, 5)
    with pytest.warns(RuntimeWarning, match="Inverts: expected a replay without errors, got .*ing"):
        assert_same(model, original, singular)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(model, original, singular)
        assert_same(model, original, draw_x(), replays=True)


def test_an_error_in_a_later_recording_leaves_the_original(
        monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = make_pair(Net)
    monkeypatch.setattr("lsnn_ext.loops.replay.make_plan", lambda *_: [][0])
    longer = draw_x().repeat(2, 1, 1)
    with pytest.warns(UserWarning, match="IndexError of lsnn_ext: list index out of range"):
        assert_same(model, original, longer)
    assert_same(model, original, longer)
    with pytest.raises(IndexError):
        convert(copy.deepcopy(original), draw_x())


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
        fuse(Acts(), (draw_x(), []))


@pytest.mark.parametrize("attributes, run", [
    ({}, lambda model: None), ({"forward": lambda x: x}, lambda model: model(draw_x()))])
def test_a_model_without_a_call_of_its_forward_is_not_converted(attributes: Any, run: Any) -> None:
    model = Net()
    vars(model).update(attributes)
    assert not convert(model, run)[1].converted and type(model) is Net


def test_a_class_may_override_modules() -> None:
    class Listed(Net):
        def modules(self) -> Any:  # as a library does that names them
            return dict(self._modules)

    model, report = convert(Listed(), draw_x())
    assert report.converted and revert(model) is model and type(model) is Listed


def test_a_function_is_fused() -> None:
    model = Net()
    weight = torch.rand(5, 5)

    def run(x: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return model(x @ weight) * scale, {"x": x * 2}

    fused = fuse(run, (draw_x(),))
    for seed in range(2):
        torch.testing.assert_close(fused(draw_x(seed=seed)), run(draw_x(seed=seed)))
    assert len(seen_replays) == 2 and fused.__name__ == "run" and revert(fused) is run
    weight = torch.rand(5, 5)
    torch.testing.assert_close(fused(draw_x()), run(draw_x()))
    model.beta = 0.1
    torch.testing.assert_close(fused(draw_x()), run(draw_x()))
    torch.testing.assert_close(fused(draw_x()), run(draw_x()))


def test_a_bound_method_is_fused() -> None:
    model = Net()
    fused = fuse(model.double_of, draw_x())
    torch.testing.assert_close(fused(draw_x(seed=1)), model.double_of(draw_x(seed=1)))
    assert len(seen_replays) == 1


def test_a_part_is_fused_inside_of_a_model() -> None:
    whole = nn.Sequential(nn.Linear(5, 5), Net())
    original = copy.deepcopy(whole)
    assert fuse(whole[1], torch.rand(3, 2, 5)) is whole[1]
    assert_same(whole, original, draw_x())
    assert_same(whole, original, draw_x(), replays=True)
    whole, report = convert(whole, draw_x())
    assert report.converted
    assert_same(whole[1], original[1], draw_x())
    seen_replays.clear()
    assert_same(whole, original, draw_x(), replays=True)
    assert len(seen_replays) == 1
    assert type(revert(whole)) is nn.Sequential and type(whole[1]) is Net


def test_a_collection_of_garbage_is_not_the_models() -> None:
    """Some tools time collections."""
    def timed(phase: str, info: dict[str, int]) -> None:
        time.perf_counter()

    before = gc.get_threshold()
    gc.callbacks.append(timed)
    gc.set_threshold(1)  # at nearly each new object
    try:
        _, report = convert(Net(), draw_x())
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(timed)
    assert report.converted
    assert gc.isenabled()


class Graded(Net):
    """Spikes by a factor, which is a buffer or is learned, as those of snnTorch."""

    def __init__(self, factor: float, is_learned: bool) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor), is_learned)

    def spike(self, v: Tensor) -> Tensor:
        return triangle(v) * self.factor


@pytest.mark.parametrize(("factor", "is_learned"), [(1.0, False), (1.0, True), (0.5, False)])
def test_a_factor_of_1_leaves_spikes(factor: float, is_learned: bool) -> None:
    converted, model = make_pair(lambda: Graded(factor, is_learned))
    plan = vars(converted)[ATTRIBUTE].all()[-1].plan
    (_, kernel), = find_components(plan)[0].neuron.kernels.values()
    assert _ops.find_sizes(kernel.key).has_number_spikes == (factor != 1 or is_learned)
    for new in (factor, 0.25, 1.0):  # at the same place
        for one in (model, converted):
            one.factor.data.fill_(new)
        assert_same(converted, model, draw_x())


class CountsSpikes(Net):
    """Counts spikes in a buffer, which then has a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        spikes = super().forward(x, gain)
        self.count += spikes.sum()
        return spikes


def test_a_buffer_that_gets_a_gradient_is_restored() -> None:
    model: Any = CountsSpikes()
    _, report = convert(model, draw_x())
    assert not report.converted and "add_" in report.reason
    assert not model.count.requires_grad and model.count.is_leaf and model.count == 0


def test_what_is_set_on_the_class_is_set_on_the_original_one() -> None:
    class Own(Net):
        beta = 0.9

        def __init__(self) -> None:
            super().__init__()
            del self.beta

    model, original = make_pair(Own)
    kind: Any = type(model)
    for beta in (0.5, 0.1):
        kind.beta = beta
        assert Own.beta == beta and "beta" not in vars(kind)
        assert_same(model, original, draw_x(), replays=False)
        assert_same(model, original, draw_x(), replays=True)
    del kind.beta  # as a patch is undone that saw no attribute of this class itself
    assert Own.beta == model.beta == 0.9
    forward = kind.forward
    kind.forward = lambda self, x: 2 * forward(self, x)
    torch.testing.assert_close(model(draw_x()), 2 * original(draw_x()))
    kind.forward = forward
    assert_same(model, original, draw_x(), replays=True)
