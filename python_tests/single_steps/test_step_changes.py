"""After any change a step without gradients equals one with them, errors too, and a call with
cached coefficients equals one of a copy, which caches nothing."""
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from compare import assert_same, outputs_and_gradients, through_file
from draws import draw, draw_spikes
from lsnn_ext import ALIF, LSNN, State, functional
from lsnn_ext.modules.parametrizations import Clamp
from operator_calls import Calls
from steps import I, N, assert_equal, needs_prepared_layers

# a number itself, and one that is computed of what is stored
LEARN = {"tau_mem": "plain", "tau_adapt": "log"}


@pytest.fixture
def layer() -> ALIF:
    torch.manual_seed(1)
    return ALIF(I, N, learn=LEARN)


def _fused(layer: ALIF) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05, fused=True)
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _optimizer(layer: ALIF) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    layer(draw(5, 2, I))[0].sum().backward()
    layer.tau_mem_l0.grad = torch.ones(())
    optimizer.step()


def _load(layer: ALIF, **how: Any) -> None:
    other = ALIF(I, N, tau_mem=7.0, learn=LEARN if layer.learn else ())
    layer.load_state_dict(other.state_dict(), **how)


def _swap_data(layer: ALIF) -> None:
    layer.weight_hh_l0.data = layer.weight_hh_l0.data * 2
    layer.weight_hh_l0.data = layer.weight_hh_l0.data * 2  # may lie where the first one lay


def _replace(layer: ALIF) -> None:
    for _ in range(3):  # the memory of one that is gone may be that of the next
        layer.weight_hh_l0 = nn.Parameter(torch.randn(N, N))


CHANGES: dict[str, Callable[[ALIF], Any]] = {
    "in-place": lambda layer: layer.weight_hh_l0.mul_(2),
    "one-synapse": lambda layer: layer.weight_hh_l0[3, 5].add_(9),
    "in-place-in-data": lambda layer: layer.weight_hh_l0.data.mul_(2),
    "one-synapse-in-data": lambda layer: layer.weight_hh_l0.data[3].add_(9),
    "through-numpy": lambda layer: layer.weight_hh_l0.detach().numpy().fill(0.5),
    "data-replaced": _swap_data,
    "data-transposed": lambda layer: setattr(layer.weight_hh_l0, "data",
                                             layer.weight_hh_l0.data.t()),
    "data-expanded": lambda layer: setattr(layer.beta_l0, "data", torch.full((N,), 0.1)),
    "parameter-replaced": _replace,
    "parameter-of-the-same-memory": lambda layer: setattr(layer, "weight_hh_l0",
                                                          nn.Parameter(layer.weight_hh_l0.data)),
    "buffer-replaced": lambda layer: setattr(layer, "beta_l0", torch.linspace(0, 0.5, N)),
    "input-weights": lambda layer: layer.weight_ih_l0.data.neg_(),
    "bias": lambda layer: layer.bias_ih_l0.data.add_(0.1),
    "tau": lambda layer: layer.tau_mem_l0.data.fill_(5.0),
    "logarithm": lambda layer: layer.parametrizations.tau_adapt_l0.original.data.sub_(2),
    "learned-set": lambda layer: setattr(layer, "tau_adapt_l0", torch.tensor(30.0)),
    "learned-no-more": lambda layer: (
        parametrize.remove_parametrizations(layer, "tau_adapt_l0"), layer.tau_adapt_l0.fill_(9)),
    "two-parametrizations": lambda layer: parametrize.register_parametrization(
        layer, "tau_adapt_l0", Clamp(1.0, 30.0)),
    "threshold": lambda layer: layer.threshold_l0.fill_(0.05),
    "optimizer": lambda layer: torch.enable_grad()(_optimizer)(layer),
    "fused-optimizer": _fused,
    "foreach": lambda layer: torch._foreach_mul_(list(layer.parameters()), 1.5),
    "reset": lambda layer: layer.reset_parameters(),
    "load": _load,
    "load-assign": lambda layer: _load(layer, assign=True),
    "vector": lambda layer: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(layer.parameters()) * 1.5, layer.parameters()),
    "float64-and-back": lambda layer: layer.double().float(),
    "dt": lambda layer: setattr(layer, "dt", 3.0),
    "refractory": lambda layer: setattr(layer, "refractory", 3),
    "autapses": lambda layer: setattr(layer, "autapses", True),
    "dynamics": lambda layer: setattr(layer, "dynamics", "eprop"),
    "weight-norm": lambda layer: parametrizations.weight_norm(layer, "weight_ih_l0"),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight_ih_l0", 0.5)}


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_seen(name: str, layer: ALIF) -> None:
    x, fresh = draw(1, I, seed=5), [torch.rand(1, 1, N) for _ in range(3)]
    state = State(*fresh, torch.zeros(1, 1, N), (torch.rand(1, 1, 1, N) < 0.5).float())
    with torch.no_grad():
        before = [layer.step(x, state) for _ in range(2)][1]
        CHANGES[name](layer)
        got = layer.step(x, state)
        with torch.enable_grad():
            want = layer.step(x, state)
        assert_equal(got, want)
        if name not in ("parameter-of-the-same-memory", "float64-and-back", "dynamics",
                        "refractory"):
            assert not torch.equal(got[1].v, before[1].v)
        assert_equal(layer.step(x, state), want)


