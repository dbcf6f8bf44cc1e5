"""Numbers of tensors and counters: kept and computed with in Python, but not read."""
import copy
import datetime
import json
import math
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import converted_nets
from converted_nets import Net, plans_are_useful, seen_replays
from lsnn_ext.loops import convert
from lsnn_ext.loops.unread import Unread

__all__ = ["plans_are_useful"]


class Logs(Net):
    """The step notes what it likes of z in a list, and end what it likes of that."""

    note: Callable[..., Any]
    end: Callable[..., Any] = staticmethod(lambda self, log: log)
    kept: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__()
        self.total: Any = 0
        self.rate: Any = None
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor, gain: float = 1.0) -> Any:
        v = z = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        spikes, log = [], []
        for t in range(len(x)):
            v = self.beta * v + gain * self.project(x[t]) + self.back(z)
            z = self.spike(v - 0.3)
            spikes.append(z)
            log.append(self.note(z, v))
        self.mean += z.detach().mean(0)
        return torch.stack(spikes), self.end(self, log)


def read_spikes(z: Tensor, v: Tensor) -> Any:
    return z.sum().item()


def sum_in_order(self: Any, log: list[Any]) -> Any:
    n = 0
    for one in log:
        n += one
    return {"n": n, "share": n / len(log)}, log[-1], -n, abs(n) % 7, n ** 2, n // 2


def count(self: Any, log: list[Any]) -> Any:
    self.calls += 1
    self.total = self.total + log[0]
    last, self.rate = self.rate, (log[-1], [log[0] * 2.0])
    return self.calls, self.total, last if isinstance(last, float) else None


def move(self: Any, log: list[Any]) -> Any:
    before, self.rate = self.rate, self.total
    self.total += log[0]
    return before if before is None else before + 1


def keep(self: Any, log: list[Any]) -> Any:
    self.rate = log[0]
    return None


def list_anew(self: Any, log: list[Any]) -> Any:
    self.rate = []
    for one in log:
        self.rate.append(one)
    return len(self.rate)


GOOD = {
    "item": (read_spikes, sum_in_order),
    "membranes": (lambda z, v: v.mean().item(), sum_in_order),
    "integers": (lambda z, v: (z > 0).sum().item(), sum_in_order),
    "attributes": (read_spikes, count),
    "moved": (read_spikes, move),
    "arrays": (lambda z, v: (z.detach().numpy(), v.detach().cpu().numpy().mean(1)), None),
    "array attribute": (lambda z, v: v.detach().numpy(), keep),
    "NumPy": (lambda z, v: np.float32(2) * v.detach().numpy().mean(), sum_in_order),
    "functions": (lambda z, v: (np.mean(v.detach().numpy()), np.abs(v.detach().numpy())), None),
    "list attribute": (read_spikes, list_anew),
    "buffer": (lambda z, v: 0, lambda self, log: (self.mean.sum().item(), self.mean.tolist())),
    "protocols": (lambda z, v: [isinstance(z.mean().item(), one) for one in (
        float, Hashable, Iterable)] + [hasattr(z.mean().item(), "__len__")], None),
    "lists": (lambda z, v: (round(z.mean().item(), 2), v.tolist(), v.mean().tolist(),
                            v.detach().numpy().astype(np.float32).flatten().tolist()), None),
    "sum": (lambda z, v: sum([z.sum().item(), v.sum().item()]), None),
    "class": (lambda z, v: z.sum().item() if isinstance(z.sum().item(), float) else None, None),
}


def read(function: Callable[[Any], Any]) -> Any:
    """A step that reads a number, and catches what that raises."""
    def note(z: Tensor, v: Tensor) -> Any:
        try:
            return function(z.sum().item())
        except Exception:
            return None

    return note


def change(array: Any) -> Any:
    array += 1
    return array


BAD = {
    "branch": read(lambda n: 1 if n else 2),
    "comparison": read(lambda n: n > 3),
    "equality": read(lambda n: n == 3),
    "text": read(lambda n: f"{n:.2f}"),
    "float": read(float),
    "floor": read(math.floor),
    "hash": read(lambda n: {n: 1}),
    "math": read(math.sqrt),
    "type": read(lambda n: type(n).__name__),
    "method": read(lambda n: n.is_integer()),
    "copy": read(copy.deepcopy),
    "list of numbers": read(lambda n: np.mean([n, n])),
    "function of NumPy": read(lambda n: np.exp(n)),
    "tensor": read(lambda n: torch.tensor(n)),
    "C code": read(json.dumps),
    "class of C": read(datetime.timedelta),
    "settings of NumPy": lambda z, v: np.errstate(all="raise") and z.sum().item(),
    "recomputed": lambda z, v: checkpoint(lambda v: v * v.sum().item(), v, use_reentrant=False),
    "factor": read(lambda n: torch.ones(2) * n),
    "index": lambda z, v: v[int(z.sum().item()) % 2],
    "array in place": lambda z, v: change(v.detach().numpy()),
    "list in place": lambda z, v: v.tolist().append(1),
    "part of a list": lambda z, v: v.tolist()[0],
    "element": lambda z, v: v.detach().numpy()[0],
    "tensor of an array": lambda z, v: torch.from_numpy(v.detach().numpy()),
    "an array whose tensor changes": lambda z, v: (one := v.detach().clone(), one.numpy(),
                                                   one.add_(1))[1],
}


