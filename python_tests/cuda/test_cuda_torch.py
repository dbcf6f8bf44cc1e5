"""Modules, streams, graphs, devices, compilers and errors on a CUDA GPU."""
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_cuda import CHOSEN, PAPER, WHY_NOT, run, wanted
from torch import Tensor

from cases import Case, build
from compare import assert_all_same, assert_same, count_saved_bytes
from lsnn_ext import ALIF, LSNN, functional
from module_kinds import round_weights

pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
K: dict[str, Any] = {"alpha": 0.9, "theta": 0.3, "rho": 0.95, "beta": 0.5}


# ---------------------------------------------------------------------------------- types and sizes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dynamics", ["lsnn", "srnn", "norse_lsnn", "sinabs_sub", "se_adlif"])
def test_half_precision(dynamics: str, dtype: torch.dtype) -> None:
    case = Case("half", dynamics, T=40, delay="each", refractory=2, state="real")
    outputs, gradients = run(build(case, dtype, "cuda", dyadic=True), CHOSEN)
    want, want_gradients = wanted(case, dtype)
    assert_all_same(outputs, want)
    for name, value in want_gradients.items():
        tolerance = 2 * torch.finfo(dtype).eps if value.dtype == dtype else 5e-5
        assert_same(name, gradients[name], value, tolerance=tolerance)


@pytest.mark.parametrize(("T", "B"), [(0, 3), (7, 0), (0, 0)])
def test_nothing_to_do(T: int, B: int) -> None:
    layer, x = ALIF(5, 7).cuda(), torch.zeros(T, B, 5, device="cuda", requires_grad=True)
    spikes, state = layer(x)
    assert spikes.shape == (T, B, 7) and state.v.shape[-2:] == (B, 7) and spikes.is_cuda
    spikes.sum().backward()
    assert x.grad is not None and all(not p.grad.any() for p in layer.parameters()
                                      if p.grad is not None)


@pytest.mark.parametrize("make", [lambda: ALIF(80, 220), lambda: ALIF(9, 33, 2, bidirectional=True,
                                                                      delay=2),
                                  lambda: LSNN(80, 120, 100, 10)], ids=["ALIF", "stacked", "LSNN"])
def test_modules_move_to_the_card(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    module = round_weights(make(), 2**10, matrices_only=False)
    x = (torch.rand(100, 6, module.input_size if isinstance(module, ALIF) else 80) < 0.1).float()
    want = module(x)[0]
    (want * torch.linspace(-1, 1, want.numel()).view_as(want)).sum().backward()
    want_gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad(set_to_none=True)
    got = module.cuda()(x.cuda())[0]
    (got * torch.linspace(-1, 1, got.numel(), device="cuda").view_as(got)).sum().backward()
    assert_same("output", got.detach().cpu(), want.detach(), tolerance=1e-5)
    for name, p in module.named_parameters():
        assert_same(name, p.grad.cpu(), want_gradients[name].cpu(), tolerance=1e-4)


def test_memory_kept_for_the_backward_pass() -> None:
    T, B, N = 784, 8, 220
    x, w = (torch.rand(T, B, N, device="cuda").requires_grad_(),
            torch.randn(N, N, device="cuda").requires_grad_())
    known = [x, w]
    kept = count_saved_bytes(lambda: known.append(functional.alif(x, w, **K)[0]), known)
    assert 4.0 <= kept / (T * B * N) <= 4.4


# ------------------------------------------------------------------------- streams, graphs, devices
def _late(source: Tensor) -> Tensor:
    """The same numbers, late on the current stream: another stream would read NaN."""
    x = torch.full_like(source, torch.nan)
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)
    return x.copy_(source)


def test_side_stream() -> None:
    source, w = torch.rand(150, 9, 220, device="cuda"), torch.rand(220, 220, device="cuda") / 220
    weights = torch.linspace(-1, 1, source.numel(), device="cuda").view_as(source)

    def step(x: Tensor) -> tuple[Tensor, ...]:
        leaves = x.requires_grad_(), w.clone().requires_grad_()
        spikes = functional.alif(*leaves, **K)[0]
        return spikes.detach(), *torch.autograd.grad(spikes, leaves, weights)

    want = step(source.clone())
    assert want[0].any()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        got = step(_late(source))
    stream.synchronize()
    assert_same("side stream", got, want)


