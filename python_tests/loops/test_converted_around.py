"""A converted model under transforms, in threads, profiled, and what stays alive of it."""
import copy
import cProfile
import gc
import pstats
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from converted_nets import (
    Net,
    Smooth,
    Stateful,
    assert_same,
    draw_x,
    make_pair,
    plans_are_useful,  # noqa: F401
    seen_replays,
)
from lsnn_ext.loops import convert, fuse, replay, revert
from lsnn_ext.loops.ir import Refused
from lsnn_ext.loops.modes import copy_inference_states
from surrogates import SpyTorch


def _fake(model: Any, x: Tensor) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(x)).shape


def _count(model: Any, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() > 0
    return counter.get_total_flops()


def _replicate(model: Any, x: Tensor) -> Tensor:
    replica = model._replicate_for_data_parallel()
    assert type(replica) is type(model)
    return replica(x)


@pytest.mark.parametrize("run", [
    lambda model, x: torch.export.export(model, (x,)).module()(x),
    lambda model, x: torch.vmap(model)(x[None])[0],
    lambda model, x: torch.func.functional_call(
        model, {"back.weight": torch.zeros(4, 4)}, (x,)),
    lambda model, x: torch.jit.trace(model, x, check_trace=False)(x),
    lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    lambda model, x: torch.func.grad(lambda one: model(one).sum())(x), _fake, _count, _replicate,
], ids=["export", "vmap", "functional_call", "trace", "jvp", "grad", "fake", "flops", "replica"])
def test_what_looks_at_a_model_sees_the_original(run: Any) -> None:
    model, original = make_pair(Smooth)
    torch.testing.assert_close(run(model, draw_x()), run(original, draw_x()))
    assert not seen_replays
    assert_same(model, original, draw_x(), replays=True)


@pytest.mark.parametrize("is_function", [False, True])
def test_torch_compile_breaks_its_graph_around_a_replay(is_function: bool) -> None:
    """One graph of the model would have the loops unrolled."""
    model, original = make_pair(Net)
    run: Any = fuse(original.forward, draw_x()) if is_function else model
    count = len(seen_replays)
    compiled = torch.compile(lambda x: run(x * 1.0) + 1.0, backend="eager")
    torch.testing.assert_close(compiled(draw_x()), original(draw_x()) + 1.0)
    assert len(seen_replays) > count
    with pytest.raises(Exception, match="a converted model replays outside of graphs"):
        torch.compile(lambda x: run(x), backend="eager", fullgraph=True)(draw_x())


@pytest.mark.parametrize("name", ["project", "back"])
def test_compiled_parts_are_recorded_as_they_are_written(name: str) -> None:
    original = Net()
    model = copy.deepcopy(original)
    setattr(model, name, torch.compile(getattr(model, name), backend="aot_eager"))
    counters.clear()
    model, report = convert(model, draw_x())
    assert report.converted, report
    assert not counters["frames"]  # nothing is compiled meanwhile, such as the recorder
    assert_same(model, original, draw_x(), replays=True)


def test_a_model_that_is_parametrized_later_runs_the_original() -> None:
    """Its class becomes a subclass, until the parametrization is removed."""
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return super().forward(x * self.scale.sum(), gain)

    model, original = make_pair(Scaled)
    for one in (model, original):
        parametrize.register_parametrization(one, "scale", nn.Tanh())
    assert_same(model, original, draw_x(), replays=False)
    for one in (model, original):
        parametrize.remove_parametrizations(one, "scale")
    assert_same(model, original, draw_x())
    assert_same(model, original, draw_x(), replays=True)


def test_checkpoints_are_exact() -> None:
    model, original = make_pair()
    for T in (3, 4):  # recorded before, and not
        x = draw_x(T)
        for one in (model, original):
            one.zero_grad()
            for _ in range(2):
                checkpoint(one, x, use_reentrant=False).sum().backward()
        torch.testing.assert_close([p.grad for p in model.parameters()],
                                   [p.grad for p in original.parameters()])


def test_a_shape_that_begins_in_a_checkpoint_is_recorded_outside() -> None:
    """A call that the original has run is recomputed by it, whatever is recorded meanwhile."""
    model, original = make_pair()
    x = draw_x(5)
    for one in (model, original):
        result = checkpoint(one, x, use_reentrant=False)
        one(x)
        result.sum().backward()
    torch.testing.assert_close(model.back.weight.grad, original.back.weight.grad)
    assert_same(model, original, x, replays=True)


@pytest.mark.parametrize("replays", [False, True])
def test_calls_of_batch_norm_before_the_backward_pass(replays: bool) -> None:
    """Its running statistics, which a graph holds, get no new version."""
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return torch.stack([self.norm(one) for one in super().forward(x)])

    model, original = make_pair(Normed)
    for one in (model, original):
        first, second = (one(draw_x(3 if replays else 6, seed)) for seed in (0, 1))
        (first - second).square().sum().backward()
    assert len(seen_replays) == 1 + replays
    torch.testing.assert_close([p.grad for p in model.parameters()],
                               [p.grad for p in original.parameters()])
    torch.testing.assert_close(model.state_dict(), original.state_dict())


def test_a_surrogate_that_changes_before_its_backward_pass_raises(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """The original reads it there; kernels have the numbers of the forward pass."""
    class Own(Net):
        spike = staticmethod(SpyTorch.apply)

    model, original = make_pair(Own)
    loss, later = (model(draw_x()).sum() for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(SpyTorch, "scale", 20.0)
        with pytest.raises(RuntimeError, match="scale: expected what a backward reads to stay"):
            loss.backward()
        assert_same(model, original, draw_x(), replays=False)
        assert_same(model, original, draw_x(), replays=True)
    later.backward()
    assert_same(model, original, draw_x(), replays=True)


def test_inference_mode_is_that_of_no_grad() -> None:
    """States that it leaves may be those of a call with gradients."""
    model, original = make_pair(Stateful)
    x = draw_x()
    for _ in range(4):
        with torch.no_grad():
            want = original(x)
        with torch.inference_mode():
            got = model(2 * x / 2)
            model.last = 1 * model.last  # as a function of a package that resets states
        torch.testing.assert_close(got, want)
    assert len(seen_replays) == 4 and not model.v.is_inference()
    for replays in (False, False, True):  # of a state without a gradient, and with one
        assert_same(model, original, x, replays=replays)


def test_states_of_inference_mode_that_share_memory_stay() -> None:
    model: Any = Net()
    with torch.inference_mode():
        model.v = torch.zeros(3)
        model.first = model.v[:1]
    copy_inference_states(model)
    assert model.v.is_inference() and model.first.data_ptr() == model.v.data_ptr()
    del model.first
    copy_inference_states(model)
    assert not model.v.is_inference()


def test_inference_mode_returns_and_writes_arguments() -> None:
    class Writes(Net):
        def forward(self, x: Tensor, gain: float = 1.0) -> Any:
            spikes = super().forward(x)
            return (x.mul_(2), spikes) if gain == 2 else (x, spikes)

    model, original = make_pair(Writes)
    for gain in (1.0, 2.0, 1.0, 2.0):
        with torch.inference_mode():
            x, y = draw_x(), draw_x()
            (got, spikes), (_, wanted) = model(x, gain), original(y, gain)
        assert got is x and torch.equal(x, y) and torch.equal(spikes, wanted)


def test_a_schedule_is_recorded_as_often_as_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings with many replays make room for others."""
    monkeypatch.setattr(replay, "EARNED", 2)
    model, original = make_pair()
    for epoch in range(2 * replay.CHANGES):
        model.beta = original.beta = 0.8 - epoch / 100
        for call in range(4):
            assert_same(model, original, draw_x(), replays=call > 0)


def test_a_call_inside_of_a_call_runs_the_original() -> None:
    class Twice(Net):
        depth = 0

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return self(x[:1]) if len(x) > 1 else super().forward(x)

    model, original = make_pair(Twice)
    assert_same(model, original, draw_x(), replays=True)


def test_what_replaces_code_of_torch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries do: a hook of all modules, a function that modules call, a forward that calls
    the one of before."""
    model, original = make_pair()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _, out: 2 * out if isinstance(module, nn.Linear) else None)
    assert_same(model, original, draw_x(), replays=False)
    handle.remove()
    assert_same(model, original, draw_x(), replays=True)
    for one in (model, original):
        one.forward = lambda x, forward=one.forward: 2 * forward(x)
    assert_same(model, original, draw_x())
    assert_same(model, original, draw_x(), replays=True)
    linear = nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", lambda *args: 2 * linear(*args))
        assert_same(model, original, draw_x(), replays=False)
        _, report = convert(Net(), draw_x())
        assert "torch.nn.functional.linear: expected that of torch" in report.reason


def test_what_a_profiler_hinders_is_recorded_after_it() -> None:
    """with_stack=True reads attributes of tensors."""
    model, original = make_pair()
    with torch.profiler.profile(with_stack=True):
        assert_same(model, original, draw_x(5))
    assert_same(model, original, draw_x(5))
    assert_same(model, original, draw_x(5), replays=True)


def test_convert_runs_under_a_profiler() -> None:
    model = Net()
    with cProfile.Profile() as profiler:
        _, report = convert(model, draw_x())
        model(draw_x())
    assert report.converted, str(report)
    assert sys.getprofile() is None
    assert any(function == "forward" for _, _, function in pstats.Stats(profiler).stats)


def test_a_written_buffer_that_is_an_input_runs_the_original() -> None:
    class Writes(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.zeros(3, 2, 5))

        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            self.kept += 1
            return super().forward(x + self.kept)

    model, original = make_pair(Writes)
    assert_same(model, original, draw_x(), replays=True)
    torch.testing.assert_close(model(model.kept), original(original.kept))
    torch.testing.assert_close(model(model.kept[:]), original(original.kept[:]))
    torch.testing.assert_close(model.kept, original.kept)
    assert len(seen_replays) == 1


def test_a_replay_keeps_no_values() -> None:
    """Memory is free after a call, without the collection of cycles."""
    def count_values() -> int:
        return sum(isinstance(one, Tensor) and one.dim() > 1 for one in gc.get_objects())

    (model, _), x = make_pair(), draw_x()
    model(x)
    gc.collect()
    gc.disable()
    try:
        before = count_values()
        for _ in range(3):
            model(x)
        assert count_values() <= before and len(seen_replays) == 4
    finally:
        gc.enable()


def test_a_model_is_collected() -> None:
    model, _ = make_pair(Stateful)
    model(draw_x())
    gone = weakref.ref(model)
    seen_replays.clear()
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("call, error, message", [
    (lambda: convert(3, draw_x()), TypeError, "model: expected a torch.nn.Module, got int"),  # type: ignore[type-var]
    (lambda: convert(nn.DataParallel(Net()), draw_x()), TypeError, "inside of the wrapper"),
    (lambda: convert(torch.compile(Net()), draw_x()), TypeError, "inside of the wrapper"),  # type: ignore[type-var]
    (lambda: convert(Net.__new__(Net), draw_x()), TypeError, r"calls super\(\).__init__\(\), got"),
    (lambda: convert(Net(), draw_x(), verify=1), TypeError, "verify: expected a bool"),  # type: ignore[arg-type]
    (lambda: convert(Net(), draw_x(), speed=1), TypeError, "speed: expected a bool"),
    (lambda: fuse(3, draw_x()), TypeError, "function: expected a callable"),  # type: ignore[arg-type]
    (lambda: fuse(lambda net, x: net(x), (Net(), draw_x())), Refused,
     r"got Net; put other objects into the function: fuse\(lambda x: run\(net, x\), x\)"),
    (lambda: fuse(lambda times, x: Net()(x), (np.zeros(3), draw_x())), Refused,
     "expected dense tensors and plain values, got ndarray; put"),
    (lambda: convert(torch.jit.script(nn.Linear(3, 3)), draw_x()), TypeError,
     r"got a torch\.jit\.ScriptModule; convert the nn\.Module that it was made of"),
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
    assert not convert(model, draw_x())[1].converted
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not model.numbers.any() and torch.equal(model.generator.get_state(), state)


def test_numpy_states_are_restored() -> None:
    class Draws(Net):
        def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
            return super().forward(x) * float(np.random.rand())  # noqa: NPY002

    before = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    _, report = convert(Draws(), draw_x())
    assert not report.converted and "NumPy" in str(report)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
