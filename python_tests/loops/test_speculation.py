"""Models that read numbers of tensors: Python runs in each call, on results of the plan."""
import copy
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsnn_ext import convert
from small_loops import spike

T, B, N = 12, 3, 5


class Logs(nn.Module):
    """Logs numbers in several ways, and branches on one that is seldom large."""

    act: Callable[["Logs", Tensor, Tensor], Any] = staticmethod(lambda self, v, z: None)

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)
        self.register_buffer("mean", torch.zeros(N))
        self.rate, self.calls, self.counts, self.stats = 0.0, 0, [0.0], {"v": [0.0]}
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        v = z = torch.zeros(x.shape[1], N, dtype=x.dtype)
        if self.state is not None:
            v = self.state.detach()
        arrays, total = [], 0
        for one in x:
            v = 0.9 * v + one + self.back(z)
            z = spike(v - 0.5)
            total += z.sum().item()
            arrays.append(z.detach().numpy())
            self.act(self, v, z)
            if total > 1000:
                v = v / 2
        self.state = v
        self.mean.mul_(0.9).add_(0.1 * z.detach().mean(0))
        self.rate = float(z.mean())
        self.calls += 1
        self.counts.append(total)
        self.stats["v"].append(f"{z.mean():.4f}")
        return z, total, arrays


def draw(seed: int = 0, scale: float = 1.0, batch: int = B) -> Tensor:
    return scale * torch.randn(T, batch, N, generator=torch.Generator().manual_seed(seed))


def make_pair(kind: type[Logs] = Logs) -> tuple[Any, Any]:
    torch.manual_seed(0)
    original = kind()
    converted, report = convert(copy.deepcopy(original), draw())
    assert report.converted and report.along.startswith("test_speculation.py:")
    assert "so Python runs in each call, on the results of the kernels" in str(report)
    check_state(converted, original)  # convert restores it
    return converted, original


def check_state(model: Any, original: Any) -> None:
    for name in ("rate", "calls", "counts", "stats"):
        assert getattr(model, name) == getattr(original, name)
    for name in ("state", "mean"):
        torch.testing.assert_close(getattr(model, name), getattr(original, name))


def compare(model: Any, original: Any, x: Tensor) -> None:
    got, want = model(x), original(x)
    torch.testing.assert_close(got[0], want[0])
    assert got[1] == want[1] and all(map(np.array_equal, got[2], want[2]))
    torch.testing.assert_close(torch.autograd.grad(got[0].sum(), [*model.parameters()]),
                               torch.autograd.grad(want[0].sum(), [*original.parameters()]))
    check_state(model, original)


def count_others(model: Any) -> int:
    """Calls in which Python did something else than in the recorded one."""
    return sum(model._lsnn_replayer.branches.values())


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lsnn_ext.loops.plan.LEAST_GAIN", 0)


def test_numbers_lists_counters_and_states_are_those_of_the_original() -> None:
    model, original = make_pair()
    for seed in range(6):
        compare(model, original, draw(seed))
    model.state = original.state = None
    for seed in range(3):
        compare(model, original, draw(seed, batch=B + 1))
    assert not count_others(model)
    assert any(entry.plan is not None for entry in model._lsnn_replayer.all())
    model.state = original.state = None
    with torch.no_grad():
        for seed in range(3):
            assert model(draw(seed))[1] == original(draw(seed))[1]


