"""lsnn_ext.convert and revert on whole models of other packages."""
import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from compare import assert_same
from foreign import Stacked, wrong_for
from lsnn_ext.convert import ConversionError, Report
from lsnn_ext.convert.copies import duplicate
from originals import package

T, B, I, N = 40, 3, 6, 14


def _norse(seed: int = 0, **settings: Any) -> Stacked:
    nt = package("norse.torch")
    torch.manual_seed(seed)
    p = nt.LSNNParameters(tau_adapt_inv=torch.tensor(30.0), **settings)
    return Stacked(nn.Linear(I, 10), nt.LSNNRecurrent(10, N, p=p), nt.LIFRecurrent(N, 9),
                   nn.Linear(9, 3))


def _x(seed: int = 1, steps: int = T) -> Tensor:
    return 8 * torch.rand(steps, B, I, generator=torch.Generator().manual_seed(seed))


def _converted(model: nn.Module, **settings: Any) -> tuple[Any, Report]:
    return lsnn_ext.convert(model, **{"verify": _x(), "repeats": 0, **settings})


def test_norse_model_is_equal_and_the_report_says_so() -> None:
    model = _norse()
    before, _ = model(_x())
    same, report = lsnn_ext.convert(model, verify=_x(), repeats=2)
    assert same is model and type(model.parts[1]) is lsnn_ext.norse.LSNNRecurrent
    after, _ = model(_x())
    assert_same("output", after, before, tolerance=1e-5)
    found = report.comparison
    assert found is not None and found.verdict == "equal" and found.dtype == "float64"
    assert found.spikes == T * B * (N + 9) and min(found.rates.values()) > 0.01
    assert max(found.gradients.values()) < 1e-10 and max(found.states.values()) < 1e-10
    assert {"parts.0.weight", "parts.1.recurrent_weights", "input 0"} <= set(found.gradients)
    assert found.own_weights == 0.0
    assert report.speed is not None and report.speed.repeats == 2 and report.speed.gain > 0
    assert [one.name for one in report.replaced] == ["parts.1", "parts.2"]
    text = str(report)
    for part in ("2 of 2 spiking modules replaced", "norse.torch.module.lsnn.LSNNRecurrent",
                 "verified in float64", "equal in all", "times as fast"):
        assert part in text, text


def test_weights_buffers_random_numbers_and_grads_are_what_they_were() -> None:
    model = nn.Sequential(_norse(), nn.Flatten(0, 1), nn.BatchNorm1d(3), nn.Dropout(0.3))
    model[0].only = True  # type: ignore[assignment]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    torch.manual_seed(5)
    ahead = torch.rand(3)
    torch.manual_seed(5)
    model, report = _converted(model, classes=[wrong_for(
        "norse", "LSNNRecurrent", lambda layer: torch.rand(7))])
    assert torch.equal(torch.rand(3), ahead)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert list(model.state_dict()) == list(kept)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name], name
        assert parameter.grad is not None and bool((parameter.grad == 2).all()), name


def test_optimizer_from_before_trains_the_converted_model_and_revert_keeps_it() -> None:
    model = _norse()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    start = model.parts[1].recurrent_weights.detach().clone()
    originals = [model.parts[1], model.parts[2]]
    _converted(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(_x())[0].square().mean().backward()
        optimizer.step()
    want, state = model(_x())
    trained = model.parts[1].recurrent_weights.detach().clone()
    assert not torch.equal(trained, start)
    assert lsnn_ext.revert(model) is model
    assert [model.parts[1], model.parts[2]] == originals
    assert torch.equal(model.parts[1].recurrent_weights, trained)
    got, again = model(_x())
    assert_same("output", got, want, tolerance=1e-4)
    assert type(again).__module__.startswith("norse.") and type(state) is type(again)
    with pytest.raises(ValueError, match="nothing to put back"):
        lsnn_ext.revert(model)


def test_a_copy_leaves_the_model_alone() -> None:
    model = _norse()
    other, report = _converted(model, inplace=False)
    assert other is not model and report.changed
    assert type(model.parts[1]).__module__.startswith("norse.")
    assert type(other.parts[1]) is lsnn_ext.norse.LSNNRecurrent
    assert other.parts[1].input_weights is not model.parts[1].input_weights
    assert torch.equal(other.parts[1].input_weights, model.parts[1].input_weights)


def test_copies_and_pickles_of_a_converted_model() -> None:
    model, _ = _converted(_norse())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.parts[1].input_weights.mul_(2)
    want = twin.parts[1].input_weights
    lsnn_ext.revert(twin)
    assert twin.parts[1].input_weights is want and want is not model.parts[1].input_weights
    assert type(model.parts[1]) is lsnn_ext.norse.LSNNRecurrent
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(_x())[0], model(_x())[0])
    assert vars(again.parts[1])["_converted_from"].module is None
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = _norse(seed=7)
    again.load_state_dict(torch.load(file))
    assert_same("output", again(_x())[0], model(_x())[0], tolerance=1e-4)