@pytest.mark.parametrize("what", ["functional", "module"])
def test_cuda_graph(what: str) -> None:
    """Captured once and replayed on other numbers: nothing waits for the GPU."""
    torch.manual_seed(0)
    layer = ALIF(80, 220).cuda() if what == "module" else None
    w = torch.nn.Parameter(torch.randn(220, 220, device="cuda") / 220)
    learned = [w] if layer is None else list(layer.parameters())
    shape = (100, 9, 220) if layer is None else (100, 9, 80)
    static = torch.rand(shape, device="cuda")

    def step() -> tuple[Tensor, ...]:
        spikes = functional.alif(static, w, **K)[0] if layer is None else layer(static)[0]
        return spikes, *torch.autograd.grad(spikes, learned, torch.ones_like(spikes))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        torch.manual_seed(seed)
        static.copy_(torch.rand(shape, device="cuda"))
        graph.replay()
        got = [value.detach().clone() for value in captured]
        assert got[0].any() and not got[0].all()
        assert_same("replayed", got, step())


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one CUDA device")
    want, want_gradients = run(build(PAPER, torch.float32, "cuda:0"), CHOSEN)
    for current in (0, 1):
        with torch.cuda.device(current):
            outputs, gradients = build(PAPER, torch.float32, "cuda:1").run(functional.alif)
            assert (outputs["spikes"].device == torch.device("cuda", 1)
                    and torch.cuda.current_device() == current)
            assert_all_same({name: value.cpu() for name, value in outputs.items()}, want)
            assert_all_same({name: value.cpu() for name, value in gradients.items()},
                            want_gradients, tolerance=1e-5)


# ------------------------------------------------------------------------------- compiled, autocast
class Layer(torch.nn.Module):
    """Only the recurrent product: no compiler can round before a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.w_rec = torch.nn.Parameter(torch.randn(33, 33) / 6)
        self.k = torch.nn.ParameterDict(
            {name: torch.full((33,), value) for name, value in K.items()})

    def forward(self, x: Tensor) -> Tensor:
        return functional.alif(x, self.w_rec, **{name: self.k[name] for name in K})[0]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_as_one_graph(backend: str) -> None:
    if backend == "inductor":
        pytest.importorskip("triton")
    torch.manual_seed(0)
    layer, x = Layer().cuda(), torch.rand(40, 3, 33, device="cuda")
    found = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        spikes = call(x)
        found.append((spikes.detach(), torch.autograd.grad(spikes.sum(), list(layer.parameters()))))
    assert found[0][0].any()
    assert_same("spikes", found[1][0], found[0][0])
    assert_same("gradient", found[1][1], found[0][1], tolerance=1e-5)


def test_autocast() -> None:
    layer = LSNN(5, 4, 3, 2).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y, state = layer(torch.randn(40, 3, 5, device="cuda"))
    assert state.neurons.v.dtype == torch.float32
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in layer.parameters())


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", ["w_rec", "alpha", "state.v"])
def test_two_devices_in_one_call(name: str) -> None:
    there: dict[str, Any] = {"device": "cuda"}
    given: dict[str, Any] = {**K, "alpha": torch.full((5,), 0.9, **there),
                             "w_rec": torch.zeros(5, 5, **there)}
    state = functional.alif(torch.zeros(4, 3, 5, **there), **given)[1]
    given["state"] = state
    if name == "state.v":
        given["state"] = state._replace(v=state.v.cpu())
    else:
        given[name] = given[name].cpu()
    with pytest.raises(ValueError, match=f"{name}: expected device cuda:0 as current, got cpu"):
        functional.alif(torch.zeros(4, 3, 5, **there), **given)


def test_coefficients_out_of_range_are_refused() -> None:
    x, w = torch.zeros(4, 3, 5, device="cuda"), torch.zeros(5, 5, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="alpha"):
        functional.alif(x, w, **{**K, "alpha": 1.5})


def test_out_of_memory_is_an_error_and_the_card_goes_on() -> None:
    x, w = torch.rand(20, 3, 64, device="cuda"), torch.zeros(64, 64, device="cuda")
    want = functional.alif(x, w, **K)[0]
    # 4 TB, if anybody writes it out
    huge = torch.zeros(1, 1, 1, device="cuda").expand(1 << 20, 1 << 14, 64)
    with pytest.raises(RuntimeError, match="(?i)memory"), torch.no_grad():
        functional.alif(huge, w, **K)
    torch.cuda.synchronize()
    assert_same("afterwards", functional.alif(x, w, **K)[0], want)
