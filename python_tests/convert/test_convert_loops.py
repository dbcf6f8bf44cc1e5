"""lsnn_ext.convert on layers of which a call is one step, inside a loop of the user's."""
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
import published
from foreign import wrong_for
from lsnn_ext._original import Original
from lsnn_ext.convert import ConversionError
from originals import package

T, B, I, N = 40, 3, 6, 12


class Loops(nn.Module):
    """Two layers in one loop."""

    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.project, self.one, self.two, self.out = nn.Linear(I, N), one, two, nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        one: tuple[Any, ...] = self.one.reset_mem()  # type: ignore[operator]
        two: tuple[Any, ...] = self.two.reset_mem()  # type: ignore[operator]
        outs = []
        for x_t in x:
            one = self.one(self.project(x_t), *one)
            two = self.two(one[0], *two)
            outs.append(self.out(two[0]))
        return torch.stack(outs)


def _model(**settings: Any) -> Loops:
    snntorch = package("snntorch")
    torch.manual_seed(0)
    return Loops(
        snntorch.RLeaky(beta=torch.rand(N), linear_features=N, learn_beta=True, **settings),
        snntorch.RSynaptic(alpha=0.5, beta=0.8, all_to_all=False, V=torch.rand(N)))


def _x() -> Tensor:
    return 3 * torch.rand(T, B, I, generator=torch.Generator().manual_seed(1))


def test_layers_stay_in_the_loop_and_the_report_says_what_a_sequence_would_give() -> None:
    model = _model()
    kept = [model.one, model.two]
    _, report = lsnn_ext.convert(model, verify=_x(), repeats=2)
    assert [model.one, model.two] == kept and report.replaced == ()
    assert [one.name for one in report.in_loop] == ["one", "two"]
    for one in report.in_loop:
        assert one.steps == T and one.speed is not None and one.speed.gain > 1
        found = one.comparison
        assert found is not None and found.verdict == "equal" and found.dtype == "float32"
        assert found.spikes == T * B * N and found.rates[one.name] > 0.02
        assert max(found.gradients.values()) < 1e-4 and "input 0" in found.gradients
    text = str(report)
    assert "from lsnn_ext.snntorch import RLeaky  # in place of the one of snntorch" in text
    assert "spk, syn, mem = self.two(currents)  # (T, B, N)" in text


def test_the_lines_name_entries_of_lists_as_python_does() -> None:
    model = _model()
    model.pair = nn.ModuleList([model.one])
    del model.one
    model.one = model.pair[0]  # another name of it, behind the first
    _, report = lsnn_ext.convert(model, verify=_x(), repeats=0)
    two, one = report.in_loop
    assert "spk, mem = self.pair[0](currents)" in one.code[1], one.code
    assert "spk, syn, mem = self.two(currents)" in two.code[1], two.code


def test_the_two_lines_do_what_the_report_says() -> None:
    """The layer that from_original makes, on all steps at once, in place of the loop."""
    model = _model()
    want = model(_x())
    lsnn_ext.convert(model, steps=True)
    # Products with as many rows as in the loop: with more the library may round otherwise.
    currents = torch.stack([model.project(x_t) for x_t in _x()])
    spk, _ = model.one(currents)
    spk, _, _ = model.two(spk)
    assert torch.equal(torch.stack([model.out(z_t) for z_t in spk]).detach(), want.detach())


def test_steps_replaces_them_in_the_loop() -> None:
    model = _model()
    want = model(_x())
    _, report = lsnn_ext.convert(model, verify=_x(), steps=True, repeats=0)
    assert [one.name for one in report.replaced] == ["one", "two"] and report.in_loop == ()
    assert type(model.one) is lsnn_ext.snntorch.RLeaky
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert {"one.beta", "one.recurrent.weight", "input 0"} <= set(report.comparison.gradients)
    assert torch.equal(model(_x()), want)
    lsnn_ext.revert(model)
    assert type(model.one).__module__.startswith("snntorch.")
    assert torch.equal(model(_x()), want)


@pytest.mark.parametrize("change", ["leak", "none"])
def test_a_wrong_class_is_found_at_its_step(change: str) -> None:
    def wrong(layer: Any) -> None:
        if change == "leak":
            layer.beta = nn.Parameter(layer.beta.detach() * 0.95)
        else:
            layer.reset_mechanism = "none"

    model = _model(reset_mechanism="subtract")
    _, report = lsnn_ext.convert(model, verify=_x(), repeats=0,
                                 classes=[wrong_for("snntorch", "RLeaky", wrong)])
    one = report.in_loop[0]
    assert one.comparison is not None and one.comparison.first is not None
    assert one.comparison.verdict == "mapping" and one.code == ()
    assert one.comparison.first.step is not None and one.comparison.first.step < 10
    assert "NOT EQUAL" in str(report)
    with pytest.raises(ConversionError):
        lsnn_ext.convert(model, verify=_x(), repeats=0, steps=True,
                         classes=[wrong_for("snntorch", "RLeaky", wrong)])


class Broken(Loops):
    """A loop that sets a state between two steps."""

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.one.reset_mem()  # type: ignore[operator]
        for step, x_t in enumerate(x):
            if step == T // 2:
                spk, mem = torch.zeros_like(spk), torch.zeros_like(mem)
            spk, mem = self.one(self.project(x_t), spk, mem)
        return spk  # type: ignore[no-any-return]