def test_parameters_that_a_state_dict_has_put_in_place_go_back() -> None:
    model, _ = _converted(_norse())
    other = {name: 2 * value for name, value in model.state_dict().items()}
    model.load_state_dict(other, assign=True)
    want = dict(model.named_parameters())
    lsnn_ext.revert(model)
    for name, value in model.named_parameters():
        assert value is want[name], name


def test_a_copy_to_try_things_on_is_the_model() -> None:
    """Hooks of parameters, tied parameters, and state with a graph."""
    model: Any = _norse()
    model.tied = nn.Linear(N, N)
    model.tied.weight = model.parts[1].recurrent_weights
    model.kept = {"state": [torch.ones(3, requires_grad=True) * 2]}
    model.lock = threading.Lock()
    twin: Any = duplicate(model)
    assert twin.tied.weight is twin.parts[1].recurrent_weights is not model.tied.weight
    assert twin.parts[1].state_fallback.__self__ is twin.parts[1]
    assert torch.equal(twin.kept["state"][0], torch.full((3,), 2.0))
    assert not twin.kept["state"][0].requires_grad and twin.lock is model.lock
    for one in (model, twin):
        one(_x())[0].square().sum().backward()
        gradient = one.parts[1].recurrent_weights.grad
        assert bool((gradient.diagonal() == 0).all()) and bool((gradient != 0).any())


@pytest.mark.parametrize("frozen", ["recurrent_weights", "input_weights"])
def test_weights_that_do_not_learn(frozen: str) -> None:
    """Norse hooks the recurrent ones when it makes them; later they are frozen, and thawed."""
    model = _norse()
    getattr(model.parts[1], frozen).requires_grad_(False)
    model, report = _converted(model)
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert f"parts.1.{frozen}" not in report.comparison.gradients
    for one in (model, lsnn_ext.revert(duplicate(model))):
        weights = one.parts[1].recurrent_weights  # type: ignore[index]
        assert not getattr(one.parts[1], frozen).requires_grad  # type: ignore[index]
        weights.requires_grad_()
        one(_x())[0].square().sum().backward()
        assert bool((weights.grad.diagonal() == 0).all()) and bool((weights.grad != 0).any())


def test_parameters_of_a_class_that_copies_them_are_tied() -> None:
    def copying(layer: Any) -> None:
        for name, parameter in list(layer._parameters.items()):
            layer._parameters[name] = nn.Parameter(parameter.detach().clone())

    model = _norse()
    kept = model.parts[1].input_weights
    _converted(model, classes=[wrong_for("norse", "LSNNRecurrent", copying)])
    assert type(model.parts[1]) is lsnn_ext.norse.LSNNRecurrent
    assert model.parts[1].input_weights is kept


def test_a_model_that_is_one_layer_comes_back_as_another() -> None:
    nt = package("norse.torch")
    layer = nt.LIFRecurrent(I, N)
    model, report = _converted(layer)
    assert type(model) is lsnn_ext.norse.LIFRecurrent and report.replaced[0].names == ("",)
    assert lsnn_ext.revert(model) is layer


def test_one_module_at_two_places_stays_one() -> None:
    nt = package("norse.torch")
    layer = nt.LIFRecurrent(I, I)
    model = nn.ModuleDict({"a": nn.ModuleList([layer, nn.Identity()]), "b": layer})
    original = layer

    def run(net: Any) -> Any:
        return net["b"](net["a"][0](_x())[0])

    model, report = _converted(model, verify=run)
    assert model["b"] is model["a"][0] and type(model["b"]) is lsnn_ext.norse.LIFRecurrent
    assert report.replaced[0].names == ("a.0", "b") and "a.0 = b" in str(report)
    assert report.comparison is not None and report.comparison.dtype == "float32"
    lsnn_ext.revert(model)
    assert model["b"] is original and model["a"][0] is original


def test_moved_to_float64_and_back() -> None:
    model, _ = _converted(_norse())
    lsnn_ext.revert(model.double())
    assert model(_x().double())[0].dtype == torch.float64


@pytest.mark.parametrize("given", ["tensor", "tuple", "function"])
def test_what_verify_takes(given: str) -> None:
    x = _x()
    verify: dict[str, Any] = {"tensor": x, "tuple": (x,), "function": lambda model: model(x)}
    _, report = _converted(_norse(), verify=verify[given])
    assert report.comparison is not None and report.comparison.verdict == "equal"


def test_under_autocast_it_is_verified_without() -> None:
    """In bfloat16 spikes would differ by rounding, which looks like another mapping. A model that
    computes in float64 is not cast."""
    model = _norse()
    model.register_forward_pre_hook(lambda module, given: (given[0].to(torch.float32),))
    with torch.autocast("cpu", torch.bfloat16):
        _, report = _converted(model)
        assert torch.is_autocast_enabled("cpu")
    found = report.comparison
    assert found is not None and (found.verdict, found.dtype) == ("equal", "float32")


