"""Neurons in CUDA kernels against the CPU kernels, and the compilers of these kernels.

The kernels run on a GPU, or emulated: LSNN_EMULATE=1 in a build with the emulator. To compile them
for a GPU, nvcc or NVRTC is enough.
"""
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from any_neurons import ADAPTIVE, ANALOG, NEURONS
from compare import assert_same
from lsnn_ext import Neuron, NeuronState, _ops, zoo
from lsnn_ext.codegen import cache, cuda, kernels
from lsnn_ext.codegen.compile import CompileError, Compiler, make_key
from lsnn_ext.codegen.generate import generate
from lsnn_ext.codegen.trace import trace
from lsnn_ext.functional import pack_spikes, recurrent
from operator_calls import EMULATED
from wide_states import as_real, total
from zoo_loops import count_currents, draw_call, parts_of, zoo_coefficients

CUDA = _ops.available and torch.cuda.is_available()  # also of a build without CUDA kernels
DEVICE = "cuda" if CUDA else "cpu"
needs_kernels = pytest.mark.skipif(not (EMULATED or CUDA),
                                   reason="no CUDA kernels run here, not even emulated")
ELEMENTWISE = [name for name in NEURONS if name != "normed"]
KERNELS = re.findall(r"X\((\w+)\)", (cuda.cxx.HEADERS / "cuda_job.h").read_text())


def _results(neuron: Neuron, given: dict[str, Any], device: str) -> dict[str, Tensor]:
    """Results of a call and gradients of a random sum of them, on the CPU."""
    def move(value: Any) -> Any:
        if isinstance(value, NeuronState):
            return value.map(move)
        if not isinstance(value, Tensor):
            return value
        moved = value.detach().to(device)
        return moved.requires_grad_() if value.is_floating_point() or value.is_complex() else moved

    call = {name: move(value) for name, value in given.items()}
    leaves = {name: value for name, value in call.items()
              if isinstance(value, Tensor) and value.requires_grad}
    if call.get("state") is not None:
        leaves |= {**call["state"].states, "z": call["state"].z}
    spikes, state, traces = recurrent(neuron=neuron, trace=True, **call)
    found = {"spikes": spikes, "last z": state.z, **state.states,
             **{f"trace {name}": one for name, one in traces.items()}}
    gradients = torch.autograd.grad(total([*found.values()]), list(leaves.values()))
    found |= {f"gradient of {name}": one for name, one in zip(leaves, gradients, strict=True)}
    return {name: as_real(one.detach()).cpu() for name, one in found.items()}


def _compare(neuron: Neuron, given: dict[str, Any], patch: pytest.MonkeyPatch,
             tolerance: float = 1e-9, design: str = "automatic") -> dict[str, Tensor]:
    with patch.context() as inside:  # CPU kernels run for CPU tensors
        inside.delenv("LSNN_EMULATE", raising=False)
        wanted = _results(neuron, given, "cpu")
    with _ops.forced(design=design):
        got = _results(neuron, given, DEVICE)
    if neuron != ANALOG:  # whose spikes are sigmoids
        assert torch.equal(got["spikes"], wanted["spikes"])
        assert torch.equal(got["last z"], wanted["last z"])
    for name, one in wanted.items():
        assert bool(one.any()), name
        assert_same(name, got[name], one, tolerance=tolerance)
    forms = [(form[0] if len(form) == 2 else form, made)
             for form, (_, made) in neuron.kernels.items()]
    of_gpu = [made for form, made in forms if form[3] != "cpu" and form[0] == given["x"].dtype]
    assert of_gpu and all(made.is_compiled and not made.why_not for made in of_gpu)
    return got


def _make_state(names: tuple[str, ...], forms: Any, D: int, B: int, N: int,
                is_spike: bool = True) -> NeuronState:
    random = torch.Generator().manual_seed(3)
    states = {name: torch.randn(form.shape(B, N), generator=random, dtype=form.dtype(torch.float64))
              for name, form in zip(names, forms, strict=True)}
    z = torch.rand(D, B, N, generator=random, dtype=torch.float64)
    return NeuronState(states, z.round() if is_spike else z)


