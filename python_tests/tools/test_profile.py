"""lsnn_ext.profile: its numbers are those of the outputs; it changes nothing."""
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import lsnn_ext
from compare import outputs_and_gradients
from draws import draw_spikes
from layers import First
from lsnn_ext import ALIF, LIF, LSNN, LeakyReadout, Profile, _ops, functional
from lsnn_ext.tools.profiler import BACKWARD, FORWARD
from operator_calls import count, python_output

pytestmark = pytest.mark.skipif(_ops._C is None or "LSNN_EMULATE" in os.environ,
                                reason="no CPU kernels run here")


def _profile(layer: Any, x: Any, *args: Any, **options: Any) -> Profile:
    """Without the printing, and with what must hold of every report."""
    file = io.StringIO()
    report = lsnn_ext.profile(layer, x, *args, file=file, **{"repeats": 1, **options})
    assert file.getvalue() == f"{report}\n"
    assert set(report.phases) == {*FORWARD, *BACKWARD} and all(
        seconds >= 0 for seconds in report.phases.values())
    for names, seconds in ((FORWARD, report.forward), (BACKWARD, report.backward)):
        assert sum(report.phases[name] for name in names) == pytest.approx(
            seconds, rel=1e-3, abs=1e-6)
    kernels = [name for name in report.phases if not name.startswith(("idle", "outside"))]
    assert sum(report.phases[name] for name in kernels) <= report.seconds * 1.001
    tiles = report.counters["ns_forward_tiles"] + report.counters["ns_backward_tiles"]
    assert report.counters["ns_processor"] <= tiles * 1.01 + 1e5  # its clock is another one
    assert tiles * 1e-9 <= report.seconds * report.threads * 1.001
    return report


LAYERS: dict[str, tuple[nn.Module, Tensor]] = {}
torch.manual_seed(0)
for name, layer in {
    "alif": ALIF(20, 30), "lif": LIF(20, 30),
    "two layers, both directions": ALIF(20, 30, 2, bidirectional=True),
    "checkpoints": ALIF(20, 30, checkpoint_every=32), "double": ALIF(20, 30, dtype=torch.float64),
    "delays": ALIF(20, 30, delay=torch.randint(0, 3, (30, 30))),
    "sequential": nn.Sequential(ALIF(20, 30), First(), nn.Dropout(0.5), LIF(30, 25), First(),
                                nn.Linear(25, 3))}.items():
    LAYERS[name] = layer, draw_spikes(150, 7, 20).to(next(layer.parameters()).dtype)


LAYER, X = ALIF(5, 6), torch.zeros(3, 2, 5)


@pytest.mark.parametrize("name", LAYERS)
def test_rate_and_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (layer, x), seen, operator = LAYERS[name], [], _ops.run_recurrence

    def watched(*args: Any) -> _ops.Outputs:
        out = operator(*args)
        seen.append(out.spikes.detach())
        return out

    monkeypatch.setattr(_ops, "run_recurrence", watched)
    report = _profile(layer.eval(), x)
    calls = seen[: report.calls]  # of the first pass
    assert len(seen) % report.calls == 0
    assert report.neuron_steps == sum(spikes.numel() for spikes in calls)
    assert report.rate == pytest.approx(sum(float(spikes.sum())
                                            for spikes in calls) / report.neuron_steps)
    assert report.batch == 7 and report.tiles == 4
    assert (report.product_steps_dense + report.product_steps_active + report.product_steps_sparse
            == report.calls * 4 * 150)
    assert (report.phases["recompute"] > 0) == (name == "checkpoints")


@pytest.mark.parametrize(("refractory", "surrogate"), [
    (0, "triangle"), (3, "triangle"), (2, "arctan"), (0, "arctan"), (0, "boxcar")])
@pytest.mark.parametrize("checkpoint_every", [None, 16])
def test_active_share(refractory: int, surrogate: str, checkpoint_every: int | None) -> None:
    """Against the surrogate's argument (n - A) / A of equation (7), from the traces."""
    torch.manual_seed(3)
    layer = ALIF(20, 37, refractory=refractory, surrogate=surrogate,
                 checkpoint_every=checkpoint_every)
    x = draw_spikes(90, 9, 20)
    spikes, _, traces = layer(x, trace=True)
    v, threshold = torch.cat([torch.zeros_like(traces.v[:1]), traces.v[:-1]]), traces.threshold
    m = ((v - threshold) / threshold).abs()
    active = {"triangle": m < 1, "boxcar": m <= 0.5, "arctan": m < torch.inf}[surrogate]
    for t in range(90):
        active[t] &= ~(spikes[max(0, t - refractory):t] > 0).any(0)
    assert _profile(layer, x).active == pytest.approx(float(active.float().mean()), abs=1e-4)


