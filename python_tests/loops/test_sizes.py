"""dynamic=True: calls of sizes that were not recorded, against a copy of the model."""
import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from converted_nets import Net, Random, assert_same, draw_x, plans_are_useful  # noqa: F401
from lsnn_ext.loops import convert, fuse, sizes
from lsnn_ext.loops.paths import ATTRIBUTE
from lsnn_ext.loops.stages import _slice
from lsnn_ext.loops.trees import UnpredictableError, compress, expand, fit, set_size
from lsnn_ext.zoo.surrogates import triangle
from small_loops import run_cells


class Readings(Net):
    """Numbers of each step in results and attributes, and a buffer that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.rate, self.v = 0.0, torch.zeros(4)
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        z = super().forward(x, gain)
        rate = 0.0
        for z_t in z:  # not by sum, which is refused from Python 3.12 on
            rate += z_t.detach().mean().item()
        self.rate = rate / len(x)
        self.v = z[-1].detach().sum(0) + self.v
        with torch.no_grad():
            self.total += z.sum((0, 1))
        return z


class Several(Net):
    """Two loops, one of them backward; lists of results; a first iteration that differs."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        v = z = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        ahead, behind = [], []
        for t, x_t in enumerate(x):
            v = (v if t else v + 0.1) * self.beta + self.project(x_t) + self.back(z)
            z = triangle(v - 0.3)
            ahead.append(z)
        v = z = torch.zeros_like(z)
        for t in reversed(range(len(x))):
            v = self.beta * v + 0.5 * self.project(x[t]) + ahead[t]
            z = triangle(v - 0.5)
            behind.insert(0, z)
        both = torch.cat([torch.stack(ahead), torch.stack(behind)], -1)
        scale = torch.arange(len(x), dtype=x.dtype)[:, None, None]
        return (scale * both).view(len(x) * x.shape[1], -1) / len(x)