# Of a layer that learns no constant: its coefficients are cached between calls with gradients.
CACHED: dict[str, Callable[[ALIF], Any]] = {name: CHANGES[name] for name in (
    "data-expanded", "buffer-replaced", "tau", "threshold", "load", "load-assign", "dt",
    "refractory", "autapses", "dynamics")} | {
    "constant-through-numpy": lambda layer: layer.beta_l0.numpy().fill(0.3),
    "data-of-another-dtype": lambda layer: setattr(
        layer.tau_mem_l0, "data", layer.tau_mem_l0.double()),
    "dampening": lambda layer: setattr(layer, "dampening", 0.7),
    "delay": lambda layer: setattr(layer, "delay", 2),
    "double": lambda layer: layer.double(),
    "learns": lambda layer: layer.tau_mem_l0.requires_grad_()}


@pytest.mark.parametrize("name", CACHED)
def test_cached_coefficients_see_a_change(name: str) -> None:
    torch.manual_seed(0)
    layer, x = ALIF(I, N), draw_spikes(30, 3, I, rate=0.3)

    def run(layer: ALIF) -> list[Tensor]:
        learned = [leaf for leaf in (*layer.parameters(), *layer.buffers()) if leaf.requires_grad]
        return outputs_and_gradients(layer, learned, x.to(layer.weight_ih_l0.dtype))

    before = run(layer)
    for _ in range(2):
        assert_same("again", run(layer), before)
    with torch.no_grad():
        CACHED[name](layer)
    fresh = copy.deepcopy(layer)
    assert "_coefficients" not in fresh.__dict__
    after = run(layer)
    assert_same(name, after, run(fresh))
    same = [torch.equal(one.to(two.dtype), two) for one, two in zip(before, after, strict=False)]
    assert not all(same) or name in ("double", "learns", "data-of-another-dtype")


def test_another_tensor_for_one_call() -> None:
    """torch.func.functional_call, with a gradient of a buffer too."""
    layer, x = ALIF(I, N), draw_spikes(30, 3, I, rate=0.3)
    want, tau = layer(x)[0], torch.tensor(5.0).requires_grad_()
    other, state = torch.func.functional_call(layer, {"tau_mem_l0": tau}, (x,))
    (gradient,) = torch.autograd.grad(state.v.sum(), tau)
    assert not torch.equal(other, want) and bool(gradient.isfinite()) and bool(gradient)
    assert_same("after it", layer(x)[0], want)


