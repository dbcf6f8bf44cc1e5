"""The layer with learned delays: what it spreads, its gradients, and the layers that it equals."""
from typing import Any

import pytest
import torch
from torch import Tensor

from draws import draw_spikes
from lsnn_ext import ALIF, LearnedDelay, functional
from lsnn_ext.functional import State, Traces

I, N, LONGEST = 6, 5, 4
NEURON: dict[str, Any] = {"tau_mem": 12.0, "tau_adapt": 60.0, "beta": 0.7, "threshold": 0.02,
                          "refractory": 2}


def _layer(per: str, seed: int = 0, dtype: torch.dtype = torch.float64,
           **more: Any) -> LearnedDelay:
    torch.manual_seed(seed)
    return LearnedDelay(I, N, LONGEST, per=per, dtype=dtype, **NEURON, **more)


def _alif(layer: LearnedDelay, **options: Any) -> ALIF:
    """With the same weights and the nearest whole delays."""
    delay = layer.round_delays()
    plain = ALIF(I, N, delay=delay, **NEURON, **options)
    plain.load_state_dict(layer.neurons.state_dict() | {"delay": delay})
    return plain


def _x(T: int = 30, B: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw_spikes(T, B, I, rate=0.2, dtype=dtype)


def _run(layer: LearnedDelay | ALIF, *arguments: Any, **named: Any) -> tuple[Tensor, State, Traces]:
    made = layer(*arguments, trace=True, **named)
    assert len(made) == 3 and bool(made[0].any())
    return made


@pytest.mark.parametrize("per", ["neuron", "synapse"])
def test_whole_delays_are_those_of_alif(per: str) -> None:
    shape = (N,) if per == "neuron" else (N, N)
    first = torch.randint(LONGEST + 1, shape, generator=torch.Generator().manual_seed(3))
    layer = _layer(per, first=first.double())
    ours, theirs = _run(layer, _x()), _run(_alif(layer, dtype=torch.float64), _x())
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[2].v, theirs[2].v, rtol=1e-12, atol=1e-15)


def test_whole_delays_are_the_nearest() -> None:
    layer = _layer("neuron", first=torch.tensor([0.4, 0.6, 2.0, 3.7, 1.2]))
    assert torch.equal(layer.round_delays(), torch.tensor([0, 1, 2, 4, 1])[:, None].expand(N, N))


def test_shares() -> None:
    layer = _layer("neuron", first=torch.tensor([0.0, 0.25, 2.0, 3.5, 4.0]))
    wanted = torch.tensor([[1, 0, 0, 0, 0], [0.75, 0.25, 0, 0, 0], [0, 0, 1, 0, 0],
                           [0, 0, 0, 0.5, 0.5], [0, 0, 0, 0, 1]])
    assert torch.allclose(layer.shares().t().float(), wanted)
    wide = _layer("synapse", spread=1.5)
    k = wide.shares()
    assert k.shape == (LONGEST + 1, N, N)
    torch.testing.assert_close(k.sum(0), torch.ones(N, N, dtype=torch.float64))
    for j, m in ((0, 1), (3, 2)):
        d = float(wide.delay.detach()[j, m])
        raw = [max(0.0, 1 - abs(d - s) / 2.5) for s in range(LONGEST + 1)]
        assert k[:, j, m].tolist() == pytest.approx([one / sum(raw) for one in raw])


@pytest.mark.parametrize("spread", [0.0, 0.8])
@pytest.mark.parametrize("per", ["neuron", "synapse"])
def test_gradients_against_finite_differences(per: str, spread: float) -> None:
    """Smooth spikes have derivatives; delays away from corners, where there is one to compare."""
    layer = _layer(per, spread=spread)
    with torch.no_grad():
        d = torch.randint(LONGEST, layer.delay.shape) + 0.3 + 0.3 * torch.rand(layer.delay.shape)
        layer.delay.copy_(d)
        if spread:
            u = (d - torch.arange(LONGEST + 1.0).view(-1, *[1] * d.dim())) / (1 + spread)
            assert float((u.abs() - 1).abs().min()) > 1e-3
    x, neurons = _x(14, 2), layer.neurons
    names = "delay", "neurons.weight_hh_l0", "neurons.weight_ih_l0"

    def loss(*values: Tensor) -> Tensor:
        def forward(given: Tensor) -> Tensor:
            made = functional.layer(
                given, neurons.weight_ih_l0, layer.recurrent_weight(), smooth=True,
                bias=neurons.bias_ih_l0, **neurons._compute_neuron_arguments("_l0")
                | {"delay": tuple(range(LONGEST + 1))})
            return made.spikes

        layer.forward = forward  # type: ignore[method-assign,assignment]
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    parameters = dict(layer.named_parameters())
    values = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, values, rtol=1e-4, atol=1e-6)
    gradient, = torch.autograd.grad(loss(*values).square().sum(), values[0])
    assert float(gradient.abs().max()) > 1e-3