if sys.version_info >= (3, 12):  # where sum has another order of additions for floats
    BAD["sum"] = GOOD.pop("sum")[0]


def make(note: Any = read_spikes, end: Any = None) -> Any:
    torch.manual_seed(0)
    members = {"note": staticmethod(note)} | ({} if end is None else {"end": staticmethod(end)})
    return type("Logs", (Logs,), members)().double()


def draw_x(T: int = 3, seed: int = 0) -> Tensor:
    return converted_nets.draw_x(T, seed).double()


def call(model: Any, x: Tensor) -> list[Any]:
    torch.manual_seed(3)
    model.zero_grad()
    result = model(x)
    result[0].sum().backward()
    found = [result, model.total, model.rate, model.calls, model.mean.clone(),
             [one.grad for one in model.parameters()]]
    assert not any(isinstance(one, Unread) for one in pytree.tree_leaves(found))
    return found


def assert_same(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        assert type(a) is type(b)
        if isinstance(a, Tensor | float | int | np.ndarray | np.generic):
            torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b))
        else:
            assert a == b


@pytest.mark.parametrize("name", GOOD)
def test_numbers_are_those_of_the_original(name: str) -> None:
    model = make(*GOOD[name])
    original = copy.deepcopy(model)
    model, report = convert(model, draw_x())
    assert report.converted, report.reason
    assert_same([model.total, model.rate, model.calls], [0, None, 0])
    for k in range(6):
        if k == 4:
            model.total = original.total = 0.5
        x = draw_x(4 if k == 3 else 3, seed=k)
        assert_same(call(model, x), call(original, x))
    assert len(seen_replays) >= 2


@pytest.mark.parametrize("name", BAD)
def test_a_number_that_is_read_is_refused(name: str) -> None:
    model = make(BAD[name], None)
    before = copy.deepcopy(model.state_dict())
    model, report = convert(model, draw_x())
    assert not report.converted and report.reason
    torch.testing.assert_close(model.state_dict(), before)
    assert_same(call(model, draw_x()), call(make(BAD[name], None), draw_x()))


def test_a_recording_has_no_effects() -> None:
    """What the recorded call does is undone; the original does it once."""
    def end(self: Any, log: list[Any]) -> Any:
        self.kept.append(len(log))
        return torch.rand(1), nn.functional.dropout(torch.ones(9)), log

    model = make(end=end)
    model.kept = []
    original = copy.deepcopy(model)
    model, report = convert(model, draw_x())
    assert report.converted and model.kept == []
    x = draw_x(5)  # recorded
    for _ in range(2):
        assert_same(call(model, x), call(original, x))
        assert model.kept == original.kept
        model.kept, original.kept = [], []


def test_an_error_at_a_later_recording_leaves_no_trace() -> None:
    def end(self: Any, log: list[Any]) -> Any:
        self.total = self.total + log[0]
        if len(log) == 5:
            raise ValueError("five")
        return log

    model = make(end=end)
    original = copy.deepcopy(model)
    model, _ = convert(model, draw_x())
    for k, T in enumerate((3, 5, 3, 4)):
        x = draw_x(T, seed=k)
        if T == 5:
            for one in (model, original):
                with pytest.raises(ValueError, match="five"):
                    one(x)
            assert_same([model.total], [original.total])
        else:
            assert_same(call(model, x), call(original, x))