def test_lsnn() -> None:
    """Projection and readout run inside the operator, which returns no spikes."""
    torch.manual_seed(0)
    layer, x = LSNN(80, 60, 40, 5), draw_spikes(200, 20, 80)
    spikes, report = layer(x, return_spikes=True)[2], _profile(layer, x)
    assert report.rate == pytest.approx(float(spikes.detach().mean()))
    assert report.input_density == pytest.approx(float(x.mean()))
    for name in ("projection", "sums", "step", "readout", "replay", "readout_adjoint", "adjoint",
                 "gradient", "gradient_in", "gradient_out", "product_active", "pack_forward",
                 "pack_backward", "sum_tiles"):
        assert report.phases[name] > 0, name


@pytest.mark.parametrize("layer", [ALIF(60, 128), LSNN(60, 64, 64, 4)], ids=["alif", "lsnn"])
def test_phases_fill_the_tiles(layer: nn.Module) -> None:
    """Each phase begins where the last one ended, so other programs lengthen the phases as they
    lengthen the tiles.

    All but a hundredth of a tile belongs to a phase; the best of some tries, as a thread may lose
    its core right there.
    """
    x = draw_spikes(300, 32, 60)
    shares: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(5):
        counters = _profile(layer, x).counters
        names = [name for name in counters if name.startswith("ns_")]
        start = 0
        for direction, found in shares.items():
            end = names.index(f"ns_{direction}_tiles")
            found.append(sum(counters[name] for name in names[start:end]) / counters[names[end]])
            start = end + 1
    assert all(0.9 < max(found) <= 1 for found in shares.values()), shares


def test_separate_readout_has_no_neurons() -> None:
    """LeakyReadout counts as no call of a layer; its time is the readout's."""
    torch.manual_seed(0)
    alif, x = ALIF(80, 100), draw_spikes(200, 20, 80)
    report = _profile(nn.Sequential(alif, First(), LeakyReadout(100, 50), First()), x)
    assert report.neuron_steps == 200 * 20 * 100 and report.calls == 1
    assert report.rate == pytest.approx(float(alif(x)[0].detach().mean()))
    assert 0.05 < (report.active or 0) < 0.9
    assert report.phases["products"] > 0 and report.phases["products_backward"] > 0
    assert report.input_density == pytest.approx(float(x.mean()))


def test_a_function() -> None:
    """Gradients are those of all leaves of its graph."""
    torch.manual_seed(0)
    w_in, w_rec = torch.randn(30, 20, requires_grad=True), torch.randn(30, 30, requires_grad=True)

    def run(x: Tensor, scale: float) -> Tensor:
        return functional.alif(scale * x, w_rec, w_in=w_in, alpha=0.9, theta=1.0)[0]

    report = _profile(run, torch.randn(300, 40, 20), 2.0)
    assert report.target == "run" and report.neuron_steps == 300 * 40 * 30
    assert report.phases["products"] > 0 and report.phases["gradient"] > 0
    assert report.input_density is None  # they are projected outside
    assert w_in.grad is w_rec.grad is None


def test_a_converted_model() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay = nn.Parameter(torch.full((30,), 0.9))

        def forward(self, x: Tensor) -> Tensor:
            v, out = torch.zeros_like(x[0]), []
            for x_t in x:
                v = self.decay * v + torch.tanh(v) * x_t + x_t
                out.append(v)
            return torch.stack(out)

    x = torch.randn(40, 5, 30)
    model, converted = lsnn_ext.convert(Loop(), x)
    assert converted.converted
    report = _profile(model, x)
    assert report.target == "Loop" and report.calls == 1 and report.neuron_steps == 40 * 5 * 30


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0", "1024"])
def test_the_environment(size: str) -> None:
    """Without memory kept for reuse y and the spikes, 13 MB each, are fresh in every pass."""
    code = ("import torch, lsnn_ext\n"
            "r = lsnn_ext.profile(lsnn_ext.ALIF(20, 200), (torch.rand(500, 32, 20) < .05).float(), "
            "repeats=3)\nprint(r.counters['fresh_bytes'] > 25e6)")
    assert python_output(code, LSNN_CACHE_MB=size).endswith(f"\n{size == '0'}\n")


def test_forms_of_input() -> None:
    torch.manual_seed(0)
    layer = ALIF(20, 30)
    _, state = layer(draw_spikes(10, 4, 20))
    assert _profile(layer, draw_spikes(10, 4, 20), state).neuron_steps == 10 * 4 * 30
    report = _profile(layer, pack_padded_sequence(draw_spikes(10, 3, 20), torch.tensor([10, 6, 6])))
    assert report.neuron_steps == 22 * 30 and report.calls == 1
    assert _profile(layer, draw_spikes(10, 20)).batch == 1
    _profile(layer, (2 * draw_spikes(10, 4, 20)).requires_grad_())
    frozen = _profile(ALIF(20, 30).requires_grad_(False), draw_spikes(10, 4, 20))
    assert frozen.active is None
    assert frozen.phases["adjoint"] == 0 and frozen.counters["backward_calls"] == 0


@pytest.mark.parametrize("name", ["alif", "two layers, both directions", "checkpoints", "double",
                                  "delays"])