class Timed(nn.Module):
    """Reads no number; Python runs for a clock and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(N, N)
        self.times: list[float] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times.append(time.perf_counter())
        z = v = torch.zeros(B, N)
        for one in x:
            v = 0.9 * v + one + self.back(z)
            z = spike(v - 0.5)
        self.calls += 1
        return v


def test_clocks_go_on() -> None:
    model = Timed()
    original = copy.deepcopy(model)
    model, report = convert(model, draw())
    assert report.converted and report.along.startswith("test_speculation.py:")
    for seed in range(4):
        torch.testing.assert_close(model(draw(seed)), original(draw(seed)))
    assert model.calls == 4 and model.times == sorted({*model.times}) and len(model.times) == 4
    assert not count_others(model)


# ----------------------------------------------------------------------- other calls than recorded
def multiply(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.extra = v * 2


def use_number(self: Logs, v: Tensor, z: Tensor) -> None:
    self.extra = v * max(1.0, round(v.abs().max().item() / 20))


def keep(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20 and self.extra is None:
        self.extra = v  # no call of torch


def keep_in_a_cycle(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20 and self.extra is None:
        self.extra = [v]
        self.extra.append(self.extra)


def stop(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        raise ValueError("large")


def catch(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        try:
            self.extra = v * 3
        except Exception:
            self.extra = None


def catch_all(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        try:
            self.extra = v * 3
        except BaseException:
            self.extra = None


def switch(self: Logs, v: Tensor, z: Tensor) -> None:
    with torch.set_grad_enabled(float(v.abs().max()) <= 20):
        self.extra = v * 3


def compile_script(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.extra = DOUBLE(v)


def apply(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.extra = spike(v)


def call_operator(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.extra = torch.ops.aten.mul.Tensor(v, v)


def tag(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        v.tag = 1
    self.extra = getattr(v, "tag", 0)


def add_attribute(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.other = [1]
        self.counts.append(-1)


def draw_random(self: Logs, v: Tensor, z: Tensor) -> None:
    if float(v.abs().max()) > 20:
        self.extra = float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002


@torch.jit.script
def DOUBLE(x: Tensor) -> Tensor:
    return x + x


@pytest.mark.parametrize("act", [
    multiply, use_number, keep, keep_in_a_cycle, stop, catch, catch_all, switch, compile_script,
    apply, call_operator, tag, add_attribute, draw_random])
def test_other_calls_run_the_original(act: Any) -> None:
    class Acts(Logs):
        extra: Any = None

    Acts.act = staticmethod(act)
    model, original = make_pair(Acts)
    for seed in range(4):
        compare(model, original, draw(seed))
    x = draw(4, 40.0)
    before = count_others(model)
    if act is stop:
        for one in (model, original):
            with pytest.raises(ValueError, match="large"):
                one(x)
    else:
        for one in (model, original):
            torch.manual_seed(1)
            np.random.seed(1)  # noqa: NPY002
            one.made = one(x)
        assert model.made[1] == original.made[1]
        torch.testing.assert_close(model.made[0], original.made[0])
        extra = (model.extra, original.extra)
        if act is keep_in_a_cycle:
            extra = model.extra[0], original.extra[0]
        if isinstance(extra[1], Tensor):
            torch.testing.assert_close(*extra)
            assert extra[0].requires_grad == extra[1].requires_grad
        else:
            assert extra[0] == extra[1]
        assert getattr(model, "other", None) == getattr(original, "other", None)
    check_state(model, original)
    assert count_others(model) > before or act is add_attribute
    for seed in range(5, 8):
        compare(model, original, draw(seed))


def test_other_calls_may_be_rare() -> None:
    class Acts(Logs):
        act = staticmethod(multiply)

    model, original = make_pair(Acts)
    for seed in range(90):
        model.state = original.state = None
        compare(model, original, draw(seed, 40.0 if seed % 9 == 8 else 1.0))
    assert 0 < count_others(model) < 8 and len(model._lsnn_replayer.all()) < 8


def test_a_model_that_goes_on_doing_others_runs_the_original() -> None:
    class Acts(Logs):
        act = staticmethod(lambda self, v, z: v * float(v.mean()))

    model, original = make_pair(Acts)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for seed in range(14):
            compare(model, original, draw(seed))
    assert ["got others in 8 calls" in str(one.message) for one in found] == [True]


def test_threads_get_their_own_results() -> None:
    model, original = make_pair()
    model.eval()
    xs = [draw(seed) for seed in range(8)]
    want = [copy.deepcopy(original)(x)[0] for x in xs]
    got: dict[int, Tensor] = {}

    def run(k: int) -> None:
        got[k] = copy.deepcopy(original)(xs[k])[0] if k % 2 else model_of[k](xs[k])[0]

    model_of = {k: copy.deepcopy(model) for k in range(0, 8, 2)}
    threads = [threading.Thread(target=run, args=(k,)) for k in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for k in range(8):
        torch.testing.assert_close(got[k], want[k])


# --------------------------------------------------------------------------------- what is refused
class Writes(Logs):
    act = staticmethod(lambda self, v, z: np.copyto(v.detach().numpy(), 0.0))


class Masks(Logs):
    def forward(self, x: Tensor) -> Any:
        x = x.clone()
        x[x > 1] = 2 * x[x > 1]
        return super().forward(x)


@pytest.mark.parametrize("kind, reason", [
    (Writes, "numpy: expected no write to an array"),
    (Masks, "item: expected no number of a tensor in Python"),
])
def test_refused(kind: Any, reason: str) -> None:
    torch.manual_seed(0)
    original = kind()
    model, report = convert(copy.deepcopy(original), draw())
    assert not report.converted and reason in report.reason
    assert model(draw())[1] == original(draw())[1]


class Slope(torch.autograd.Function):
    """Its backward pass reads what each call may change."""

    settings: Any = None

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:  # type: ignore[override]
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * Slope.settings.rate


def test_a_number_that_a_function_reads_is_refused() -> None:
    class Acts(Logs):
        act = staticmethod(lambda self, v, z: Slope.apply(v))

    original = Acts()
    Slope.settings = model = copy.deepcopy(original)
    try:
        _, report = convert(model, draw())
    finally:
        Slope.settings = None
    assert not report.converted and ": expected a value that no autograd" in report.reason