def test_coefficients_cached_in_inference_mode() -> None:
    layer, x = ALIF(I, N), draw_spikes(30, 200, I, rate=0.3)
    with torch.inference_mode(), functional.use_reference():
        layer(x)
    layer(x)[0].sum().backward()
    with torch.inference_mode():
        layer(x)
    layer(x)[0].sum().backward()


def test_half_and_double(layer: ALIF) -> None:
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float32):
            x = draw(1, I).to(dtype)
            got = layer.to(dtype).step(x)
            with torch.enable_grad():
                assert_equal(got, layer.step(x))


def test_copies_and_pickles_are_the_layer_alone(layer: ALIF) -> None:
    x, names, size = draw(1, I), list(layer.state_dict()), len(pickle.dumps(layer))
    with torch.no_grad():
        want = layer.step(x)
    assert list(layer.state_dict()) == names and len(pickle.dumps(layer)) == size
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
              through_file(layer, weights_only=False)]
    for other in [*copies, copy.copy(layer)]:
        assert "_prepared" not in other.__dict__
        with torch.no_grad():
            assert_equal(other.step(x), want)
    with torch.no_grad():
        copies[0].weight_ih_l0.mul_(2)
        assert not torch.equal(copies[0].step(x)[1].v, want[1].v)
        assert_equal(layer.step(x), want)


@needs_prepared_layers
def test_moved_layer_gives_its_memory_back(layer: ALIF) -> None:
    with torch.no_grad():
        layer.step(draw(1, I))
    assert layer.__dict__["_prepared"]
    layer.to("meta")
    assert not layer.__dict__.get("_prepared")


# ---------------------------------------------------------------------- gradients, modes and errors
@needs_prepared_layers
def test_who_watches_sees_the_operator(layer: ALIF) -> None:
    with torch.no_grad():
        layer.step(draw(1, I))
        with Calls() as calls:
            layer.step(draw(1, I))
    assert calls.forward


def test_inference_mode(layer: ALIF) -> None:
    want = layer.step(draw(1, I))
    for _ in range(2):
        with torch.inference_mode():
            got = layer.step(draw(1, I))
            assert_equal(layer.step(draw(1, I), got[1]), layer.step(draw(1, I), got[1]))
        assert_equal(got, want)
        with torch.no_grad():
            assert_equal(layer.step(draw(1, I)), want)
        spikes, _ = layer.step(draw(1, I))
        assert spikes.requires_grad and torch.equal(spikes, want[0])


def test_autocast(layer: ALIF) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = layer.step(draw(1, I))
        with torch.enable_grad():
            assert_equal(got, layer.step(draw(1, I)))


def _state(**changed: Any) -> State:
    good = State(*(torch.zeros(1, 2, N) for _ in range(4)), torch.zeros(1, 1, 2, N))
    return good._replace(**changed)


def _called(*arguments: Any, **changed: Any) -> Callable[[ALIF], Any]:
    """A step with these arguments after these attributes were set."""
    def call(layer: ALIF) -> Any:
        for name, value in changed.items():
            setattr(layer, name, value)
        return layer.step(*(arguments or (torch.rand(2, I),)))
    return call