@needs_kernels
@pytest.mark.parametrize("design", ["gather", "step"])
@pytest.mark.parametrize("name", zoo.NEURONS)
def test_the_zoo_is_that_of_the_cpu(name: str, design: str,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """With a delay for each synapse, lengths, and a state."""
    module = zoo.NEURONS[name]
    x, w, values = draw_call(name, 0)
    T, B, K, N = x.shape
    parts = module.neuron.parts({**zoo_coefficients(name), **values}, x, N)
    delay = torch.randint(0, 4, w.shape, generator=torch.Generator().manual_seed(1))
    given = {"x": x if K > 1 else x[:, :, 0], "w_rec": w if K > 1 else w[0],
             "delay": delay if K > 1 else delay[0], "lengths": torch.tensor([T - 9, T, T - 23]),
             "state": _make_state(parts.states, parts.forms, 4, B, N), **values}
    got = _compare(module.neuron, given, monkeypatch, design=design)
    assert 0.02 < float(got["spikes"].mean()) < 0.7


def _draw(name: str, T: int = 37, B: int = 3, N: int = 35,
          dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """A call without delays."""
    random = torch.Generator().manual_seed(0)
    K = NEURONS[name][1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype)

    coefficients = {"adaptive": {"tau": 4.0 + draw(N).abs(), "theta": torch.tensor(0.3).to(dtype)},
                    "branches": {"tau": 3.0, "gain": draw(N)}, "analog": {},
                    "normed": {"gain": draw(N), "shift": draw(N)}}[name]
    return {"x": 3 * draw(T, B, N) if K == 1 else 3 * draw(T, B, K, N),
            "w_rec": draw(N, N) if K == 1 else draw(K, N, N), **coefficients}


@needs_kernels
@pytest.mark.parametrize("design", ["gather", "step"])
@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("how", ["one", "own", "state", "lengths", "existing", "none", "torch"])
def test_every_kind_of_call(name: str, how: str, design: str,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "analog" and design == "gather":
        pytest.skip("it requires spikes of 0 and 1")
    given = _draw(name)
    T, B, N = given["x"].shape[0], given["x"].shape[1], given["x"].shape[-1]
    if how == "one":
        given |= {"delay": 2, "autapses": False}
    if how == "own":
        given |= {"delay": [0, 3], "w_rec": torch.stack([given["w_rec"], 0.5 * given["w_rec"]])}
    if how in ("state", "lengths"):  # some shorter than a delay
        neuron, _, states = NEURONS[name]
        forms = neuron.parts(neuron.all_coefficients({
            key: value for key, value in given.items() if key not in ("x", "w_rec")}), given["x"],
            N).forms
        D = 1 if how == "state" else 4
        given |= {"state": _make_state(states, forms, D, B, N, name != "analog"), "delay": D - 1}
    if how == "lengths":
        given |= {"lengths": torch.tensor([0, T, 2])}
    if how == "existing":
        given |= {"sparse_grad": "existing", "w_rec": given["w_rec"] * (given["w_rec"].abs() > 0.5)}
    if how == "none":
        given |= {"w_rec": None}
    if how == "torch" and EMULATED:
        monkeypatch.setenv("LSNN_EMULATE", "torch")  # products of torch
    got = _compare(NEURONS[name][0], given, monkeypatch, design=design)
    if how == "one":
        assert not got["gradient of w_rec"].diagonal(dim1=-2, dim2=-1).any()


@needs_kernels
def test_raw_operators_refuse_what_the_kernels_lack() -> None:
    T, B, N, O = 5, 2, 7, 3
    x, rows = torch.randn(T, B, N, device=DEVICE), torch.rand(2, N, device=DEVICE) + 0.1
    recurrent(x, None, ADAPTIVE, tau=rows[0], theta=rows[1])
    key = next(made.key for form, (_, made) in ADAPTIVE.kernels.items()
               if form[0] == torch.float32 and made.n_rows == 2)

    def forward(*outputs: str, readout: tuple[Tensor, ...] = (), made: int = 0) -> Any:
        constants = _ops.Settings.of_neuron(key, (), outputs).constants
        numbers = [0.0, 0.5, math.inf]
        found = torch.ops.lsnn.alif_forward(
            x, [], None if made else rows, [], [], [], list(readout), list(constants), numbers, [],
            None, [], [0.0] * made, key)
        return found, (constants, numbers)

    w_out = torch.randn(O, N, device=DEVICE)
    with pytest.raises(RuntimeError, match="^outputs: expected spikes for the CUDA kernels"):
        forward("saved")
    with pytest.raises(RuntimeError, match="^w_out: expected None for the CUDA kernels of a reg"):
        forward("spikes", readout=(w_out,))
    with pytest.raises(RuntimeError, match="^rows: expected none for a registered neuron, got 44"):
        forward("spikes", made=44)
    (spikes, _, _, _, saved), given = forward("spikes", "saved")
    with pytest.raises(RuntimeError, match="^w_out: expected None for the CUDA kernels of a reg"):
        torch.ops.lsnn.alif_backward(None, [], [], [None, None], None, [], rows, [], [], [],
                                     [w_out], saved, *given, [], None, key)
    (_, _, _, _, unsaved), _ = forward("spikes", "bits")
    assert spikes.any() and torch.equal(unsaved[1], pack_spikes(spikes).bits)


@needs_kernels
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = _draw(name, dtype=torch.float32)
    given["w_rec"] = (given["w_rec"] * 2**8).round() / 2**8  # sums are exact
    given["x"] = (given["x"] * 2**8).round() / 2**8
    _compare(NEURONS[name][0], given, monkeypatch, 2e-5)


@needs_kernels
def test_a_layer_norm_runs_as_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron, given = NEURONS["normed"][0], _draw("normed")
    monkeypatch.setattr(neuron, "kernels", {})
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(UserWarning, match="got a LayerNorm in a step; the step runs as a loop"):
        got = _results(neuron, given, DEVICE)
    monkeypatch.delenv("LSNN_EMULATE", raising=False)
    for name, one in _results(neuron, given, "cpu").items():
        assert_same(name, got[name], one, tolerance=1e-9)


@needs_kernels
def test_weight_gradient_of_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the kernels unpack at a time."""
    _compare(ADAPTIVE, _draw("adaptive", T=70, B=130, N=3), monkeypatch)


@needs_kernels
@pytest.mark.parametrize("design", ["gather", "step"])
def test_batch_of_none_and_no_steps(design: str) -> None:
    for T, B in ((0, 2), (5, 0)):
        given = _draw("adaptive", T=T, B=B, N=4)
        x, w = given["x"].to(DEVICE).requires_grad_(), given["w_rec"].to(DEVICE).requires_grad_()
        with _ops.forced(design=design):
            spikes, state = recurrent(x, w, ADAPTIVE, theta=0.3)
            (spikes.sum() + state.states["v"].sum()).backward()
        assert x.grad is not None and w.grad is not None and not w.grad.any()


@needs_kernels
def test_more_neurons_than_a_block_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _draw("adaptive", T=6, B=2, N=515)
    _compare(ADAPTIVE, given, monkeypatch)
    with _ops.forced(design="gather"), pytest.raises(ValueError, match="at most 512 neurons"):
        _results(ADAPTIVE, given, DEVICE)


@needs_kernels
def test_gather_needs_memory_for_both_directions() -> None:
    """Spikes as bits take less than dL/dc."""
    x = torch.randn(3, 2, 300, device=DEVICE, dtype=torch.float64)
    w = torch.randn(300, 300, device=DEVICE, dtype=torch.float64, requires_grad=True)
    with _ops.forced(design="gather"):
        with torch.no_grad():
            recurrent(x, w, ADAPTIVE, theta=0.3, delay=19)
        with pytest.raises(ValueError, match="got 'gather' for 300 neurons and 50400 bytes of 21 "
                                             "steps; .* at most 49152 bytes"):
            recurrent(x, w, ADAPTIVE, theta=0.3, delay=19)
        recurrent(x, w, ADAPTIVE, theta=0.3, delay=18)[0].sum().backward()


def _forget_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(kernels, "_registered", set())
    monkeypatch.setattr(ADAPTIVE, "kernels", {})


@needs_kernels
def test_without_a_compiler_the_loop_runs_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: value.to(DEVICE) if isinstance(value, Tensor) else value
             for name, value in _draw("adaptive", N=7).items()}
    wanted, _ = recurrent(neuron=ADAPTIVE, **given)
    _forget_kernels(monkeypatch)
    monkeypatch.setenv("LSNN_COMPILE", "0")
    with pytest.warns(UserWarning, match="expected CUDA kernels of the step, got LSNN_COMPILE=0 "
                                         "allows no compiler; the step runs as a loop over time"):
        spikes, _ = recurrent(neuron=ADAPTIVE, **given)
    torch.testing.assert_close(spikes, wanted)
    (_, kernel), = ADAPTIVE.kernels.values()
    assert kernel.why_not  # found at once in the next call


@needs_kernels
@pytest.mark.parametrize("fails", [(_ops, "run_recurrence"), (_ops._C, "register_cuda_neuron")],
                         ids=["check", "loader"])
def test_a_passing_error_is_raised_and_forgotten(fails: tuple[Any, str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the loader and the driver last."""
    given = {name: value.to(DEVICE) if isinstance(value, Tensor) else value
             for name, value in _draw("adaptive", N=7).items()}
    wanted, _ = recurrent(neuron=ADAPTIVE, **given)
    _forget_kernels(monkeypatch)

    def fail_with(text: str) -> Any:
        def fail(*_: Any) -> None:
            raise RuntimeError(text)
        return fail

    with monkeypatch.context() as patch:
        patch.setattr(*fails, fail_with("CUDA: launching lsnn_step: out of memory"))
        with pytest.raises(RuntimeError, match="out of memory"):
            recurrent(neuron=ADAPTIVE, **given)
    assert not ADAPTIVE.kernels
    torch.testing.assert_close(recurrent(neuron=ADAPTIVE, **given)[0], wanted)
    (_, kernel), = ADAPTIVE.kernels.values()
    assert not kernel.why_not
    _forget_kernels(monkeypatch)
    text = "neuron: loading the kernels: device kernel image is invalid"
    with monkeypatch.context() as patch:
        patch.setattr(*fails, fail_with(text))
        with pytest.warns(UserWarning, match=text):
            recurrent(neuron=ADAPTIVE, **given)
    (_, kernel), = ADAPTIVE.kernels.values()
    assert kernel.why_not == text


def _zoo_source(name: str, dtype: torch.dtype) -> str:
    module = zoo.NEURONS[name]
    values = {**zoo_coefficients(name),
              **{key: value.to(dtype) for key, value in draw_call(name, 0)[2].items()}}
    forms = module.neuron.parts(values, torch.empty(0, dtype=dtype), 13).forms
    program = trace(module.step, currents=count_currents(name), states=len(parts_of(name).states),
                    dtype=dtype, coefficients=values, forms=forms).program
    return generate(program, is_cuda=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", zoo.NEURONS)
def test_the_zoo_compiles_for_gpus(name: str, dtype: torch.dtype, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_nvrtc", lambda: None)
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path / "cache"))
    source = _zoo_source(name, dtype)
    for architecture in ("sm_80", "sm_90"):
        assert cuda.compile_kernels(source, architecture).read_bytes().startswith(b"\x7fELF")
    (tmp_path / "neuron.cu").write_text(source)
    usage = subprocess.run(
        ["nvcc", *cuda.CUDA_FLAGS, "--cubin", "--gpu-architecture=sm_90", "--resource-usage",
         f"-I{cuda.cxx.HEADERS}", "neuron.cu"], cwd=tmp_path, capture_output=True, text=True,
        check=True).stderr
    assert usage.count(" registers") == len(KERNELS)
    assert usage.count(" 0 bytes spill stores, 0 bytes spill loads") == len(KERNELS)


@pytest.mark.slow
def test_nvrtc_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc = cuda.find_nvrtc()
    if nvrtc is None:
        pytest.skip(f"torch {torch.__version__} brings no NVRTC")
    monkeypatch.setenv("LSNN_CACHE_DIR", str(tmp_path / "cache"))
    source = _zoo_source("dh_srnn", torch.float32)
    assert cuda.compile_kernels(source, "sm_90").read_bytes().startswith(b"\x7fELF")
    newer = cuda.compile_kernels(source, "sm_999").read_bytes()  # for the compiler of the driver
    assert b".target sm_" in newer
    with pytest.raises(CompileError, match="compute capability .* or more, got 3.0"):
        nvrtc.target_flag("sm_30")
    with pytest.raises(CompileError, match="nvrtcCompileProgram .* error: expected"):
        cuda.compile_kernels("int", "sm_90")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda, "find_nvrtc", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDACXX", raising=False)
    with pytest.raises(CompileError, match="expected NVRTC or nvcc, found neither"):
        cuda.compile_kernels("", "sm_90")
    monkeypatch.setenv("LSNN_COMPILE", "0")
    with pytest.raises(CompileError, match="LSNN_COMPILE=0"):
        cuda.compile_kernels("", "sm_90")


def test_the_key_of_nvrtc_does_not_depend_on_the_folder(monkeypatch: pytest.MonkeyPatch,
                                                        tmp_path: Path) -> None:
    nvrtc = Compiler(("libnvrtc.so.12",), "NVRTC 12.8")  # a name that the linker finds
    key = make_key("", nvrtc, ())
    monkeypatch.chdir(tmp_path)
    assert make_key("", nvrtc, ()) == key != make_key("", nvrtc._replace(words=("other",)), ())
