"""What lsnn_ext.convert says of a difference: which step, and rounding or mapping. The original is
a hand-written loop, for which a class of the caller's own stands."""
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lsnn_ext
from lsnn_ext import functional
from lsnn_ext.convert import ConversionError, Refused

N = 64


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (u,) = ctx.saved_tensors
        return g / (1 + u.abs()) ** 2


class Loop(nn.Module):
    """A loop as people write it; it computes in float32 and in an order of its own."""

    def __init__(self, size: int = N) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.eye(size))
        self.w_rec = nn.Parameter(torch.zeros(size, size))
        self.theta = nn.Parameter(torch.ones(size), requires_grad=False)
        self.alpha = 0.9
        self.steps = 0  # that were made
        self.memory: dict[str, Tensor] = {}

    def project(self, x_t: Tensor) -> Tensor:
        return x_t @ self.w_in.float().T

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.float()
        v = z = torch.zeros(x.shape[1], x.shape[2])
        spikes = []
        for x_t in x:
            c = self.project(x_t) + z @ self.w_rec.float().T
            v = self.alpha * (v + c / self.alpha)  # alpha v + c, rounded otherwise
            z = _Spike.apply(v - self.theta.float())
            v = v * (1 - z.detach())
            spikes.append(z)
        return torch.stack(spikes), v


class Fused(nn.Module):
    """What its author would hand over as classes=."""

    original = f"{__name__}.Loop"

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.w_in, self.w_rec, self.theta = loop.w_in, loop.w_rec, loop.theta
        self.alpha = loop.alpha

    @classmethod
    def from_original(cls, module: nn.Module) -> nn.Module:
        assert isinstance(module, Loop)
        if module.alpha >= 1:
            raise Refused(f"alpha: expected less than 1, got {module.alpha}")
        return cls(module)

    def coefficients(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "kappa": 1.0, "theta": self.theta}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes, state, *_ = functional.alif(
            x, self.w_rec.T, w_in=self.w_in, **self.coefficients(), dynamics="norse_lif",
            dampening=1.0, width=1.0)
        return spikes, state.v


class WrongLater(Fused):
    """A time constant of which a spike in step 4 hangs, and no state before that."""

    def coefficients(self) -> dict[str, Any]:
        return super().coefficients() | {"refractory": 3}


class Drifting(Fused):
    """A time constant that is a little another."""

    def coefficients(self) -> dict[str, Any]:
        return super().coefficients() | {"alpha": self.alpha + 1e-4}


class Flat(Fused):
    """The same spikes with another surrogate."""

    def coefficients(self) -> dict[str, Any]:
        return super().coefficients() | {"surrogate": "triangle"}


class Reordered(Fused):
    """Results of another form."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)[::-1]


class Failing(Fused):
    """It does not run."""

    def forward(self, x: Tensor) -> Any:
        raise ValueError("no way")


class Reversed(Loop):
    """It adds its inputs in the other order."""

    def project(self, x_t: Tensor) -> Tensor:
        return x_t.flip(1) @ self.w_in.float().flip(1).T


class Forwards(Fused):
    """What stands for Reversed."""

    original = f"{__name__}.Reversed"


def _x(steps: int = 12) -> Tensor:
    """Constant currents of few bits, from 1/128 to 1/2."""
    return (torch.arange(1, N + 1) / 128.0).expand(steps, 2, N).contiguous()


def _convert(model: nn.Module, kind: type[Any], **settings: Any) -> Any:
    return lsnn_ext.convert(model, **{"verify": _x(), "classes": [kind], "repeats": 0, **settings})


def test_a_class_of_ones_own() -> None:
    model, report = _convert(nn.Sequential(Loop()), Fused)
    assert type(model[0]) is Fused
    found = report.comparison
    assert found.verdict == "equal" and found.dtype == "float32" and found.rates["0"] > 0.02
    assert max(found.gradients.values()) < 1e-4


def test_a_spike_that_hangs_on_the_last_bit_is_rounding() -> None:
    """The threshold is the very number that our membrane has after the fifth step."""
    loop = Loop()
    v = torch.zeros(N)
    for _ in range(5):
        v = 0.9 * v + _x()[0, 0]
    loop.theta.data.copy_(v)
    want, _ = loop(_x())
    got, _ = Fused(loop)(_x())
    assert not torch.equal(want, got), "nothing hangs on the last bit here"
    model, report = _convert(nn.Sequential(loop), Fused)
    found = report.comparison
    assert type(model[0]) is Fused and report.changed
    assert found.verdict == "rounding" and found.gradients == {}
    assert found.first.kind == "rounding" and found.first.step == 4 and found.first.ulps <= 16
    assert "equal but for rounding" in str(report) and "at step 4, item 0" in str(report)
    assert 0 < found.own_weights < 0.5


class _Keeps(nn.Module):
    """Spikes of a membrane that stays in the module; forget() is called between sequences."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.v: Tensor | None = None
        self.forgets = forgets

    def forget(self) -> None:
        if self.forgets:
            self.v = None

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0]) if self.v is None else self.v
        spikes = []
        for x_t in x:
            v = 0.5 * v + self.weight * x_t
            spikes.append(_Spike.apply(v - 1.0))
        self.v = v.detach()
        return torch.stack(spikes)


class Keeping(_Keeps):
    """Whose forget() does nothing."""