X, MINUS, NAN = torch.rand(2, I), torch.tensor(-1.0), torch.tensor(float("nan"))
BAD: dict[str, tuple[Callable[[ALIF], Any], str]] = {
    "x-too-wide": (_called(torch.rand(2, I + 1), _state()), "x: expected shape"),
    "x-3d": (_called(torch.rand(1, 2, I), _state()), "x: expected shape"),
    "x-double": (_called(X.double(), _state()), "x: expected torch.float32"),
    "x-of-integers": (_called(X.long(), _state()), "x: expected torch.float32"),
    "x-sparse": (_called(X.to_sparse(), _state()), "."),
    "x-meta": (_called(X.to("meta"), _state()), "."),
    "state-no-state": (_called(X, torch.zeros(2, N)), "state: expected a State"),
    "state-other-batch": (_called(torch.rand(3, I), _state()), r"state\.v: expected shape \(1, 3"),
    "state-unbatched": (_called(torch.rand(I), _state()), r"state\.v: expected shape"),
    "state-double": (_called(X, _state(a=torch.zeros(1, 2, N).double())), r"state\.a"),
    "state-meta": (_called(X, _state(i=torch.zeros(1, 2, N, device="meta"))), r"state\.i"),
    "state-no-past": (_called(X, _state(z=torch.zeros(1, 0, 2, N))), r"state\.z"),
    "state-flat-past": (_called(X, _state(z=torch.zeros(1, 2, N))), r"state\.z"),
    "forward-too-wide": (lambda layer: layer(torch.rand(3, 2, I + 1)), "x: expected shape"),
    "forward-4d": (lambda layer: layer(torch.rand(1, 3, 2, I)), "x: expected shape"),
    "tau-negative": (lambda layer: (layer.tau_mem_l0.data.copy_(MINUS), layer.step(X)),
                     "tau_mem_l0: expected finite numbers > 0 in ALIF, got -1; .*clamp tau_mem_l0"),
    "beta-nan": (_called(beta_l0=NAN), "beta_l0: expected finite numbers in ALIF, got nan$"),
    "tau-too-long": (_called(tau_adapt_l0=torch.ones(3)), "rho: expected"),
    "refractory": (_called(refractory=-1), "refractory: expected"),
    "dampening": (_called(dampening=-1.0), "dampening: expected"),
    "delay": (_called(delay=-1), "delay: expected"),
    "dynamics": (_called(dynamics="none"), "dynamics: expected one of"),
    "surrogate": (_called(surrogate="none"), "surrogate: expected one of"),
    "checkpoint": (_called(checkpoint_every=0), "checkpoint_every"),
    "w-shape": (_called(weight_hh_l0=nn.Parameter(torch.zeros(3, 3))), "."),
    "w-shape-with-autapses": (_called(weight_hh_l0=nn.Parameter(torch.zeros(3, 3)), autapses=True),
                              "w_rec"),
    "w-in-shape": (_called(weight_ih_l0=nn.Parameter(torch.zeros(3, I)),
                           bias_ih_l0=nn.Parameter(torch.zeros(3))),
                   "w_rec: expected shape"),
    "w-in-meta": (_called(weight_ih_l0=nn.Parameter(torch.zeros(N, I, device="meta"))),
                  "w_in: expected device cpu as x, got meta"),
    "bias-meta": (_called(bias_ih_l0=nn.Parameter(torch.zeros(N, device="meta"))),
                  "bias: expected device cpu as x, got meta"),
    "w-double": (_called(weight_hh_l0=nn.Parameter(torch.zeros(N, N).double())), "w_rec: expected")}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str, layer: ALIF) -> None:
    call, message = BAD[name]
    refused = []
    for gradients in (False, True):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            other.step(torch.rand(2, I), _state())
        with torch.set_grad_enabled(gradients), pytest.raises(Exception, match=message) as caught:
            call(other)
        refused.append((caught.type, str(caught.value)))
    assert refused[0] == refused[1]


def test_network_refuses() -> None:
    net = LSNN(I, 3, 4, 2)
    for x in (torch.rand(2, I + 1), torch.rand(1, 2, I)):
        with torch.no_grad(), pytest.raises(ValueError, match="x: expected shape"):
            net.step(x)
    with pytest.raises(TypeError, match="x_t: expected a tensor, got list"):
        net.step([0.0])
    _, state = net.step(torch.rand(2, I))
    with torch.no_grad(), pytest.raises(ValueError,
                                        match=r"state.readout: expected shape \(3, 2\)"):
        net.step(torch.rand(3, I), state)
    net.readout.tau = -1.0
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="k_out: expected"):
            net(torch.rand(1, 2, I))
