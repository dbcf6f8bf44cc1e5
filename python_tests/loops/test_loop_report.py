"""The report of convert: what became of each loop, how equal it is, and how much faster."""
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import converted_nets
from converted_nets import Net, draw_x
from lsnn_ext.loops import Refused, convert, fuse
from lsnn_ext.loops.report import Report, Speed, describe, measure_speed
from lsnn_ext.loops.verify import verify
from lsnn_ext.zoo.surrogates import super_spike
from small_loops import line_of, prepare, random, spike

T, B, N = 12, 3, 5


def mixed(x, w, w_out, slope):
    """A recurrence that is fused, one that is not, a product between them, and draws."""
    v, z = x.new_zeros(B, N), x.new_zeros(B, N)
    y = x.new_zeros(B, N)
    out = []
    for x_t in x.unbind(0):
        v = slope * v + torch.nn.functional.dropout(x_t, 0.5) + z @ w  # line of the neuron
        z = spike(v - 1.0)
        current = z @ w_out
        y = torch.softmax(0.5 * y + current, -1)  # line of the softmax
        out.append(y)
    return torch.stack(out), v


def test_loops_are_described():
    plan, result = prepare(mixed, [random(T, B, N), random(N, N), random(N, N),
                                   torch.tensor(0.9, dtype=torch.float64)])
    comparison = verify(plan, result)
    (loop,) = describe(plan)
    assert loop.iterations == T
    (fused,) = loop.fused
    assert fused.line == line_of(__file__, "z = spike(v - 1.0)")
    assert (fused.states, fused.currents, fused.has_product) == (1, 1, True)
    kept = {one.line: one for one in loop.unfused}
    softmax = kept[line_of(__file__, "# line of the softmax")]
    assert "elementwise" in softmax.reason or "softmax" in softmax.reason
    assert "random" in kept[line_of(__file__, "# line of the neuron")].reason
    assert loop.calls == fused.calls + loop.batched + sum(one.calls for one in loop.unfused)
    assert loop.batched >= 1  # z @ w_out
    text = str(Report("Net", True, "", (loop,), comparison))
    assert text.startswith("Net: converted\n  loop of 12 iterations")
    assert f"fused   {fused.line}" in text
    assert softmax.reason in text
    assert "results equal" in text
    assert len(text.splitlines()) <= 8


def test_an_output_that_is_its_own_state_counts():
    plan, _ = prepare(lambda x, y: [y := 0.9 * y + x_t for x_t in x],
                      [random(T, B, N), random(B, N)])
    assert [one.states for one in describe(plan)[0].fused] == [1]


def test_line_of_a_surrogate_of_the_zoo():
    """That of the model, not that of lsnn_ext."""
    def model(x, w):
        v = z = x.new_zeros(B, N)
        for x_t in x.unbind(0):
            v = 0.9 * v + x_t + z @ w
            z = super_spike(v - 1.0)  # line of the zoo's spike
        return z

    plan, _ = prepare(model, [random(T, B, N), random(N, N)])
    (fused,) = describe(plan)[0].fused
    assert fused.line == line_of(__file__, "# line of the zoo's spike")


def test_report_of_convert():
    _, report = convert(Net(), draw_x(T))
    assert report.converted
    assert len(report.fused) == 1
    assert report.comparison.gradients == 3
    assert not report.comparison.flips
    assert "3 gradients within" in str(report)


class Layers(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Net() for _ in range(depth))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Any:
        v = torch.zeros_like(x[0])
        for one in x:
            v = torch.tanh(self.norm(v)) + one  # line of the norm
        return v, [layer(x) for layer in self.layers]


def test_lines_name_the_layers() -> None:
    _, report = convert(Layers(2), draw_x(T))
    line = line_of(converted_nets.__file__, "z = self.spike")
    assert [one.line for one in report.fused] == [f"{line} (layers.0)", f"{line} (layers.1)"]
    line = line_of(__file__, "# line of the norm")
    assert {one.line for loop in report.loops for one in loop.unfused} == {f"{line} (norm)"}


def test_names_of_layers_keep_no_tensor_alive() -> None:
    """A view that the model has deleted is no reason to refuse a write to what it was a view of."""
    class Writing(Net):
        def forward(self, x: Tensor) -> Tensor:
            v, made = x.new_zeros(x.shape[1:]), []
            for one in x:
                h = one * 2
                part = h[:, :2]
                shift = part * 2
                del part
                v = 0.9 * v + self.act(h) + shift.sum()
                made.append(v)
            return torch.stack(made)

    model = Writing()
    model.act = nn.ReLU(inplace=True)
    before = nn.Module.__call__
    assert convert(model, draw_x(T))[1].converted
    assert nn.Module.__call__ is before


def test_the_reason_is_that_of_the_slowest_calls() -> None:
    """Not that of the number of batches, which is counted."""
    _, report = convert(Layers(0), draw_x(T))
    assert report.reason.endswith("(norm): expected calls that act on each neuron by itself, "
                                  "or a LayerNorm, got batch_norm")


