"""lsnn_ext.yin, .sparch and .se_adlif against plain loops of the published equations."""
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import published
from lsnn_ext import se_adlif, sparch, yin
from lsnn_ext._original import Refused
from originals import B, I, N, T, assert_equal, tolerance, uniform
from peer_layers import fill as _fill
from peer_layers import spike_rnn as _spike_rnn

DOUBLE, SINGLE = torch.float64, torch.float32
DTYPES = pytest.mark.parametrize("dtype", [DOUBLE, SINGLE], ids=str)


def _input(dtype: torch.dtype, *shape: int) -> Tensor:
    return uniform(-1, 2, *shape, dtype=dtype, seed=3).requires_grad_()


# -------------------------------------------------------------------------------------- Yin et al.
@pytest.mark.parametrize("loop", [False, True], ids=["sequence", "loop"])
@pytest.mark.parametrize("arguments", [{}, {"is_adaptive": 0}, {"bias": False}], ids=str)
@DTYPES
def test_srnn(dtype: torch.dtype, arguments: dict[str, Any], loop: bool) -> None:
    torch.manual_seed(2)
    theirs = _spike_rnn(**arguments).to(dtype)
    _fill(theirs, 2.0)
    layer = yin.SRNN.from_original(theirs)
    x = _input(dtype, T, B, I)

    def steps(side: Any) -> dict[str, Tensor]:
        side.set_neuron_state(B)
        found = [side(x_t) for x_t in x]
        return {"spikes": torch.stack([spike for _, spike in found]),
                "membranes": torch.stack([mem for mem, _ in found]), "b": side.b}

    def sequence(side: Any) -> dict[str, Tensor]:
        side.set_neuron_state(B)
        parts = [side(part, trace=True) for part in x.split((9, T - 9))]
        return {"spikes": torch.cat([spikes for _, spikes in parts]),
                "membranes": torch.cat([mem for mem, _ in parts]), "b": side.b}

    # without adaptation theirs has no gradient in tau_adp but that of b, ours too
    assert_equal(lambda: steps(theirs), lambda: (steps if loop else sequence)(layer),
                 {"x": x, **dict(theirs.named_parameters())}, tolerance(dtype))
    assert torch.equal(layer(x)[0], layer.mem)


def test_srnn_from_spikes_that_are_none() -> None:
    """Some of the programs begin with random numbers in place of spikes, and learn through them."""
    torch.manual_seed(2)
    theirs = _spike_rnn().double()
    _fill(theirs, 2.0)
    layer, x = yin.SRNN.from_original(theirs), _input(DOUBLE, T, B, I)
    first = uniform(0, 1, B, N, seed=8).requires_grad_()

    def run(side: Any) -> dict[str, Tensor]:
        side.set_neuron_state(B)
        side.mem, side.spike = 0.5 * first, first
        spikes = side(x)[1] if side is layer else torch.stack([side(x_t)[1] for x_t in x])
        return {"spikes": spikes, "b": side.b}

    assert_equal(lambda: run(theirs), lambda: run(layer),
                 {"x": x, "first": first, **dict(theirs.named_parameters())}, 1e-12)