class Halves(Net):
    """The second half of the results, whose length is not linear in that of the input."""

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(x)[len(x) // 2 :]


class Inverse(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(x) * (1 / len(x))


def make_pair(kind: type[Any]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    original = kind()
    model, report = convert(copy.deepcopy(original), draw_x(10), dynamic=True)
    assert report.converted
    return model, original


def count_predicted(model: Any) -> int:
    return len(vars(model)[ATTRIBUTE].sizes.predicted)


def call_sizes(model: Any, original: Any, sizes: Iterable[int], *args: Any) -> None:
    for T in sizes:
        assert_same(model, original, draw_x(T), *args)


def draw_batch(B: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(10, B, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [Net, Readings, Several, Random])
@pytest.mark.parametrize("draw", [draw_x, draw_batch])
def test_the_fourth_size_is_predicted(kind: type[Any], draw: Callable[..., Tensor]) -> None:
    model, original = make_pair(kind)
    for size in (11, 40, 12):
        assert_same(model, original, draw(size, size), replays=None)
    count = count_predicted(model)
    for size in (15, 20, 14, 15, 33):
        assert_same(model, original, draw(size, size + 1), replays=True)
    assert count_predicted(model) - count == 4
    assert getattr(model, "rate", 0.0) == pytest.approx(getattr(original, "rate", 0.0))


def test_a_size_beyond_those_recorded_is_recorded() -> None:
    model, original = make_pair(Net)
    call_sizes(model, original, (9, 14))
    for T, is_predicted in ((6, False), (15, False), (13, True), (6, False), (7, True)):
        before = count_predicted(model)
        assert_same(model, original, draw_x(T))
        assert (count_predicted(model) > before) == is_predicted


@pytest.mark.parametrize("kind", [Halves, Inverse])
def test_what_is_not_linear_in_the_size_is_recorded(kind: type[Any]) -> None:
    model, original = make_pair(kind)
    call_sizes(model, original, (9, 10, 11, 12, 13, 14, 20))
    assert count_predicted(model) == 0


def test_a_change_of_the_model_is_recorded() -> None:
    model, original = make_pair(Net)
    for beta in (0.9, 0.5, 0.9):
        model.beta = original.beta = beta
        call_sizes(model, original, (9, 20, 11, 9, 14, 18))
    assert count_predicted(model) == 5  # 11, 14, 18; 14, 18; none, as all of them hold again


def test_without_the_promise_each_size_is_recorded() -> None:
    model, _ = convert(Net(), draw_x(7))
    for T in (8, 9, 10, 11):
        model(draw_x(T))
    assert count_predicted(model) == 0
    assert len(vars(model)[ATTRIBUTE].entries) == 5


def test_many_sizes_keep_a_bounded_number_of_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MOST_PREDICTED", 8)
    model, original = make_pair(Net)
    for T in (9, 25, *range(10, 25)):
        model(draw_x(T))
    assert count_predicted(model) == 8
    replayer = vars(model)[ATTRIBUTE]
    assert len(replayer.entries) == 3 + 8 and not replayer.branches
    assert_same(model, original, draw_x(15), replays=True)
    model.beta = original.beta = 0.5
    call_sizes(model, original, (12, 22, 13, *range(10, 25)))


class Counted(Net):
    """An argument that is no size decides."""

    def forward(self, x: Tensor, epoch: Any = 0) -> Tensor:
        return super().forward(x) * (2 if epoch == 4 else 1)


def test_an_argument_that_is_no_size_is_not_predicted() -> None:
    model, original = make_pair(Counted)
    for epoch in (1, 9, 5, 4, 3):
        assert_same(model, original, draw_x(12), epoch)
    assert count_predicted(model) == 0


class Cut(Net):
    """Shapes that are not linear in the length: of a part, and of a table that ends."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(20, 1, 4))

    def forward(self, x: Tensor, how: Any = "part") -> Tensor:
        if how == "table":
            return torch.stack([self.table[t] * z for t, z in enumerate(super().forward(x))])
        if how == "pad":
            return super().forward(nn.functional.pad(x, (0, 0, 0, 0, 0, -len(x) % 4)))
        return super().forward(x[:20] if how == "part" else x[::5])


@pytest.mark.parametrize(("how", "sizes"), [
    ("part", (12, 14, 16, 40, 18, 25, 13)), ("stride", (26, 27, 28, 50, 31, 27, 40)),
    ("pad", (16, 32, 24, 18, 31)), ("pad", (8, 10, 16, 12, 13, 14, 11))])
def test_shapes_that_are_not_linear_are_recorded(how: str, sizes: tuple[int, ...]) -> None:
    call_sizes(*make_pair(Cut), sizes, how)


def test_a_run_of_other_shapes_is_not_predicted() -> None:
    model, _ = make_pair(Cut)
    for T in (26, 30, 28):
        model(draw_x(T), "stride")
    template, = (one for one in vars(model)[ATTRIBUTE].sizes.templates if one.is_confirmed)
    assert template.make_entry(29, [draw_x(29), "stride"], False).plan is not None
    with pytest.raises(UnpredictableError):
        template.make_entry(36, [draw_x(36), "stride"], False)


def test_a_prediction_without_draws_leaves_the_generators_alone(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may draw meanwhile."""
    seen: list[Any] = []
    monkeypatch.setattr(sizes, "set_generator_states", seen.append)
    model, _ = make_pair(Net)
    for T in (9, 20, 12):
        model(draw_x(T))
    assert count_predicted(model) == 1 and not any(seen)


def test_a_new_equal_attribute_is_not_predicted_again() -> None:
    model, original = make_pair(Net)
    for T in (9, 20, 12, 11, 11, 11):
        model.gains = original.gains = [1.0, 2.0]
        assert_same(model, original, draw_x(T), replays=None)
    assert count_predicted(model) == 1


class Eighths(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(x)[len(x) // 8 :]


def test_a_recording_that_contradicts_removes_what_was_predicted() -> None:
    model, original = make_pair(Eighths)
    for T, count in ((15, 0), (12, 0), (13, 1), (30, 0), (20, 0)):
        assert_same(model, original, draw_x(T))
        assert count_predicted(model) == count


def test_an_index_out_of_range_raises() -> None:
    with pytest.raises(IndexError):
        _slice(0, [1, 2, 3], torch.zeros(3))
    model, original = make_pair(Cut)
    call_sizes(model, original, (12, 19, 14, 13, 16, 20), "table")
    assert count_predicted(model) == 2
    for one in (model, original):
        with pytest.raises(IndexError):
            one(draw_x(21), "table")


class Scaled(Net):
    """A factor of 1, which is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(1))

    def spike(self, v: Tensor) -> Tensor:
        return self.factor * triangle(v)


def test_a_factor_of_1_is_compared_in_predicted_calls() -> None:
    model, original = make_pair(Scaled)
    for factor, lengths in ((0.75, (9, 30, 12)), (1.0, (20,)), (0.5, (20,))):
        for one in (model, original):
            one.factor.fill_(factor)
        call_sizes(model, original, lengths)


def test_a_function_is_fused_for_all_sizes() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        return run_cells(x, w, x.shape[1])

    w = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    fused: Any = fuse(run, (draw_x(7), w), dynamic=True)
    for T in (8, 30, 10, 21):
        torch.testing.assert_close(fused(draw_x(T), w), run(draw_x(T), w))
    assert len(fused.replayer.sizes.predicted) == 2


def test_trees_of_two_sizes_define_a_third() -> None:
    def describe(n: int) -> Any:
        return n, 3 * n - 1, compress([("call", 2, t) for t in range(1, n)]), "constant"

    template = fit(describe(10), describe(14), 10, 14)
    assert set_size(template, 30) == describe(30)
    assert expand(set_size(template, 8)[2]) == [("call", 2, t) for t in range(1, 8)]
    with pytest.raises(UnpredictableError):
        fit((10, 5), (13, 6), 10, 13)
    items = [(name, t) for t in range(20) for name in "abc"]
    assert expand(compress(items)) == items
    assert len(compress(items)) == 3