class Branching(Net):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        found = super().forward(x, gain)
        return found if float(found.sum()) > 0 else -found  # line of the branch


def test_report_of_what_is_refused():
    model, report = convert(Branching(), draw_x(T))
    line = line_of(__file__, "# line of the branch")
    assert type(model) is Branching and not report.converted
    assert str(report).startswith("Branching: not converted: ")
    assert line in str(report)
    with pytest.raises(Refused, match=f"{line}: __float__"):
        fuse(model.forward, draw_x(T))


@pytest.mark.parametrize(("T", "N", "converted"), [
    (4, 8, False), (8, 400_000, True), (100, 8, True)])
def test_what_would_not_be_faster_stays(monkeypatch, T, N, converted):
    """A kernel takes longer than a few calls of torch with a few numbers."""
    monkeypatch.undo()  # of conftest.py

    class Leaky(nn.Module):
        def forward(self, x):
            v = z = x.new_zeros(x.shape[1:])
            for one in x:
                v = 0.9 * v + one - z
                z = spike(v - 1)
            return z

    model, report = convert(Leaky(), torch.rand(T, N))
    assert report.converted is converted
    assert converted or "too few steps or numbers" in report.reason


def test_without_verification():
    _, report = convert(Net(), draw_x(T), verify=False)
    assert report.comparison is None
    assert "not verified" in str(report)


# ------------------------------------------------------------------------------------ speed
def sleeping(seconds: float, weight: Tensor):
    def run():
        time.sleep(seconds)
        return (weight * 2).exp()
    return run


def test_speed_is_a_ratio_of_medians():
    weight = torch.ones(1000, requires_grad=True)
    speed = measure_speed(sleeping(0.03, weight), sleeping(0.01, weight), [weight])
    assert speed.rounds == 5
    assert 1.5 < speed.ratio < 4
    assert speed.original > speed.converted
    assert speed.threads == torch.get_num_threads()
    assert weight.grad is None
    assert f"{speed.ratio:.1f} times as fast (5 rounds in turns" in str(speed)


def test_no_further_round_after_the_time():
    weight = torch.ones(1, requires_grad=True)
    speed = measure_speed(sleeping(0.01, weight), sleeping(0.01, weight), [weight], seconds=0.0)
    assert speed.rounds == 1


def test_state_is_restored_before_each_pass():
    weight = torch.ones(1, requires_grad=True)
    calls = []
    measure_speed(lambda: calls.append("original") or weight * 2,
                  lambda: calls.append("converted") or weight * 2, [weight],
                  lambda: calls.append("prepare"), seconds=0.0)
    assert calls[-1] == "prepare"
    assert all(calls[k - 1] == "prepare" for k, one in enumerate(calls) if one != "prepare")


def test_the_times_are_those_of_the_round_with_the_median_ratio(monkeypatch):
    now, weight = [0.0], torch.ones(1, requires_grad=True)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run(seconds):
        now[0] += next(seconds)
        return weight * 2

    # of memory, of the first round, and of those that count
    original, converted = iter([0, 9, 4, 2, 5, 1, 6]), iter([0, 9, 1, 1, 1, 1, 2])
    speed = measure_speed(lambda: run(original), lambda: run(converted), [weight], seconds=99.0)
    assert (speed.original, speed.converted, speed.ratio, speed.rounds) == (6, 2, 3, 5)


@pytest.mark.parametrize("ratio", [0.987, 1.0])
def test_a_model_that_is_slower_stays_as_it_was(monkeypatch, ratio):
    speed = Speed(0.1 * ratio, 0.1, 5, 1, 0, 0)
    monkeypatch.setattr("lsnn_ext.loops.model.measure_speed", lambda *_: speed)
    model, report = convert(Net(), draw_x(T), speed=True)
    assert report.converted is (type(model) is not Net) is (ratio >= 1)
    assert report.speed is speed and len(report.fused) == 1
    reason = "expected a faster model, got forward and backward 100.0 ms, original 98.7 ms: 0.99 "
    assert report.reason.startswith(reason) if ratio < 1 else not report.reason


@pytest.mark.parametrize("n", [1000, 5000])
def test_bytes_kept_for_the_backward_pass(n):
    """exp keeps its result, a sum nothing; a parameter that is kept does not count."""
    weight = torch.ones(n, requires_grad=True)
    speed = measure_speed(lambda: (weight * weight).exp(), lambda: weight.sum(), [weight],
                          seconds=0.0)
    assert speed.original_bytes == 4 * n
    assert speed.converted_bytes == 0


def test_speed_of_a_converted_model():
    model = Net()
    x = draw_x(T)
    converted, _ = convert(Net(), x)
    speed = measure_speed(lambda: model(x), lambda: converted(x), list(model.parameters())
                          + list(converted.parameters()), seconds=0.1)
    assert 0 < speed.converted_bytes < speed.original_bytes