def test_counting_does_not_change_a_bit(name: str) -> None:
    layer, x = LAYERS[name]
    before = outputs_and_gradients(layer, layer.parameters(), x)
    assert _ops._C.profile(True) is False
    try:
        counted = outputs_and_gradients(layer, layer.parameters(), x)
    finally:
        assert _ops._C.profile(False) is True
    assert all(torch.equal(a, b) for a, b in zip(before, counted, strict=True))
    assert _ops._C.counters()["neuron_steps"] > 0 and set(_ops._C.counters().values()) == {0}


@pytest.mark.parametrize("call", [_profile, lsnn_ext.plan])
def test_nothing_is_left_changed(call: Any) -> None:
    """Parameters, gradients, buffers, the random generator, and that counting is off."""
    class CountsCalls(nn.Identity):
        """Replaces its buffer in each call."""

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return x

    torch.manual_seed(0)
    layer = nn.Sequential(nn.BatchNorm1d(20), nn.Dropout(0.3), ALIF(30, 30), First(), CountsCalls())
    layer[4].register_buffer("calls", torch.zeros(()))
    x = 2 * draw_spikes(20, 12, 30).requires_grad_().transpose(0, 1)  # no leaf, not contiguous
    layer[2].weight_hh_l0.grad = torch.ones(30, 30)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    random = torch.get_rng_state()
    call(layer, x)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    given = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    assert list(given) == ["2.weight_hh_l0"]
    assert torch.equal(given["2.weight_hh_l0"], torch.ones(30, 30))
    layer(x).sum().backward()
    assert _ops._C.profile(False) is False and set(_ops._C.counters().values()) == {0}


def test_counting_is_off_after_an_error() -> None:
    passes = [1] * 4

    def run(x: Tensor) -> Tensor:
        passes.pop()
        return LAYER(x)[0]

    with pytest.raises(IndexError):
        _profile(run, X, repeats=9)
    assert _ops._C.profile(False) is False
    _ops._C.counters()


def test_threads_at_once() -> None:
    """No counts are lost; reports requested at once come one after the other."""
    layer, x = ALIF(20, 30), draw_spikes(40, 3, 20)
    with ThreadPoolExecutor(4) as pool:
        counted = count(lambda: list(pool.map(layer, [x] * 80)))
    assert counted["forward_calls"] == 80 and counted["neuron_steps"] == 80 * 40 * 3 * 30

    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda x: _profile(layer, x), [x] * 3))
    assert [report.neuron_steps for report in reports] == [40 * 3 * 30] * 3


@pytest.mark.usefixtures("own_threads")
@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    report = _profile(ALIF(20, 64), draw_spikes(100, 32, 20))
    assert report.threads == threads and report.tiles == 2


# ------------------------------------------------------------------------------------------- errors
class Idle(nn.Module):
    """Calls none of its layers."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.inside, self.result = LAYER, result

    def forward(self, x: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(("inputs", "options", "error", "words"), [
    ((3, X), {}, TypeError, "target: expected a module or function, got int"),
    ((nn.Linear(5, 2), X), {}, ValueError, "target: expected a call of lsnn_ext.*by Linear"),
    ((Idle(X), X), {}, ValueError, "target: expected a call of lsnn_ext .*by Idle"),
    ((Idle(None), X), {}, TypeError, "target: expected .* that returns a tensor, got Idle"),
    ((LAYER, [1.0]), {}, TypeError, "x: expected a tensor"),
    ((LAYER, X[:0]), {}, ValueError, r"one step and one .*of shape \(0, 2, 5\)"),
    ((LAYER, X[:, :0]), {}, ValueError, r"one step and one .*of shape \(3, 0, 5\)"),
    ((LAYER, X[..., :4]), {}, ValueError, r"x: expected shape .* got \(3, 2, 4\)"),
    ((LAYER, X.to("meta")), {}, ValueError, "inputs: expected tensors on the CPU, got device meta"),
    ((ALIF(5, 6, device="meta"), X), {}, ValueError, "target, .* on the CPU, got device meta"),
    ((LAYER, X, 3), {}, TypeError, "state: expected a State"),
    ((LAYER, X), {"repeats": 0}, ValueError, "repeats: expected an int >= 1, got 0"),
    ((LAYER, X), {"repeats": 2.0}, TypeError, "repeats: expected an int >= 1, got float"),
    ((LAYER, X), {"repeats": True}, TypeError, "repeats: expected an int >= 1, got bool"),
    ((LAYER, X), {"file": "a.txt"}, TypeError, "file: expected a text file or None, got str"),
], ids=str)
def test_wrong_arguments(inputs: tuple[Any, ...], options: dict[str, Any], error: type[Exception],
                         words: str) -> None:
    with pytest.raises(error, match=words):
        lsnn_ext.profile(*inputs, **options)
    assert _ops._C.profile(False) is False


def test_without_the_compiled_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "_C", None)
    monkeypatch.setattr(_ops, "load_error", ImportError("not built"))
    with pytest.raises(RuntimeError, match=r"lsnn_ext.profile: expected the compiled part.*\(not "
                                           r"built\)"):
        lsnn_ext.profile(LAYER, X)


def test_it_prints_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    report = lsnn_ext.profile(LAYER, X)
    assert capsys.readouterr().out == f"{report}\n" and report.repeats == 5
