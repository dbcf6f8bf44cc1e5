"""functional.recurrent by each route, against its loop."""
import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from any_neurons import ADAPTIVE, ANALOG, NEURONS
from compare import run_on_copies
from lsnn_ext import Neuron, NeuronState, _ops, use_reference
from lsnn_ext.codegen import cache
from lsnn_ext.codegen import call as codegen_call
from lsnn_ext.functional import recurrent

T, B, N = 11, 3, 5
ROUTES = ["loop", "compiled", "interpreted"]
# Kernels that are kept, by route and neuron; those of other files may be of another route.
KEPT: dict[str, dict[str, Any]] = {route: {name: {} for name in NEURONS} for route in ROUTES}


def rectify(c: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    v = 0.8 * v + c
    return v, torch.relu(v + 1.0)


def gate(c: Tensor, u: Tensor, v: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    v = 0.8 * v + torch.sigmoid(c) * torch.tanh(u)
    return v, torch.relu(v + 0.5)


RECTIFIED, GATED = Neuron(rectify), Neuron(gate)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the passes that operators compute."""
    called: list[str] = []
    call = _ops.autograd.call_interruptible

    def watched(operator: Any, *args: Any) -> Any:
        called.append(operator.__name__)
        return call(operator, *args)

    monkeypatch.setattr(_ops.autograd, "call_interruptible", watched)
    return called


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=ROUTES)
def route(request: pytest.FixtureRequest, cache_folder: str,
          monkeypatch: pytest.MonkeyPatch) -> str:
    """How functional.recurrent computes."""
    if request.param == "loop":
        monkeypatch.setattr(codegen_call, "explain_loop", lambda x: "kernels are off")
    monkeypatch.setenv("LSNN_CACHE_DIR", cache_folder)
    if request.param == "interpreted":
        monkeypatch.setenv("LSNN_COMPILE", "0")
    for name, (neuron, _, _) in NEURONS.items():
        monkeypatch.setattr(neuron, "kernels", KEPT[request.param][name])
    return request.param  # type: ignore[no-any-return]


def leaf(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(shape, dtype=dtype) * scale).requires_grad_()


def case(name: str, delays: str = "none", has_state: bool = False) -> dict[str, Any]:
    """Arguments of a call, leaves in float64."""
    torch.manual_seed(0)
    _, K, states = NEURONS[name]
    one = (N, N) if K == 1 else (K, N, N)
    delay: Any = {"none": 0, "one": 2, "each": torch.randint(0, 4, one), "own": [0, 3]}[delays]
    coefficients = {"adaptive": {"tau": 4.0 + torch.randn(N).abs(), "theta": torch.tensor(0.3)},
                    "branches": {"tau": 3.0, "gain": torch.randn(N)}, "analog": {},
                    "normed": {"gain": torch.randn(N), "shift": torch.randn(N)}}[name]
    found = {"x": leaf(T, B, K, N, scale=3.0), "delay": delay,
             "w": leaf(*((2, *one) if delays == "own" else one)),
             "coefficients": {n: c.double().requires_grad_() if isinstance(c, Tensor) else c
                              for n, c in coefficients.items()}, "state": None}
    if has_state:
        z = torch.rand(4, B, N, dtype=torch.float64)
        z = (z if name == "analog" else z.round()).requires_grad_()
        found["state"] = NeuronState({s: leaf(B, N) for s in states}, z)
    return found


def run(name: str, given: dict[str, Any], **more: Any) -> Any:
    neuron, K, _ = NEURONS[name]
    x = given["x"] if K > 1 else given["x"].squeeze(2)
    return recurrent(x, given["w"], neuron, delay=given["delay"], state=given["state"],
                     **given["coefficients"], **more)


def loop(name: str, given: dict[str, Any]) -> Any:
    """As run, with traces; fuzz/test_random_neurons.py compares it with a loop of its own."""
    with use_reference():
        return run(name, given, trace=True)


def leaves(given: dict[str, Any]) -> list[Tensor]:
    state = given["state"]
    of_state = [] if state is None else [*state.states.values(), state.z]
    return [one for one in (given["x"], given["w"], *given["coefficients"].values(), *of_state)
            if isinstance(one, Tensor)]


def compare(name: str, given: dict[str, Any], *calls: Any) -> None:
    """Results of two calls, and the gradients of a sum that weights all of them."""
    found = []
    for spikes, state, traces in calls:
        assert list(traces) == list(state.states) == list(NEURONS[name][2])
        found.append([spikes, *state.states.values(), state.z, *traces.values()])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    weights = [torch.randn_like(one) for one in found[0]]
    grads = [torch.autograd.grad(sum((o * w).sum() for o, w in zip(outs, weights, strict=True)),
                                 leaves(given), allow_unused=True, materialize_grads=True)
             for outs in found]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("delays", ["none", "one", "each", "own"])
@pytest.mark.parametrize("name", NEURONS)
def test_equals_the_loop(name: str, delays: str, has_state: bool, route: str,
                         operators: list[str]) -> None:
    given, known = case(name, delays, has_state), len(NEURONS[name][0].kernels)
    compare(name, given, run(name, given, trace=True), loop(name, given))
    is_new = len(NEURONS[name][0].kernels) > known
    # a GPU has no interpreter and no LayerNorm
    is_loop = route == "loop" or not _ops.has_cpu_kernels(given["x"]) and (
        route == "interpreted" or name == "normed")
    assert operators == ([] if is_loop else [  # new kernels run once for a check
        *["alif_forward"] * is_new, "alif_forward", "alif_backward"])
    if route != "loop" and (name != "normed" or _ops.has_cpu_kernels(given["x"])):
        made = [kernel for _, kernel in NEURONS[name][0].kernels.values()]
        assert made and all(kernel.is_compiled == (route == "compiled") for kernel in made)


@pytest.mark.parametrize("more", [{}, {"checkpoint_every": 16}, {"lengths": [70] * 9 + [33, 0]},
                                  {"lengths": [33, 0] + [70] * 9}], ids=str)
@pytest.mark.parametrize("are_spikes", [True, False])
def test_projection_of_many_inputs(are_spikes: bool, more: dict[str, Any]) -> None:
    shape, neurons = (70, 11, 24), 350
    inputs = (torch.rand(shape) < 0.05).double()
    inputs = inputs if are_spikes else inputs * torch.randn(shape)
    leaves = [inputs, leaf(neurons, 24, scale=3.0), leaf(neurons),
              leaf(neurons, neurons, scale=0.1)]
    if "lengths" in more:
        more = {"lengths": torch.tensor(more["lengths"])}

    def call(x: Tensor, w_in: Tensor, bias: Tensor, w_rec: Tensor) -> list[Tensor]:
        spikes, state = recurrent(x, w_rec, ADAPTIVE, w_in=w_in, bias=bias, tau=5.0, theta=0.3,
                                  **more)
        return [spikes, *state.states.values()]

    found = run_on_copies(call, *leaves)
    with use_reference():
        wanted = run_on_copies(call, *leaves)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert 0.01 < float(found[0].mean()) < 0.9


@pytest.mark.parametrize("more", [{}, {"delay": 2}, {"delay": "each"}, {"lengths": True},
                                  {"checkpoint_every": 16}], ids=str)
@pytest.mark.parametrize("neuron", [RECTIFIED, GATED], ids=["rectified", "gated"])
@pytest.mark.parametrize(("items", "neurons"), [(9, 33), (37, 70)])
def test_numbers_of_many_items(items: int, neurons: int, neuron: Neuron,
                               more: dict[str, Any]) -> None:
    """Dense ones, which the kernels multiply in blocks, and from the middle on mostly zeros."""
    torch.manual_seed(0)
    steps, K = 40, 2 if neuron is GATED else 1
    if "lengths" in more:
        more = {"lengths": torch.randint(0, steps + 1, (items,))}
    if more.get("delay") == "each":
        more = {"delay": torch.randint(0, 4, (K, neurons, neurons) if K > 1 else (
            neurons, neurons))}
    x = torch.randn(steps, items, K, neurons, dtype=torch.float64)
    x[steps // 2:] -= 4.0
    leaves = [x if K > 1 else x[:, :, 0], leaf(K, neurons, neurons, scale=neurons**-0.5)]

    def call(x: Tensor, w: Tensor) -> list[Tensor]:
        z, state = recurrent(x, w if K > 1 else w[0], neuron, **more)
        return [z, *state.states.values()]

    found = run_on_copies(call, *leaves)
    with use_reference():
        wanted = run_on_copies(call, *leaves)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_no_recurrence_and_no_gradient(route: str) -> None:
    given = case("adaptive")
    given["w"] = None
    spikes, state = run("adaptive", given)
    torch.testing.assert_close(spikes, loop("adaptive", given)[0])
    assert state.z.shape == (1, B, N) and spikes.requires_grad
    with torch.no_grad():
        again, _ = run("adaptive", given)
    assert torch.equal(again, spikes) and not again.requires_grad


@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (0, 0)])
def test_empty_batches_and_sequences(name: str, shape: tuple[int, int]) -> None:
    given, K = case(name), NEURONS[name][1]
    given["x"] = leaf(*shape, K, N)
    spikes, state, traces = run(name, given, trace=True)
    assert spikes.shape == (*shape, N) == next(iter(traces.values())).shape
    assert state.z.shape == (1, shape[1], N)
    spikes.sum().backward()
    assert given["x"].grad is not None and given["x"].grad.shape == given["x"].shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, route: str) -> None:
    given = case("adaptive")
    x = given["x"].detach().to(dtype).requires_grad_()
    w = given["w"].detach().float().requires_grad_()
    c = {n: v.detach().float() for n, v in given["coefficients"].items()}
    spikes, state = recurrent(x.squeeze(2), w, ADAPTIVE, **c)
    wanted, after = recurrent(x.float().squeeze(2), w, ADAPTIVE, **c)
    assert spikes.dtype == dtype and state.z.dtype == state.states["v"].dtype == torch.float32
    assert torch.equal(spikes.float(), wanted) and torch.equal(state.z, after.z)
    spikes.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, _ = recurrent(x.float().squeeze(2), w, ADAPTIVE, **c)
    assert torch.equal(again, wanted)


def test_second_derivatives_are_refused() -> None:
    given = case("adaptive")
    spikes, _ = run("adaptive", given)
    (g,) = torch.autograd.grad(spikes.sum(), given["w"], create_graph=True)
    with pytest.raises(RuntimeError, match="expected a first derivative"):
        torch.autograd.grad(g.sum(), given["x"])
    spikes, _ = run("adaptive", given)
    with pytest.raises(RuntimeError, match="expected the gradient of one result"):
        torch.autograd.grad(spikes, given["w"], torch.ones(2, *spikes.shape, dtype=spikes.dtype),
                            is_grads_batched=True)


def in_place(c, v, w, z):
    v.mul_(0.5).add_(c)
    w.add_(z)
    z.mul_(0.0)
    z[v > 1] = 1.0
    v[z > 0] = 0.0
    return v, w, z


def test_a_step_may_write_to_what_it_is_given(route: str) -> None:
    neuron, w = Neuron(in_place), torch.randn(N, N)
    x = torch.randn(T, B, N) * 3
    state = NeuronState({"v": torch.rand(B, N), "w": torch.rand(B, N)}, torch.ones(2, B, N))
    before, same = state.to(torch.float64).to(torch.float32), x.clone()
    spikes, after, traces = recurrent(x, w, neuron, state=state, delay=1, trace=True)
    assert torch.equal(x, same) and torch.equal(before.z, state.z)
    assert all(torch.equal(before.states[s], state.states[s]) for s in "vw")
    v, a, z, past = *before.states.values(), before.z[0], before.z[1]
    for t in range(T):
        c = x[t] + past @ w
        v, a = 0.5 * v + c, a + z
        z, past = (v > 1).float(), z
        v = v * (1 - z)
        for found, wanted in ((spikes, z), (traces["v"], v), (traces["w"], a)):
            torch.testing.assert_close(found[t], wanted)
    torch.testing.assert_close(after.states["v"], v)


def test_transforms_and_the_reference_take_the_loop(operators: list[str]) -> None:
    given = case("analog")
    x, w = given["x"].detach().squeeze(2), given["w"].detach()
    run("analog", given)
    operators.clear()
    batched = torch.vmap(lambda one: recurrent(one, w, ANALOG)[0])(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batched[1], recurrent(2 * x, w, ANALOG)[0])
    _, tangent = torch.func.jvp(lambda one: recurrent(one, w, ANALOG)[0], (x,), (x,))
    g = torch.func.grad(lambda one: recurrent(one, w, ANALOG)[0].sum())(x)
    assert tangent.shape == x.shape and g.shape == x.shape
    assert operators == ["alif_forward"]  # of the call that no transform sees
    with use_reference():
        run("analog", given)
    assert operators == ["alif_forward"]


def test_another_device_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(UserWarning, match="got xpu:0; the step runs as a loop over time"):
        codegen_call._warn_of_loop(torch.device("xpu:0"))
    with pytest.warns(UserWarning, match="CUDA kernels of the step, got no compiler; the step"):
        codegen_call._warn_of_loop(torch.device("cuda:0"), "no compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codegen_call._warn_of_loop(torch.device("xpu:0"))
        codegen_call._warn_of_loop(torch.device("cuda:0"), "no compiler")
        with use_reference():
            cache._warned.clear()
            codegen_call._warn_of_loop(torch.device("xpu:0"))
    spikes, state = recurrent(torch.empty(T, B, N, device="meta"), None, ANALOG)
    assert spikes.is_meta and state.z.shape == (1, B, N)


def test_a_state_is_saved_and_moved(tmp_path: Any) -> None:
    _, state = run("adaptive", case("adaptive", "each"))
    torch.save(state.detach(), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(again, NeuronState) and torch.equal(again.z, state.z)
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    assert len(leaves) == 3 and torch.utils._pytree.tree_unflatten(leaves, spec).z is state.z
    assert state.to(torch.float32).states["v"].dtype == torch.float32
    zeroed = state.reset(torch.tensor([True, False, False]))
    assert not zeroed.z[:, 0].any() and torch.equal(zeroed.states["v"][1], state.states["v"][1])


def test_a_freed_state_is_named(route: str) -> None:
    given = case("analog")
    spikes, state = run("analog", given)
    spikes.sum().backward()
    second, _ = run("analog", {**given, "state": state})
    # without a compiler CUDA kernels become a loop
    is_loop = route == "loop" or (route == "interpreted" and "LSNN_EMULATE" in os.environ)
    with pytest.raises(RuntimeError, match="second time" if is_loop else "graph is freed"):
        second.sum().backward()


def test_a_neuron_without_states_returns_its_spike(route: str) -> None:
    neuron = Neuron(lambda c, z, *, a: (c + a * z > 0.3).to(c.dtype))
    x, w = torch.randn(T, B, N), torch.randn(N, N)
    spikes, state = recurrent(x, w, neuron, a=0.5)
    with use_reference():
        wanted, after = recurrent(x, w, neuron, a=0.5)
    assert spikes.any() and torch.equal(spikes, wanted) and torch.equal(state.z, after.z)
