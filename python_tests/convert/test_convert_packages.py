"""lsnn_ext.convert on whole models of each package: equal, trained, and back again."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
import published
from compare import assert_same
from foreign import Stacked, wrong_for
from lsnn_ext.convert import ConversionError
from originals import package

T, B, I, N = 30, 4, 6, 14
Case = tuple[nn.Module, Tensor, dict[str, str], str]


def _x(*shape: int) -> Tensor:
    return 3 * torch.rand(shape, generator=torch.Generator().manual_seed(1))


def _norse() -> Case:
    """Parameters that learn beside the layer."""
    nt = package("norse.torch")
    p = nt.LSNNParameters(tau_mem_inv=torch.tensor(150.0, requires_grad=True),
                          tau_adapt_inv=torch.tensor(30.0), v_th=torch.tensor(0.3))
    model = Stacked(nn.Linear(I, 10), nt.LSNNRecurrent(10, N, p=p, autapses=True),
                    nn.ModuleList([nt.LIFRecurrent(N, 9)])[0], nn.Linear(9, 2))
    return model, _x(T, B, I), {"parts.1": "LSNNRecurrent", "parts.2": "LIFRecurrent"}, "float64"


def _sinabs() -> Case:
    package("sinabs")
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.layers import ALIFRecurrent, LIFRecurrent

    model = nn.Sequential(
        nn.Linear(I, N),
        nn.ModuleDict({"a": ALIFRecurrent(tau_mem=8.0, tau_adapt=20.0, adapt_scale=0.5,
                                          rec_connect=nn.Linear(N, N))})["a"],
        nn.Sequential(nn.Linear(N, N), LIFRecurrent(
            torch.full((N,), 5.0), nn.Linear(N, N, bias=False), tau_syn=3.0,
            spike_fn=SingleSpike, reset_fn=MembraneReset(), norm_input=False)),
        nn.Linear(N, 2))
    with torch.no_grad():
        model[0].weight.mul_(4)
    return model, _x(B, T, I), {"1": "ALIFRecurrent", "2.1": "LIFRecurrent"}, "float32"


def _spikingjelly() -> Case:
    package("spikingjelly")
    from spikingjelly.activation_based.layer import LinearRecurrentContainer
    from spikingjelly.activation_based.neuron import LIFNode, ParametricLIFNode

    model = nn.Sequential(
        LinearRecurrentContainer(LIFNode(v_threshold=0.3), I, I, step_mode="m"),
        LinearRecurrentContainer(nn.Sequential(nn.Linear(I, N), ParametricLIFNode(
            v_reset=None, v_threshold=0.1, detach_reset=True)), I, N, step_mode="m"),
        nn.Linear(N, 2))
    return (model, _x(T, B, I),
            {"0": "LinearRecurrentContainer", "1": "LinearRecurrentContainer"}, "float64")


def _sparch() -> Case:
    """Random states in each call, a norm inside."""
    model = nn.Sequential(published.RadLIFLayer(I, N, B),
                          published.RLIFLayer(N, 9, B, bidirectional=True),
                          nn.Linear(18, 2))
    return model, _x(B, T, I), {"0": "RadLIFLayer", "1": "RLIFLayer"}, "float64"


def _se_adlif() -> Case:
    model = Stacked(published.SEAdLIF(I, N, thr=0.3, train_tau_w_method="interpolation"),
                    nn.Linear(N, 2))
    return model, _x(B, T, I), {"parts.0": "SEAdLIF"}, "float64"


MAKERS = [_norse, _sinabs, _spikingjelly, _sparch, _se_adlif]
PACKAGES = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.lstrip("_"))
Make = Callable[[], Case]


def _made(make: Make) -> Case:
    torch.manual_seed(0)
    return make()


def _reset(model: nn.Module) -> None:
    """Of layers that keep their state."""
    for module in model.modules():
        for name in ("reset_states", "reset"):
            if hasattr(module, name):
                getattr(module, name)()


def _output(model: nn.Module, x: Tensor) -> Tensor:
    _reset(model)
    torch.manual_seed(3)  # states that are drawn
    found = model(x)
    output: Tensor = found[0] if isinstance(found, tuple) else found
    return output


@PACKAGES
def test_whole_models_are_equal(make: Make) -> None:
    model, x, names, dtype = _made(make)
    want = _output(model, x)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    same, report = lsnn_ext.convert(model, verify=x, repeats=0)
    assert same is model and {one.name: one.ours.rsplit(".", 1)[-1]
                              for one in report.replaced} == names
    found = report.comparison
    assert found is not None and (found.verdict, found.dtype) == ("equal", dtype)
    assert bool(report.notes) == (make in (_sinabs, _spikingjelly))
    assert all(f"note: {note}" in str(report) for note in report.notes)
    assert min(found.rates.values()) > 0.005 and set(found.rates) == set(names)
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    assert max(found.states.values()) < tolerance and max(found.gradients.values()) < tolerance
    learned = {name for name, value in parameters.items() if value.requires_grad}
    assert learned | {"input 0"} <= set(found.gradients) and found.own_weights == 0.0
    assert make is not _norse or "parts.1.p.tau_mem_inv" in found.gradients
    # in the same order, as states of optimizers have no names
    assert list(model.named_parameters()) == list(parameters.items())
    assert [(name, value.shape) for name, value in model.state_dict().items()] == [
        (name, value.shape) for name, value in kept.items()]
    assert_same("output", _output(model, x), want, tolerance=1e-5)


@PACKAGES
def test_trained_and_back(make: Make) -> None:
    model, x, names, _ = _made(make)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    originals = {name: model.get_submodule(name) for name in names}
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    lsnn_ext.convert(model)
    for _ in range(3):
        optimizer.zero_grad()
        _output(model, x).square().mean().backward()
        optimizer.step()
    trained = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert sum(not torch.equal(trained[name], start[name]) for name in start) >= len(start) - 1
    want = _output(model, x)
    lsnn_ext.revert(model)
    assert {name: model.get_submodule(name) for name in names} == originals
    for name, value in model.named_parameters():
        assert torch.equal(value, trained[name]), name
    assert_same("output", _output(model, x), want, tolerance=1e-4)


@pytest.mark.parametrize("make", [_sinabs, _spikingjelly])
def test_state_is_carried_over_and_back(make: Make) -> None:
    """Of layers that keep it: a call before, one while converted, one after."""
    model, x, _, _ = _made(make)
    reference, *_ = _made(make)
    with torch.no_grad():
        want = [reference(x) for _ in range(3)]
        got = [model(x)]
        lsnn_ext.convert(model)
        got.append(model(x))
        got.append(lsnn_ext.revert(model)(x))
    assert not torch.equal(want[1], want[0]), "no state is kept"
    for one, other in zip(got, want, strict=True):
        assert_same("output", one, other, tolerance=1e-5)


@PACKAGES
def test_models_that_ran_before(make: Make) -> None:
    """State with a graph stays in some layers; it is no hindrance, and stays as it was."""
    model, x, names, _ = _made(make)
    model(x)
    _, report = lsnn_ext.convert(model, verify=x, repeats=1)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert report.speed is not None and set(names) == {one.name for one in report.replaced}


@PACKAGES
def test_numbers_for_norse_and_others_are_told_apart_by_a_wrong_class(make: Make) -> None:
    model, x, names, _ = _made(make)
    name, kind = next(iter(names.items()))

    def wrong(layer: Any) -> None:
        if kind == "LSNNRecurrent":
            layer.dt = 0.99 * layer.dt
        elif kind == "ALIFRecurrent":
            layer.norm_input = False
        elif kind == "RadLIFLayer":
            layer.a_lim = [0.0, 1.0]
        elif kind == "SEAdLIF":
            layer.q = 61.0
        else:
            layer.sub_module.v_threshold = 0.31

    package_name = make.__name__.lstrip("_")
    with pytest.raises(ConversionError) as caught:
        lsnn_ext.convert(model, verify=x, classes=[wrong_for(package_name, kind, wrong)])
    first = caught.value.report.comparison.first
    assert (first.module, first.kind) == (name, "mapping") and first.step is not None


def test_a_container_of_norse_that_hands_states_on() -> None:
    nt = package("norse.torch")
    torch.manual_seed(0)
    model = nt.SequentialState(nn.Linear(I, N), nt.LSNNRecurrent(N, N),
                               nt.LIFRecurrent(N, 9)).double()
    x = 3 * _x(T, B, I).double()
    want, states = model(x)
    with torch.no_grad():
        _, report = lsnn_ext.convert(model, verify=x, repeats=1)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert [one.name for one in report.replaced] == ["1", "2"] and report.comparison.gradients
    got, again = model(x)
    assert_same("output", got, want)
    assert [type(state) for state in again] == [type(state) for state in states]
    # norse writes into the list of states that it is given
    want = model(x, list(again))[0]
    assert_same("output", lsnn_ext.revert(model)(x, list(again))[0], want)


def test_layers_in_a_network_of_sinabs_stay() -> None:
    package("sinabs")
    from sinabs.layers import ALIFRecurrent
    from sinabs.network import Network

    layer = ALIFRecurrent(tau_mem=8.0, tau_adapt=20.0, rec_connect=nn.Linear(N, N))
    model = nn.Sequential(Network(spiking_model=nn.Sequential(layer)))
    _, report = lsnn_ext.convert(model)
    assert report.replaced == () and "reset_states would pass by" in report.left[0].reason


def test_resets_of_spikingjelly_reach_the_layers_that_were_put_in() -> None:
    """reset_net remembers the modules of a model."""
    package("spikingjelly")
    from spikingjelly.activation_based import functional

    model, x, _, _ = _made(_spikingjelly)
    functional.reset_net(model)
    lsnn_ext.convert(model)
    first = model(x)
    assert not torch.equal(model(x), first), "no state was carried on"
    functional.reset_net(model)
    assert torch.equal(model(x), first)
    lsnn_ext.revert(model)
    functional.reset_net(model)
    assert_same("output", model(x), first, tolerance=1e-5)


def test_spikingjelly_by_steps() -> None:
    package("spikingjelly")
    model, x, names, _ = _made(_spikingjelly)
    for layer in model[:2]:
        layer.step_mode = "s"

    def run(net: nn.Module) -> Tensor:
        return torch.stack([net(x_t) for x_t in x])

    _, report = lsnn_ext.convert(model, verify=run, repeats=1)
    assert report.replaced == () and [one.name for one in report.in_loop] == list(names)
    for one in report.in_loop:
        assert one.comparison is not None and one.comparison.verdict == "equal"
        assert one.comparison.dtype == "float64" and one.steps == T and one.speed is not None
        assert f'self[{one.name}].step_mode = "m"' in one.code[0]
    _, report = lsnn_ext.convert(model, verify=run, repeats=0, steps=True)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert len(report.replaced) == 2


def test_settings_of_sinabs_and_spikingjelly_that_are_refused() -> None:
    package("sinabs")
    package("spikingjelly")
    from sinabs.activation import SingleSpike
    from sinabs.layers import ALIFRecurrent, LIFRecurrent
    from spikingjelly.activation_based.layer import LinearRecurrentContainer
    from spikingjelly.activation_based.neuron import IFNode

    def alif(**settings: Any) -> nn.Module:
        layer: nn.Module = ALIFRecurrent(**{"tau_mem": 8.0, "tau_adapt": 20.0,
                                            "rec_connect": nn.Linear(N, N), **settings})
        return layer

    model = nn.ModuleDict({
        "clipped": alif(min_v_mem=-1.0), "recorded": alif(record_states=True),
        "conv": alif(rec_connect=nn.Conv1d(1, 1, 1)),
        "several": LIFRecurrent(5.0, nn.Linear(N, N)),
        "hooked": LIFRecurrent(5.0, nn.Linear(N, N), spike_fn=SingleSpike),
        "if": LinearRecurrentContainer(IFNode(), I, I, step_mode="m"),
    })
    model["hooked"].rec_connect.register_forward_hook(lambda *_: None)  # type: ignore[union-attr,operator]
    _, report = lsnn_ext.convert(model)
    reasons = {one.name: one.reason for one in report.left}
    assert report.replaced == ()
    for name, word in {"clipped": "min_v_mem", "recorded": "record_states", "conv": "rec_connect",
                       "several": "spike_fn", "hooked": "its rec_connect has hooks",
                       "if": "IFNode"}.items():
        assert word in reasons[name], (name, reasons[name])


def test_a_state_that_the_second_call_finds_wrong() -> None:
    """A layer that is right the first time, and then begins anew."""
    model, x, _, _ = _made(_spikingjelly)

    def wrong(layer: Any) -> None:
        layer.register_forward_pre_hook(lambda module, _: module.reset())

    with pytest.raises(ConversionError) as caught:
        lsnn_ext.convert(model, verify=x,
                         classes=[wrong_for("spikingjelly", "LinearRecurrentContainer", wrong)])
    first = caught.value.report.comparison.first
    assert (first.module, first.call, first.kind) == ("0", 1, "mapping")