class Remembers(Logs):
    """Keeps a state with its history, and what a user's hook of it does."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = None

    def forward(self, x: Tensor, gain: float = 1.0) -> Any:
        v = torch.zeros(x.shape[1], 4, dtype=x.dtype) if self.v is None else self.v
        out = []
        for t in range(len(x)):
            v = self.beta * v + gain * self.project(x[t])
            self.total += v.mean().item()
            out.append(v)
        self.v = v
        return torch.stack(out), v.detach(), v.detach().numpy()


def test_a_state_with_a_history() -> None:
    torch.manual_seed(0)
    original = Remembers().double()
    model, report = convert(copy.deepcopy(original), draw_x())
    assert report.converted, report.reason
    for k in range(4):
        x = draw_x(seed=k)
        results = [one(x) for one in (model, original)]
        for out, *_ in results:
            out.sum().backward(retain_graph=True)
        torch.testing.assert_close(results[0], results[1])
        torch.testing.assert_close([one.grad for one in model.parameters()],
                                   [one.grad for one in original.parameters()])
        assert model.total == pytest.approx(original.total)
        assert model.v.grad_fn is not None


def test_results_share_memory_as_those_of_the_original() -> None:
    torch.manual_seed(0)
    original = Remembers().double()
    model, _ = convert(copy.deepcopy(original), draw_x())
    for one in (model, original):
        one.v = None
        one(draw_x())
        one.v = None
        out, last, array = one(draw_x())
        array[:] = 7.0
        assert bool((last == 7.0).all()) and not bool((out == 7.0).any())
        last.fill_(3.0)
        assert bool((array == 3.0).all()) and not bool((out == 3.0).any())
        assert bool((one.v == 3.0).all())


DEFAULT = (torch.ones(4, dtype=torch.float64),)


class Shares(Logs):
    """Holds what a default and a hook hold, too, and a tag of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters_of_cell = (DEFAULT[0],)
        self.back.weight.no_decay = True
        self.gain = 1.0

    def scale(self, z: Tensor, factors: tuple[Tensor, ...] = DEFAULT) -> Tensor:
        return z * factors[0] * self.parameters_of_cell[0]

    def forward(self, x: Tensor, gain: float = 1.0) -> Any:
        z = self.scale(torch.zeros(x.shape[1], 4, dtype=x.dtype))
        v, out = z, []
        for t in range(len(x)):
            v = self.beta * v + gain * self.project(x[t]) + self.back(z)
            z = self.spike(self.scale(v) - 0.3)
            self.total += z.sum().item()
            out.append(z)
        self.gain = len(x)
        return torch.stack(out), self.back.weight.detach(), self.project.bias.data


@pytest.mark.parametrize("is_hooked", [False, True])
def test_a_copy_shares_defaults_but_never_reaches_the_model(is_hooked: bool) -> None:
    torch.manual_seed(0)
    original, model = Shares().double(), Shares().double()
    model.load_state_dict(original.state_dict())
    if is_hooked:
        model.project.register_forward_hook(lambda module, args, out: out * model.gain)
    model, report = convert(model, draw_x())
    assert report.converted != is_hooked
    assert not is_hooked or "inside of the model" in report.reason or "copies" in report.reason
    for k in range(0 if is_hooked else 3):
        x = draw_x(seed=k)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # as of a replay that raises
            torch.testing.assert_close(model(x), original(x))
        assert model.total == original.total and len(seen_replays) > k


REGISTRY: dict[Any, float] = {}


def look_up(self: Any, log: list[Any]) -> Any:
    return log[0] * REGISTRY.get(weakref.ref(self.project), 1.0)


def keep_outside(self: Any, log: list[Any]) -> None:
    Logs.kept.append(log[0])


def tag(self: Any, log: list[Any]) -> None:
    self.back.weight.rate = 1.0


def make_folder(self: Any, log: list[Any]) -> None:
    os.mkdir("folder")


@pytest.mark.parametrize(("end", "reason"), [
    (look_up, "inside of the model"), (keep_outside, "attributes of the model"),
    (tag, "back.weight: expected no new attributes of a tensor"), (make_folder, "mkdir"),
    (count, "rate: expected a dense state"), (None, "copy.deepcopy")])
def test_effects_are_refused(end: Any, reason: str, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a model that cannot be copied."""
    monkeypatch.chdir(tmp_path)
    model = make((lambda z, v: None) if end in (tag, make_folder) else read_spikes, end)
    REGISTRY[weakref.ref(model.project)] = 2.0
    if end is None:
        model.lock = threading.Lock()
    if end is count:
        model.rate, model.rest = 2 * torch.ones(2, 4, requires_grad=True)
    _, report = convert(model, draw_x())
    assert not report.converted and reason in report.reason
    assert Logs.kept == []


def test_an_expanded_input_with_nan() -> None:
    model, _ = convert(make(), draw_x())
    x = torch.full((1, 2, 5), torch.nan, dtype=torch.float64).expand(3, 2, 5)
    assert bool(x.isnan().all()) and len(model(x)) == 2
    convert(make(lambda z, v: None, None), x)
