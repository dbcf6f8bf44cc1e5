"""Layers without recurrent weights, and with a weight of each synapse for each delay."""
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_all_same, assert_same, outputs_and_gradients, weighted_gradients
from layers import grid
from lsnn_ext import ALIF, LIF, functional
from module_kinds import run_steps

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
T, B, N, I, S = 40, 5, 33, 9, 4
DELAYS = (0, 1, 3, 7)
K = {"alpha": 0.9, "theta": 0.4, "rho": 0.95, "beta": 0.5}


def _problem(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = grid(generator, T, B, N, scale=2.0) + 0.5
    return {"x": x.to(dtype), "w": grid(generator, S, N, N, scale=0.2).to(dtype)}


def _run(x: Tensor, w: Tensor, **more: Any) -> dict[str, Tensor]:
    """Outputs, and gradients of a weighted sum of all that have one."""
    leaves = {"x": x.clone().requires_grad_(), "w": w.clone().requires_grad_()}
    spikes, state, traces = functional.alif(leaves["x"], leaves["w"], **K, trace=True, **more)
    outputs = {"spikes": spikes, "trace v": traces.v, "v": state.v, "a": state.a, "z": state.z}
    gradients = weighted_gradients(outputs.values(), leaves.values())
    found = {name: out.detach() for name, out in outputs.items()}
    return found | {f"d {name}": g for name, g in zip(leaves, gradients, strict=True)}


# --------------------------------------------------------------------------- weights for each delay
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_matrix_of_delays_is_a_special_case(dtype: torch.dtype) -> None:
    """One nonzero weight of each pair: bitwise identical, the gradient at its place."""
    given, generator = _problem(dtype), torch.Generator().manual_seed(2)
    which = torch.randint(0, S, (N, N), generator=generator)
    places = torch.nn.functional.one_hot(which, S).movedim(-1, 0).to(dtype)
    w = given["w"][0]
    got = _run(given["x"], w * places, delay=DELAYS)
    want = _run(given["x"], w, delay=torch.tensor(DELAYS)[which])
    got["d w"] = (got["d w"] * places).sum(0)
    assert_all_same(got, want, tolerance=1e-6 if dtype == torch.float32 else 1e-13)
    assert_same("spikes", got["spikes"], want["spikes"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["one", "each", "by delay"])
def test_without_autapses(kind: str, dtype: torch.dtype) -> None:
    """The same bits as of zeros on the diagonal, whatever stands there, and no gradient for it."""
    given = _problem(dtype)
    delay: Any = {"one": 1, "by delay": DELAYS, "each": torch.tensor(DELAYS)[
        torch.randint(0, S, (N, N), generator=torch.Generator().manual_seed(2))]}[kind]
    w = given["w"] if kind == "by delay" else given["w"][0]
    diagonal = torch.eye(N, dtype=torch.bool)
    given_w = w.masked_fill(diagonal, torch.nan)
    got = _run(given["x"], given_w, delay=delay, autapses=False)
    want = _run(given["x"], w.masked_fill(diagonal, 0.0), delay=delay)
    assert bool(want["d w"][..., diagonal].any())
    want["d w"] = want["d w"].masked_fill(diagonal, 0.0)
    assert_all_same(got, want)


# ---------------------------------------------------------------------------------- what torch asks
@pytest.mark.parametrize("by_delay", [False, True])
def test_on_meta(by_delay: bool) -> None:
    given = _problem(torch.float32)
    w, delay = (given["w"].to("meta"), DELAYS) if by_delay else (None, 0)
    _, state = functional.alif(given["x"].to("meta"), w, **K, delay=delay)
    assert state.z.shape == (8 if by_delay else 1, B, N)


@pytest.mark.parametrize(("w", "delay", "message"), [
    (None, 2, "delay: expected 0 without w_rec, got 2"),
    (torch.zeros(S, N, N), (0, 1), r"delay: expected 4 ascending delays >= 0, one for each matrix "
                                   r"of .*got \(0, 1\)"),
    (torch.zeros(S, N, N), (0, 1, 1, 2), "delay: expected 4 ascending delays"),
    (torch.zeros(S, N, N), 3, "delay: expected 4 ascending delays"),
    (torch.zeros(S, N, N), torch.zeros(N, N).long(), r"delay: expected an int for each matrix of "
                                                     r"w_rec"),
    (torch.zeros(N, N), (0, 1), "delay: expected an int or an integer tensor"),
    (torch.zeros(0, N, N), (), r"w_rec: expected shape \(33, 33\) or \(S, 33, 33\)"),
    (torch.zeros(2, N, N + 1), (0, 1), r"w_rec: expected shape \(33, 33\) or \(S, 33, 33\)")])
def test_refused(w: Tensor | None, delay: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        functional.alif(torch.zeros(T, B, N), w, **K, delay=delay)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="examples/ is not beside these tests")
def test_learned_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example: gradients of real-valued delays, and a student that finds a teacher's."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    example = importlib.import_module("learned_delays.train")
    generator = torch.Generator().manual_seed(0)
    assert example.check_gradients(generator)
    before, after = example.learn(300, generator)
    assert before > 1.5 and after < 0.05


# ------------------------------------------------------------------------------------------ modules
@pytest.mark.parametrize("kind", [ALIF, LIF])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_module_without_recurrence(kind: type[ALIF | LIF], bidirectional: bool) -> None:
    """As a layer whose recurrent weights are all 0."""
    torch.manual_seed(3)
    layer = kind(I, N, 2, bidirectional=bidirectional, recurrent=False, refractory=2)
    zeros = kind(I, N, 2, bidirectional=bidirectional, refractory=2)
    assert "recurrent=False" in repr(layer) and "recurrent" not in repr(zeros)
    assert not any("weight_hh" in name for name in layer.state_dict())
    with torch.no_grad():
        for name, parameter in zeros.named_parameters():
            parameter.copy_(layer.get_parameter(name) if "weight_hh" not in name else 0 * parameter)
    x = (torch.rand(T, B, I) < 0.3).float()
    got, want = (outputs_and_gradients(
        partial(module, trace=True),
        [module.get_parameter(name) for name, _ in layer.named_parameters()], x)
        for module in (layer, zeros))
    assert bool(got[0].any())
    assert_same("results", got, want, tolerance=1e-5)
    assert_same("spikes", got[0], want[0])
    if not bidirectional:
        with torch.no_grad():
            assert_same("steps", run_steps(layer, x)[0], got[0])
    layer.reset_parameters()


def test_module_without_recurrence_refuses_what_belongs_to_it() -> None:
    with pytest.raises(ValueError, match="delay: expected 0 with recurrent=False"):
        ALIF(I, N, recurrent=False, delay=1)
    with pytest.raises(ValueError, match="autapses: expected None with recurrent=False, got True"):
        ALIF(I, N, recurrent=False, autapses=True)
    with pytest.raises(TypeError, match="recurrent: expected True or False, got 0"):
        ALIF(I, N, recurrent=0)  # type: ignore[arg-type]