def test_no_delay_is_caught_at_a_whole_number() -> None:
    """At corners the derivative is that of the side where there is room."""
    for spread in (0.0, 1.0):
        layer = _layer("neuron", spread=spread, first=torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
        steps = torch.arange(LONGEST + 1.0, dtype=torch.float64)
        mean = (layer.shares() * steps[:, None]).sum(0)
        gradient, = torch.autograd.grad(mean.sum(), layer.delay)
        with torch.no_grad():
            ahead = torch.tensor([1, 1, 1, 1, -1]) * 1e-6
            layer.delay += ahead
            slope = ((layer.shares() * steps[:, None]).sum(0) - mean.detach()) / ahead
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-4)
        assert float(gradient.abs().min()) > 0.1


def test_learns_the_delays_of_a_teacher() -> None:
    """From membranes only; a wide spread that narrows finds distant delays."""
    random = torch.Generator().manual_seed(0)
    sources, targets, longest = 6, 6, 12
    n = sources + targets

    def made(first: Tensor, spread: float = 0.0) -> LearnedDelay:
        layer = LearnedDelay(n, n, longest, spread=spread, first=first, bias=False, tau_mem=20.0,
                             threshold=1.0, beta=0.5, tau_adapt=10.0)
        with torch.no_grad():
            layer.neurons.weight_ih_l0.copy_(torch.eye(n) * 25)  # type: ignore[operator]
            w = torch.zeros(n, n)
            w[sources:, :sources] = 0.5 + torch.rand(targets, sources, generator=random)
            layer.neurons.weight_hh_l0.copy_(w)  # type: ignore[operator]
        return layer

    teacher = made(torch.cat([torch.tensor([0.0, 2, 5, 7, 10, 12]), torch.zeros(targets)]))
    layer = made(torch.full((n,), longest / 2), spread=4.0)
    layer.neurons.load_state_dict(teacher.neurons.state_dict())
    x = torch.zeros(150, 8, n)
    x[..., :sources] = (torch.rand(150, 8, sources, generator=random) < 0.05).float()
    with torch.no_grad():
        wanted = _run(teacher, x)[2].v
    tuned = torch.optim.Adam([layer.delay], lr=0.2)
    before = (layer.delay - teacher.delay).detach()[:sources].abs().mean()
    for k in range(100):
        layer.anneal(k / 100)
        tuned.zero_grad()
        (_run(layer, x)[2].v - wanted)[..., sources:].square().mean().backward()
        tuned.step()
        layer.clamp_()
    after = (layer.delay - teacher.delay).detach()[:sources].abs()
    assert float(before) > 3.5 and float(after.max()) < 0.5, after
    layer.anneal(1.0)
    assert float(layer.spread) == 0


def test_two_calls_that_pass_the_state_on_are_one() -> None:
    layer, x = _layer("synapse", dtype=torch.float32), _x(dtype=torch.float32)
    whole, end, _ = _run(layer, x)
    first, state = layer(x[:11])
    second, after = layer(x[11:], state)
    assert torch.equal(torch.cat([first, second]), whole)
    assert all(map(torch.equal, end, after)) and end.z.shape == (1, LONGEST + 1, 3, N)


def test_state_dict() -> None:
    layer, other = _layer("neuron", spread=0.5), _layer("neuron", 1)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(_x())[0], other(_x())[0]) and float(other.spread) == 0.5


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_inputs_of_other_dtypes(dtype: torch.dtype, bias: bool) -> None:
    """As ALIF takes them: spikes of 0 and 1 in any of them, as numbers or as bits."""
    layer = _layer("neuron", dtype=torch.float32, first=torch.tensor([0.0, 1, 2, 3, 4]), bias=bias)
    x = _x(dtype=dtype)
    ours, theirs = _run(layer, x), _run(_alif(layer, bias=bias), x)
    assert ours[0].dtype == theirs[0].dtype
    assert torch.equal(ours[0], theirs[0])
    assert ours[1].v.dtype == torch.float32
    if dtype.is_floating_point:
        assert torch.equal(layer(functional.pack_spikes(x))[0], ours[0])


def test_what_is_wrong_is_named() -> None:
    for change, error, said in (
            ({"longest": 0}, ValueError, "longest: expected a whole number >= 1, got 0"),
            ({"per": "layer"}, ValueError, "per: expected 'neuron' or 'synapse', got 'layer'"),
            ({"spread": -1.0}, ValueError, "spread: expected a number >= 0, got -1"),
            ({"spread": "wide"}, TypeError, "spread: expected a number >= 0, got 'wide'"),
            ({"first": torch.zeros(2)}, ValueError, r"first: expected shape \(5,\), got \(2,\)"),
            ({"first": torch.full((N,), 5.0)}, ValueError, "first: expected numbers from 0 to"),
            ({"num_layers": 2}, TypeError, "num_layers: expected none in LearnedDelay, got 2"),
            ({"sparse_grad": "existing"}, TypeError,
             "sparse_grad: expected none in LearnedDelay, got 'existing'"),
            ({"tau_mem": -1.0}, ValueError, "tau_mem: expected numbers > 0")):
        arguments: dict[str, Any] = {"longest": 4} | change
        with pytest.raises(error, match=said):
            LearnedDelay(I, N, **arguments)
    layer = _layer("neuron")
    with torch.no_grad():
        layer.delay[2] = LONGEST + 0.5
    with pytest.raises(ValueError, match="delay: expected numbers from 0 to longest = 4"):
        layer(_x())
    layer.clamp_()
    layer(_x())
    with pytest.raises(ValueError, match="done: expected a fraction from 0 to 1, got 2"):
        layer.anneal(2)
