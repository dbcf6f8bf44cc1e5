"""What lsnn_ext.convert leaves as it is, with the reason, and what it does not take."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import lsnn_ext
from foreign import Stacked
from originals import package

T, B, I, N = 20, 3, 6, 12


def _layer(**settings: Any) -> Any:
    nt = package("norse.torch")
    torch.manual_seed(0)
    return nt.LSNNRecurrent(I, N, **settings)


def _reason(model: nn.Module, name: str = "0", **settings: Any) -> str:
    """Of the module with this name, which must be left, the very same."""
    kept = model.get_submodule(name)
    found, report = lsnn_ext.convert(model, **settings)
    assert found.get_submodule(name) is kept
    (reason,) = (one.reason for one in report.left if one.name == name)
    assert reason in str(report) and name not in [one.name for one in report.replaced]
    return reason


class _Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def _hooked(layer: Any) -> None:
    layer.register_forward_hook(lambda *_: None)


def _hooked_before(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda *_: None)


def _hooked_backward(layer: Any) -> None:
    layer.register_full_backward_hook(lambda *_: None)


def _own_forward(layer: Any) -> None:
    layer.forward = lambda x: x


def _compiled(layer: Any) -> None:
    layer.compile()


@pytest.mark.parametrize("change", [_hooked, _hooked_before, _hooked_backward, _own_forward,
                                    _compiled])
def test_what_would_be_lost(change: Callable[[Any], None]) -> None:
    layer = _layer()
    change(layer)
    assert "which would be lost" in _reason(nn.Sequential(layer))


def test_a_parametrized_layer() -> None:
    layer = _layer()
    parametrize.register_parametrization(layer, "input_weights", _Half())
    assert "parametrized" in _reason(nn.Sequential(layer))


def test_a_subclass() -> None:
    nt = package("norse.torch")

    class Mine(nt.LSNNRecurrent):  # type: ignore[misc]
        pass

    reason = _reason(nn.Sequential(Mine(I, N)))
    assert "its class is made of norse.torch.module.lsnn.LSNNRecurrent" in reason


@pytest.mark.parametrize(("settings", "word"), [
    ({"record_states": True}, "record_states"), ({"adjoint": True}, "adjoint"),
])
def test_settings_of_norse(settings: dict[str, Any], word: str) -> None:
    assert word in _reason(nn.Sequential(_layer(**settings)))


def test_other_neurons_of_the_packages() -> None:
    nt = package("norse.torch")
    model = nn.Sequential(nt.LIFCell(), nt.LIFRecurrentCell(I, N), nt.LIF())
    for name in "012":
        assert "no class of lsnn_ext stands for it" in _reason(model, name)


def test_a_layer_in_a_list_too() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = _layer()
            self.all = [self.layer]

        def forward(self, x: Tensor) -> Any:
            return self.all[0](x)

    assert "all holds it too, in a list or dict" in _reason(Listed(), "layer")


def test_monitors_of_spikingjelly() -> None:
    package("spikingjelly")
    from spikingjelly.activation_based.monitor import OutputMonitor

    model = nn.Sequential(_layer())
    monitor = OutputMonitor(model, type(model[0]))
    assert "monitor" in _reason(model)
    monitor.remove_hooks()
    _, report = lsnn_ext.convert(model)
    assert report.left == ()


def test_one_left_and_one_replaced_are_verified_together() -> None:
    nt = package("norse.torch")
    model = Stacked(_layer(), nt.LIFRecurrent(N, N, record_states=True), nn.Linear(N, 2))
    x = 8 * torch.rand(T, B, I)
    _, report = lsnn_ext.convert(model, verify=x, repeats=0)
    assert [one.name for one in report.replaced] == ["parts.0"]
    assert [one.name for one in report.left] == ["parts.1"]
    assert report.comparison is not None and report.comparison.verdict == "equal"
    assert "1 of 2 spiking modules replaced" in str(report)


def test_a_model_without_spiking_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    found, report = lsnn_ext.convert(model, verify=torch.ones(3, 2))
    assert found is model and report.comparison is None
    assert "no spiking module" in str(report)


@pytest.mark.parametrize("wrap", [torch.compile, torch.jit.script, nn.DataParallel])
def test_wrapped_models(wrap: Callable[..., Any]) -> None:
    wrapped = nn.Sequential(wrap(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(TypeError, match="model: expected one that nothing is wrapped around"):
        lsnn_ext.convert(wrapped)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"model": 3}, TypeError, "model: expected a torch.nn.Module, got int"),
    ({"verify": "x"}, TypeError, "verify: expected a tensor, a tuple of arguments or a function"),
    ({"verify": nn.Linear(2, 2)}, TypeError, "verify: expected"),
    ({"repeats": True}, TypeError, "repeats: expected an int >= 0, got bool"),
    ({"repeats": -1}, ValueError, "repeats: expected an int >= 0, got -1"),
    ({"classes": [nn.Linear]}, TypeError, "classes: expected classes with original"),
])
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = arguments.pop("model", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(error, match=message):
        lsnn_ext.convert(model, **arguments)


def test_revert_takes_what_was_converted() -> None:
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got int"):
        lsnn_ext.revert(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected one that was converted"):
        lsnn_ext.revert(nn.Linear(2, 2))


def test_revert_after_a_pickle_says_what_is_missing() -> None:
    import pickle

    model, _ = lsnn_ext.convert(nn.Sequential(_layer()))
    model[0].p = None  # of norse's own class
    again = pickle.loads(pickle.dumps(model))
    with pytest.raises(RuntimeError, match="0: expected the original beside it"):
        lsnn_ext.revert(again)