class Forgetting(_Keeps):
    """What stands for it, and does forget."""

    original = f"{__name__}.Keeping"

    @classmethod
    def from_original(cls, module: Keeping) -> "Forgetting":
        layer = cls(True)
        layer.weight, layer.v = module.weight, module.v
        return layer


class _Between(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Keeping(False)

    def forward(self, x: Tensor) -> Tensor:
        self.layer.forget()
        first = self.layer(x)
        self.layer.forget()
        return first + self.layer(x)


def test_a_reset_that_acts_otherwise_is_no_rounding() -> None:
    """The second call begins from another state, which a run of the two calls alone does not
    have."""
    x = torch.full((4, 2, 3), 0.75)
    with pytest.raises(ConversionError, match="changes the state between the calls") as error:
        lsnn_ext.convert(_Between(), verify=x, classes=[Forgetting])
    found = error.value.report.comparison.first
    assert (found.kind, found.call, found.step) == ("mapping", 1, 0)


def test_rounding_in_one_item_does_not_hide_a_mapping_in_another() -> None:
    """The first item parts by rounding at step 4, the second by a refractory period at step 6."""
    loop = Loop()
    v = torch.zeros(N)
    for _ in range(5):
        v = 0.9 * v + _x()[0, 0]
    loop.theta.data.copy_(v)
    x = _x()
    x[:5, 1], x[5:, 1] = 0.0, 0.5
    with pytest.raises(ConversionError) as caught:
        _convert(nn.Sequential(loop), WrongLater, verify=x)
    first = caught.value.report.comparison.first
    assert (first.kind, first.step, first.where[0]) == ("mapping", 6, 1)
    _, report = _convert(nn.Sequential(loop), Fused, verify=x)
    assert report.comparison.verdict == "rounding" and report.comparison.first.step == 4


def test_weights_of_few_bits_are_summed_exactly_in_any_order() -> None:
    """With its own weights spikes hang on the order of the sums; nothing does in the comparison."""
    torch.manual_seed(0)
    loop = Reversed()
    loop.alpha = 0.5
    loop.w_in.data.normal_()
    x = (torch.rand(4, 2, N) < 0.5).float()
    # the membrane after the first step is the threshold of the first item
    loop.theta.data.copy_(torch.nn.functional.linear(x[0, 0], loop.w_in.detach()))
    _, report = _convert(nn.Sequential(loop), Forwards, verify=x)
    assert report.comparison.own_weights > 0, "nothing hangs on the order of the sums here"
    assert report.comparison.verdict == "equal" and report.comparison.bits == 8


@pytest.mark.parametrize("kind", [WrongLater, Drifting, Flat, Reordered])
def test_another_mapping_is_found(kind: type[Any]) -> None:
    loop = Loop()
    loop.theta.data.fill_(0.99)
    model = nn.Sequential(loop)
    with pytest.raises(ConversionError) as caught:
        _convert(model, kind)
    assert model[0] is loop
    first = caught.value.report.comparison.first
    assert first.kind == "mapping", first
    if kind is WrongLater:
        # c = 1/2 fires in steps 2, 5, ...: v = .5, .95, 1.355; with 3 steps of rest not before 6
        want = Loop.forward(loop, _x())[0]
        got = kind.from_original(loop)(_x())[0]
        assert (first.what, first.step) == ("spikes", int((want != got).nonzero()[0, 0]))
        assert first.where == (0, int((want != got)[first.step, 0].nonzero()[0]))
    elif kind is Drifting:
        assert first.what in ("spikes", "state 1")
    elif kind is Flat:
        assert first.what.startswith("gradient of ")
    else:
        assert first.what in ("results", "spikes")


def test_a_state_that_drifts_is_dated() -> None:
    """No neuron fires, so the states tell: from the second step on, as v is 0 before the first."""
    loop = Loop()
    loop.theta.data.fill_(100.0)
    with pytest.raises(ConversionError) as caught:
        _convert(nn.Sequential(loop), Drifting)
    first = caught.value.report.comparison.first
    assert (first.what, first.step, first.kind) == ("state 1", 1, "mapping")


def test_a_converted_model_that_fails() -> None:
    model = nn.Sequential(Loop())
    with pytest.raises(ConversionError, match="ValueError: no way; the model is as it was"):
        _convert(model, Failing)
    assert type(model[0]) is Loop


def test_a_refusal_of_ones_own_is_in_the_report() -> None:
    loop = Loop()
    loop.alpha = 1.0
    model, report = _convert(nn.Sequential(loop, nn.Identity()), Fused)
    assert model[0] is loop and report.replaced == ()
    assert report.left[0].reason == "alpha: expected less than 1, got 1.0"


def test_settings_that_cannot_be_read_are_a_refusal() -> None:
    loop = Loop()
    del loop.alpha
    _, report = _convert(nn.Sequential(loop), Fused)
    assert "could not be read" in report.left[0].reason and "AttributeError" in str(report)


def test_a_subclass_is_left() -> None:
    class Mine(Loop):
        pass

    _, report = _convert(nn.Sequential(Mine()), Fused)
    assert "its class is made of" in report.left[0].reason


def test_two_layers_name_the_first_that_differs() -> None:
    model = nn.Sequential()
    model.add_module("a", _Spikes(Loop()))
    model.add_module("b", _Spikes(Loop()))
    for part in model:
        part.layer.theta.data.fill_(0.99)
    with pytest.raises(ConversionError) as caught:
        _convert(model, WrongLater)
    assert caught.value.report.comparison.first.module == "a.layer"


class _Spikes(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = self.layer(x)[0]
        return spikes