def test_a_loop_that_is_no_sequence_is_not_measured() -> None:
    model = _model()
    model.__class__ = Broken
    _, report = lsnn_ext.convert(model, verify=_x(), repeats=0)
    assert "sets its state between two steps" in report.in_loop[0].note
    assert "does not call it" in report.in_loop[1].note
    assert "not measured: the model does not call it" in str(report)


def test_without_verify_the_report_asks_for_inputs() -> None:
    _, report = lsnn_ext.convert(_model())
    assert "not measured: give verify= an input" in str(report)


def test_settings_that_are_refused_are_named() -> None:
    snntorch = package("snntorch")
    model = nn.ModuleDict({
        "hidden": snntorch.RLeaky(beta=0.9, linear_features=N, init_hidden=True),
        "inhibited": snntorch.RLeaky(beta=0.9, linear_features=N, inhibition=True),
        "quantized": snntorch.RLeaky(beta=0.9, linear_features=N, state_quant=lambda mem: mem),
        "conv": snntorch.RLeaky(beta=0.9, conv2d_channels=2, kernel_size=3),
        "own": snntorch.RLeaky(beta=0.9, linear_features=N, spike_grad=torch.sigmoid),
        "leaky": snntorch.Leaky(beta=0.9),
    })
    with torch.no_grad():
        graded = snntorch.RLeaky(beta=0.9, linear_features=N)
        graded.graded_spikes_factor.fill_(2.0)
    model["graded"] = graded
    late = snntorch.RSynaptic(alpha=0.5, beta=0.9, linear_features=N, reset_delay=False)
    model["late"] = late
    _, report = lsnn_ext.convert(model)
    reasons = {one.name: one.reason for one in report.left}
    assert report.replaced == report.in_loop == ()
    for name, word in {"hidden": "init_hidden", "inhibited": "inhibition",
                       "quantized": "state_quant", "conv": "conv2d_channels", "own": "spike_grad",
                       "graded": "graded_spikes_factor", "late": "reset_delay",
                       "leaky": "no class of lsnn_ext"}.items():
        assert word in reasons[name], (name, reasons[name])
        assert reasons[name] in str(report)


class Published(nn.Module):
    """The loop of Yin et al., with states that are drawn before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = published.SpikeRNN(I, N, tauM=20, tauAdp_inital=30), nn.Linear(N, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.set_neuron_state(x.shape[1])
        self.layer.mem = torch.rand(x.shape[1], N).to(x)
        outs = []
        for x_t in x:
            _, spikes = self.layer(x_t)
            outs.append(self.out(spikes))
        return torch.stack(outs)


def test_a_layer_that_keeps_its_state_and_returns_the_membrane_first() -> None:
    torch.manual_seed(0)
    model = Published()
    want = model(8 * _x())
    assert want.requires_grad, "the state that stays in the layer has a graph"
    _, report = lsnn_ext.convert(model, verify=8 * _x(), repeats=1)
    (one,) = report.in_loop
    found = one.comparison
    assert found is not None and (found.verdict, found.dtype) == ("equal", "float64")
    assert found.rates["layer"] > 0.02 and one.speed is not None
    assert "mem, spike = self.layer(currents)" in one.code[1]
    _, report = lsnn_ext.convert(model, verify=8 * _x(), repeats=0, steps=True)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert {"layer.tau_m", "layer.tau_adp", "layer.recurrent.weight"} <= set(
        report.comparison.gradients)

    def wrong(layer: Any) -> None:
        layer.beta = 1.7

    lsnn_ext.revert(model)
    _, report = lsnn_ext.convert(model, verify=8 * _x(), repeats=0,
                                 classes=[wrong_for("yin", "SRNN", wrong)])
    assert report.in_loop[0].comparison is not None
    assert report.in_loop[0].comparison.verdict == "mapping"


@pytest.mark.parametrize("steps", [False, True])
def test_a_copy_of_a_program_under_another_name(steps: bool, monkeypatch: Any) -> None:
    """A class made of ours has its ways: what a call is, and which of the results are spikes."""
    monkeypatch.setattr(published.SpikeRNN, "__module__", "mine.layers")
    monkeypatch.setattr(Original, "registry", dict(Original.registry))
    torch.manual_seed(0)
    model = Published()
    _, report = lsnn_ext.convert(model, verify=8 * _x(), repeats=0, steps=steps)
    (left,) = report.left
    assert "class Copy(lsnn_ext.yin.SRNN): original = 'mine.layers.spike_rnn'" in left.reason

    class Copy(lsnn_ext.yin.SRNN):
        original = "mine.layers.spike_rnn"

    _, report = lsnn_ext.convert(model, verify=8 * _x(), repeats=0, steps=steps)
    found = report.comparison if steps else report.in_loop[0].comparison
    assert found is not None and found.verdict == "equal" and found.rates["layer"] > 0.02
    assert type(model.layer) is (Copy if steps else published.SpikeRNN)
    assert steps or "mem, spike = self.layer(currents)" in report.in_loop[0].code[1]