def test_without_verify_the_report_says_that_nothing_was_shown() -> None:
    model, report = lsnn_ext.convert(_norse())
    assert report.comparison is None and report.speed is None and "NOT VERIFIED" in str(report)
    assert type(model.parts[1]) is lsnn_ext.norse.LSNNRecurrent


def test_a_model_that_became_slower_is_told_why() -> None:
    _, report = _converted(_norse(), repeats=1)
    assert report.speed is not None
    for after, slower in ((0.5, False), (2.0, True)):
        text = str(replace(report, speed=replace(report.speed, before=1.0, after=after)))
        assert ("slower than before, as where a call has one step or few" in text) is slower


def test_silent_layers_are_named() -> None:
    _, report = _converted(_norse(), verify=torch.zeros(5, B, I))
    assert "WARNING: no neuron of parts.1, parts.2 fired" in str(report)


class Normalized(nn.Module):
    """A normalization takes away the bias in front of it, so that its gradient is rounding."""

    def __init__(self, package_of: Any) -> None:
        super().__init__()
        p = package_of.LSNNParameters(tau_adapt_inv=torch.tensor(30.0), method="triangle",
                                      v_th=torch.tensor(0.1))
        self.project, self.norm = nn.Linear(I, 10), nn.BatchNorm1d(10)
        self.layer, self.out = package_of.LSNNRecurrent(10, N, p=p), nn.Linear(N, 3)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.norm(self.project(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.out(self.layer(currents)[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_bias_in_front_of_a_normalization(seed: int) -> None:
    torch.manual_seed(seed)
    model, report = _converted(Normalized(package("norse.torch")))
    found = report.comparison
    assert found is not None and found.verdict == "equal" and found.rates["layer"] > 0.01
    assert found.but_rounding == ("project.bias",) and "project.bias" not in found.gradients
    assert {"project.weight", "norm.bias", "layer.input_weights"} <= set(found.gradients)
    assert max(found.gradients.values()) < 1e-10
    assert "gradients  of project.bias: nothing but rounding" in str(report)


def test_a_gradient_that_is_hardly_another_beside_one_of_rounding() -> None:
    def slope(layer: Any) -> None:
        layer.p = layer.p._replace(alpha=layer.p.alpha * (1 + 1e-7))

    torch.manual_seed(0)
    with pytest.raises(ConversionError) as caught:
        _converted(Normalized(package("norse.torch")),
                   classes=[wrong_for("norse", "LSNNRecurrent", slope)])
    found = caught.value.report.comparison
    assert found.first.what.startswith("gradient of ") and found.but_rounding == ("project.bias",)
    assert 1e-8 < found.first.largest < 1e-5


# ------------------------------------------------------------------------- a mapping that is wrong
def _shortened(layer: Any) -> None:
    layer.p = layer.p._replace(tau_mem_inv=layer.p.tau_mem_inv * 1.02)


def _hardly_shortened(layer: Any) -> None:
    layer.p = layer.p._replace(tau_mem_inv=layer.p.tau_mem_inv * (1 + 1e-6))


def _other_dt(layer: Any) -> None:
    layer.dt = layer.dt * 0.9


def _deaf(layer: Any) -> None:
    layer.p = layer.p._replace(tau_syn_inv=layer.p.tau_syn_inv * 0.99)


@pytest.mark.parametrize(("change", "step"), [(_shortened, 0), (_other_dt, 0), (_deaf, 0),
                                              (_hardly_shortened, 0)])
def test_a_wrong_time_constant_is_a_mapping_and_the_model_is_untouched(
    change: Callable[[Any], None], step: int,
) -> None:
    model = _norse()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(_x())[0]
    with pytest.raises(ConversionError, match="the model is as it was") as caught:
        _converted(model, classes=[wrong_for("norse", "LSNNRecurrent", change)])
    report = caught.value.report
    assert not report.changed and report.comparison.verdict == "mapping"
    first = report.comparison.first
    assert first.module == "parts.1" and first.kind == "mapping", first
    assert "another mapping of the settings" in str(caught.value)
    assert all(type(part).__module__.startswith(("norse.", "torch."))
               for part in model.parts), "the model was touched"
    assert torch.equal(model(_x())[0], before)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    model, again = _converted(model, classes=[wrong_for("norse", "LSNNRecurrent", change)],
                              strict=False)
    assert not again.changed and again.comparison is not None
    assert type(model.parts[1]).__module__.startswith("norse.")
    assert "the model is as it was" in str(again)


def test_what_convert_raises_has_a_name_in_the_package() -> None:
    """lsnn_ext.convert is the function, so attributes of the module of that name are not reached
    through it."""
    for name in ("ConversionError", "Refused", "Report"):
        assert getattr(lsnn_ext, name) is getattr(sys.modules["lsnn_ext.convert"], name)