@pytest.mark.parametrize("kind", ["G", "linear", "slayer"])
def test_surrogates_of_srnn(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = yin._shape("", kind, 0.25, 0.75)
    monkeypatch.setattr(published, "surrograte_type", kind)
    monkeypatch.setattr(published, "gamma", 0.25)
    monkeypatch.setattr(published, "lens", 0.75)
    derivative = {
        "G": lambda u: 0.25 * torch.exp(-(u / 0.75) ** 2 / 2) / (2 * torch.pi) ** 0.5 / 0.75,
        "linear": lambda u: 0.25 * torch.relu(1 - u.abs()),
        "slayer": lambda u: 0.25 * torch.exp(-5 * u.abs())}[kind]
    monkeypatch.setattr(published, "act_fun_adp", lambda u: published._spike(u, derivative))
    theirs = _spike_rnn()
    assert yin.SRNN.from_original(theirs)._shape == shape
    monkeypatch.setattr(published, "act_fun_adp",
                        lambda u: published._spike(u, lambda m: 2 * derivative(m)))
    with pytest.raises(Refused, match="act_fun_adp: expected the derivative of surrogate"):
        yin.SRNN.from_original(theirs)


def test_srnn_from_the_same_seed() -> None:
    torch.manual_seed(1)
    theirs = published.SpikeRNN(I, N)
    torch.manual_seed(1)
    layer = yin.SRNN(I, N)
    want, got = theirs.state_dict(), layer.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    assert (layer.b_j0, layer.beta) == (1.6, 0.184)
    assert {id(p) for p in yin.SRNN.from_original(theirs).parameters()} == {
        id(p) for p in theirs.parameters()}


@pytest.mark.parametrize("change", [
    {"b_j0_value": 0.25}, {"R_m": 2}, {"beta_value": 1.0}])
def test_srnn_takes_the_constants_beside_the_class(change: dict[str, Any],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in change.items():
        monkeypatch.setattr(published, name, value)
    torch.manual_seed(2)
    theirs = _spike_rnn().double()
    _fill(theirs, 2.0)
    layer, x = yin.SRNN.from_original(theirs), _input(DOUBLE, T, B, I)

    def steps() -> dict[str, Tensor]:
        theirs.set_neuron_state(B)
        return {"spikes": torch.stack([theirs(x_t)[1] for x_t in x])}

    def sequence() -> dict[str, Tensor]:
        layer.set_neuron_state(B)
        return {"spikes": layer(x)[1]}

    assert_equal(steps, sequence, {"x": x, **dict(theirs.named_parameters())}, 1e-12)


@pytest.mark.parametrize("start", [0.25, torch.full((N,), 0.25)])
def test_an_adaptation_that_starts_elsewhere(start: Any) -> None:
    """In the programs b_j0 of the layer is where the adaptation starts, and the threshold is the
    constant beside the class."""
    theirs: Any = published.SpikeRNN(I, N)
    theirs.b_j0 = start
    with pytest.raises(Refused, match=r"^SRNN: b_j0: expected 0\.5, the b_j0_value .* got "):
        yin.SRNN.from_original(theirs)


def test_refusals_of_srnn(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = published.SpikeRNN(I, N)
    with pytest.raises(Refused, match="tau_initializer: expected 'normal'"):
        yin.SRNN(I, N, tau_initializer="multi_normal")
    with pytest.raises(Refused, match="surrogate: expected MG, G, linear, slayer, got 'step'"):
        yin.SRNN(I, N, surrogate="step")
    with pytest.raises(ValueError, match=r"input_spike: expected shape \(B, I\)"):
        yin.SRNN(I, N)(torch.zeros(I))
    monkeypatch.setattr(published, "published_update", published.mem_update_adp, raising=False)

    def other(*values: Any, dt: int = 1, **rest: Any) -> Any:
        return published_update(values[0] + 0.5, *values[1:], **rest)  # type: ignore[name-defined]  # noqa: F821

    changed = types.FunctionType(other.__code__, vars(published))
    changed.__kwdefaults__ = other.__kwdefaults__
    monkeypatch.setattr(published, "mem_update_adp", changed)
    with pytest.raises(Refused, match="mem_update_adp: expected the published one"):
        yin.SRNN.from_original(theirs)
    monkeypatch.delattr(published, "mem_update_adp")
    with pytest.raises(Refused, match="mem_update_adp: expected the program's function"):
        yin.SRNN.from_original(theirs)


# -------------------------------------------------------------------------------- Bittar and Garner
@pytest.mark.parametrize("arguments", [
    {"normalization": "none"}, {"normalization": "none", "use_bias": True, "threshold": 0.75},
    {"bidirectional": True, "normalization": "none"}, {"dropout": 0.5, "normalization": "none"},
    {"normalization": "batchnorm"}, {"normalization": "layernorm"}], ids=str)
@pytest.mark.parametrize("kind", ["RadLIFLayer", "RLIFLayer"])
@DTYPES
def test_sparch(dtype: torch.dtype, kind: str, arguments: dict[str, Any]) -> None:
    """With the same random states, which both draw in each call. A normalization rounds, so that in
    float32 a spike may differ; there it is compared in float64 alone."""
    if dtype == SINGLE and arguments["normalization"] != "none":
        arguments = {"normalization": "none"}
    if kind == "RLIFLayer" and arguments["normalization"] != "none":
        arguments = arguments | {"threshold": 0.25}  # it would be silent
    torch.manual_seed(2)
    theirs = getattr(published, kind)(I, N, B, **arguments).to(dtype)
    _fill(theirs, 2.0)
    layer = getattr(sparch, kind).from_original(theirs)
    x = _input(dtype, B, T, I)

    def run(side: nn.Module) -> dict[str, Tensor]:
        torch.manual_seed(7)
        return {"spikes": side(x)}

    # theirs lets alpha (u - s) through at once, ours in two products
    leaves = {"x": x, **dict(theirs.named_parameters())}
    assert_equal(lambda: run(theirs), lambda: run(layer), leaves, tolerance(dtype))
    assert {id(p) for p in layer.parameters()} == {id(p) for p in theirs.parameters()}


@pytest.mark.parametrize("kind", ["RadLIFLayer", "RLIFLayer"])
def test_sparch_from_the_same_seed(kind: str) -> None:
    torch.manual_seed(1)
    theirs = getattr(published, kind)(I, N, B, 0.25, 0.5)
    torch.manual_seed(1)
    layer = getattr(sparch, kind)(I, N, B, 0.25, 0.5)
    want, got = theirs.state_dict(), layer.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    x = _input(SINGLE, B, T, I)
    assert not torch.equal(layer.eval()(x), layer.train()(x))
    layer.eval()
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(layer(x), first), "each call draws its own states"
    theirs.spike_fct = lambda u: published._spike(u, lambda m: 2 * published._boxcar(m))
    with pytest.raises(Refused, match="spike_fct: expected the derivative of surrogate 'boxcar'"):
        getattr(sparch, kind).from_original(theirs)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, I\)"):
        layer(torch.zeros(B, I))


# --------------------------------------------------------------------------------- Baronig et al.
@pytest.mark.parametrize("arguments", [
    {}, {"use_recurrent": False}, {"thr": 0.75, "alpha": 4.0, "c": 0.3, "q": 10.0},
    {"train_tau_u_method": "interpolation", "train_tau_w_method": "interpolation",
     "tau_u_range": (5, 25), "tau_w_range": (60, 300)}], ids=str)
@DTYPES
def test_se_adlif(dtype: torch.dtype, arguments: dict[str, Any]) -> None:
    torch.manual_seed(2)
    theirs = published.SEAdLIF(I, N, **arguments).to(dtype)
    _fill(theirs, 12.0)
    layer = se_adlif.SEAdLIF.from_original(theirs)
    x = _input(dtype, B, T, I)

    def run(side: nn.Module) -> dict[str, Tensor]:
        spikes, states = side(x)
        return {"spikes": spikes, "states": states}

    leaves = {"x": x, **{name: parameter for name, parameter in theirs.named_parameters()
                         if parameter.requires_grad}}
    assert_equal(lambda: run(theirs), lambda: run(layer), leaves, tolerance(dtype))
    assert layer(x, with_states=False)[1] is None


@pytest.mark.parametrize("method", ["fixed", "interpolation"])
def test_se_adlif_from_the_same_seed(method: str) -> None:
    made: list[Any] = []
    for kind in (published.SEAdLIF, se_adlif.SEAdLIF):
        torch.manual_seed(1)
        made.append(kind(I, N, train_tau_w_method=method))
    theirs, layer = made
    want, got = theirs.state_dict(), layer.state_dict()
    assert got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)
    for name, parameter in theirs.named_parameters():
        assert dict(layer.named_parameters())[name].requires_grad == parameter.requires_grad
    with torch.no_grad():
        layer.a.fill_(3.0)
        layer.tau_w_trainer.weight.fill_(-2.0)
    layer.apply_parameter_constraints()
    assert layer.a.max().item() == 1
    assert layer.tau_w_trainer.weight[0].item() == (0 if method == "interpolation" else -2)
    with pytest.raises(ValueError, match="expected 'fixed' or 'interpolation', got 'free'"):
        se_adlif.SEAdLIF(I, N, train_tau_u_method="free")
    with pytest.raises(ValueError, match=r"input_tensor: expected shape \(B, T, I\)"):
        layer(torch.zeros(B, I))
