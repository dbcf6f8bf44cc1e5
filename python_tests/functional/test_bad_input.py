"""Invalid arguments are refused by name; unusual ones equal the reference."""
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from cases import Case, build
from compare import assert_all_same, assert_same
from lsnn_ext import functional, reference
from operator_calls import needs_compiled

T, B, N = 6, 2, 5
ERRORS = (ValueError, TypeError, RuntimeError)
# A call that is in order, with a spike now and then.
GOOD = build(Case("good", T=T, B=B, N=N, delay="each", refractory=1, state="real"), torch.float32,
             dyadic=True).arguments()
CURRENT, W, STATE, DELAY = GOOD["current"], GOOD["w_rec"], GOOD["state"], GOOD["delay"]


def _state(**changed: Any) -> functional.State:
    return STATE._replace(**changed)


def _with(tensor: Tensor, value: float, *index: int) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


nan, inf = float("nan"), float("inf")
# An argument, a value that is refused, and patterns of what was given and of what is wanted.
BAD: list[tuple[str, Any, str, str]] = [
    # current
    ("current", [[0.0]], "list", "[Tt]ensor"),
    ("current", CURRENT[0], r"\(2, 5\)", r"\(T, ?B, ?N\)"),
    ("current", CURRENT[None], r"\(1, 6, 2, 5\)", r"\(T, ?B, ?N\)"),
    ("current", CURRENT.long(), "int64", "float"),
    ("current", CURRENT > 0, "bool", "float"),
    ("current", CURRENT.to(torch.complex64), "complex64", "float"),
    ("current", CURRENT.to_sparse(), "sparse", "dense|strided"),
    # w_rec
    ("w_rec", 1.0, "float", "[Tt]ensor"),
    ("w_rec", W[0], r"\(5,\)", r"\(N, ?N\)|\(5, 5\)"),
    ("w_rec", W[None], r"\(1, 5, 5\)", r"\(N, ?N\)|\(5, 5\)"),
    ("w_rec", W[:4], r"\(4, 5\)", r"\(N, ?N\)|\(5, 5\)"),
    ("w_rec", W[:4, :4], r"\(4, 4\)", r"\(N, ?N\)|\(5, 5\)"),
    ("w_rec", W.long(), "int64", "float"),
    ("w_rec", W.to(torch.complex64), "complex64", "float"),
    ("autapses", 1, "1", "True or False"),
    ("w_rec", W.to_sparse(), "sparse", "dense|strided"),
    ("w_rec", W.double(), "float64", "expected torch.float32, torch.float16 or torch.bfloat16"),
    ("w_rec", W.to("meta"), "meta", "cpu"),
    # coefficients
    ("alpha", 1.01, r"1\.01", r"0.*1"),
    ("alpha", _with(GOOD["alpha"], -0.25, 2), r"-0\.25", r"0.*1"),
    ("alpha", _with(GOOD["alpha"], nan, 4), "nan", "finite|0.*1"),
    ("alpha", "0.9", "str", "number|float|[Tt]ensor"),
    ("alpha", GOOD["alpha"].to(torch.complex64), "complex64", "float|real"),
    ("alpha", torch.full((6,), 0.9), r"\(6,\)", r"\(N,\)|\(5,\)"),
    ("alpha", torch.full((2, 5), 0.9), r"\(2, 5\)", r"\(N,\)|\(5,\)"),
    ("alpha", GOOD["alpha"].to("meta"), "meta", "cpu"),
    ("rho", 1.5, r"1\.5", r"0.*1"),
    ("rho", -0.5, r"-0\.5", r"0.*1"),
    ("sigma", _with(GOOD["sigma"], 2.0, 0), r"2\.0|2\b", r"0.*1"),
    ("sigma", -1.0, r"-1", r"0.*1"),
    ("theta", inf, "inf", "finite"),
    ("theta", torch.full((4,), 0.5), r"\(4,\)", r"\(N,\)|\(5,\)"),
    ("theta", None, "None", "number|float|[Tt]ensor"),
    ("kappa", _with(GOOD["kappa"], -inf, 1), "-inf", "finite"),
    *((name, nan, "nan", "finite") for name in ("beta", "q", "p", "R")),
    ("eta", inf, "inf", "finite"),
    ("width", 0.0, r"0\.0|0\b", "> ?0|positive"),
    ("width", _with(GOOD["width"], -1.0, 3), r"-1", "> ?0|positive"),
    ("width", nan, "nan", "> ?0|positive|finite"),
    ("dampening", -0.3, r"-0\.3", ">= ?0|negative"),
    ("dampening", nan, "nan", "finite|>= ?0"),
    ("dampening", "0.3", "str", "number|float"),
    # refractory and delay
    ("refractory", -1, "-1", ">= ?0|negative"),
    ("refractory", 1.5, r"1\.5|float", "int|whole"),
    ("refractory", torch.ones(N), "[Tt]ensor", "int|whole"),
    ("delay", -1, "-1", ">= ?0|negative"),
    ("delay", 1.0, r"1\.0|float", "int|whole"),
    ("delay", _with(DELAY, -2, 1, 1), "-2", ">= ?0|negative"),
    ("delay", DELAY[0], r"\(5,\)", r"\(N, ?N\)|\(5, 5\)"),
    ("delay", DELAY[:4, :4], r"\(4, 4\)", r"\(N, ?N\)|\(5, 5\)"),
    ("delay", DELAY.float(), "float32", "int|whole"),
    ("delay", DELAY > 0, "bool", "int|whole"),
    # names
    ("dynamics", "lsn", "lsn\\b", "lsnn.*adlif"),
    ("dynamics", None, "None", "lsnn.*adlif"),
    ("surrogate", "tri", "tri\\b", "triangle.*gaussian"),
    ("surrogate", torch.relu, "relu", "triangle.*gaussian"),
    # checkpoint_every
    ("checkpoint_every", 0, "0", ">= ?1|> ?0|positive"),
    ("checkpoint_every", -3, "-3", ">= ?1|> ?0|positive"),
    ("checkpoint_every", 2.5, r"2\.5|float", "int|whole"),
    # state
    ("state", STATE.v, "Tensor", "State"),
    ("state", (STATE.v, STATE.a), "tuple|2", "State"),
    ("state.a", None, "None", "[Tt]ensor"),
    ("state.v", STATE.v[:1], r"\(1, 5\)", r"\(B, ?N\)|\(2, 5\)"),
    ("state.i", STATE.i[:, :4], r"\(2, 4\)", r"\(B, ?N\)|\(2, 5\)"),
    ("state.a", STATE.a[None], r"\(1, 2, 5\)", r"\(B, ?N\)|\(2, 5\)"),
    ("state.r", STATE.r[:1], r"\(1, 5\)", r"\(B, ?N\)|\(2, 5\)"),
    ("state.z", STATE.z[:3], r"\b3\b", r"\b4\b"),
    ("state.z", STATE.z[0], r"\(2, 5\)", r"\(D, ?B, ?N\)|\(4, 2, 5\)"),
    ("state.z", STATE.z[:, :1], r"\(4, 1, 5\)", r"\(D, ?B, ?N\)|\(4, 2, 5\)"),
    ("state.v", STATE.v.double(), "float64", "float32"),
    ("state.r", STATE.r.long(), "int64", "float32"),
    ("state.v", STATE.v.to(torch.complex64), "complex64", "float32"),
    ("state.v", STATE.v.to("meta"), "meta", "cpu")]


def _assert_refused(change: dict[str, Any], *patterns: str) -> None:
    """By a message with these patterns in it, in any order."""
    with pytest.raises(ERRORS) as caught:
        functional.alif(**{**GOOD, **change})
    for pattern in patterns:
        assert re.search(pattern, str(caught.value), re.DOTALL), (pattern, str(caught.value))


@pytest.mark.parametrize(("argument", "value", "given", "wanted"), BAD)
def test_refused(argument: str, value: Any, given: str, wanted: str) -> None:
    name, _, part = argument.partition(".")
    _assert_refused({name: _state(**{part: value}) if part else value}, re.escape(argument), given,
                    wanted)


def test_refused_with_others() -> None:
    _assert_refused({"current": CURRENT.double()}, "w_rec", "float32$", "expected torch.float64 ")
    _assert_refused({"delay": 2**24 - 1, "state": None}, "delay", "16777215", "less than")


@pytest.mark.parametrize("name", ["current", "w_rec", "alpha", "theta"])
def test_missing(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        functional.alif(**{key: value for key, value in GOOD.items() if key != name})


# What is unusual, and works.
UNUSUAL: dict[str, dict[str, Any]] = {
    "current-batch-first": {"current": CURRENT.transpose(0, 1).contiguous().transpose(0, 1)},
    "current-expanded": {"current": CURRENT[:1, :1].expand(T, B, N)},
    "current-constant": {"current": torch.full((1, 1, 1), 0.75).expand(T, B, N)},
    "current-with-nan": {"current": _with(CURRENT, nan, 0, 0, 0)},
    "w-zero": {"w_rec": torch.zeros(N, N)},
    "coefficient-expanded": {"theta": torch.tensor(0.5).expand(N)},
    "coefficient-strided": {"theta": torch.linspace(0.3, 0.8, 2 * N)[::2]},
    "coefficients-at-their-limits": {"alpha": 1.0, "rho": 0.0, "sigma": 1.0},
    "coefficients-at-their-other-limits": {"alpha": 0.0, "rho": 1.0, "sigma": 0.0},
    "coefficients-whole-numbers": {"alpha": 1, "theta": 1, "rho": 0},
    "coefficient-double": {"alpha": GOOD["alpha"].double()},
    "beta-negative": {"beta": -0.1},
    "threshold-zero": {"theta": 0.0, "dynamics": "srnn"},
    "delay-int32": {"delay": DELAY.int()},
    "delay-transposed": {"delay": DELAY.T},
    "delay-all-the-same": {"delay": torch.full((N, N), 3)},
    "delay-longer-than-sequence": {"delay": 20, "state": _state(z=torch.ones(21, B, N))},
    "refractory-longer-than-sequence": {"refractory": 1000},
    "state-with-more-past-steps": {"state": _state(z=torch.cat([STATE.z, 1 - STATE.z]))}}


def _named(result: Any) -> dict[str, Tensor]:
    spikes, state, traces = result
    return {"spikes": spikes, **state._asdict(),
            **{f"trace.{name}": value for name, value in traces._asdict().items()}}


@pytest.mark.parametrize("name", UNUSUAL)
def test_works(name: str) -> None:
    arguments = {**GOOD, **UNUSUAL[name], "trace": True}
    got, want = _named(functional.alif(**arguments)), _named(reference.alif(**arguments))
    if name == "current-with-nan":
        # It spoils the neuron that it reaches, and is seen by nobody else: it makes no spike.
        assert_same("spikes", got["spikes"], want["spikes"])
        assert torch.isnan(got["trace.v"][:, 0, 0]).all()
        for value in (got, want):
            value.update({key: torch.nan_to_num(tensor) for key, tensor in value.items()})
    assert_all_same(got, want)


@needs_compiled
def test_too_many_neurons() -> None:
    """Refused before any memory is asked for: these weights take none."""
    many = 70_000
    with pytest.raises(ERRORS, match="w_rec.*70000"):
        functional.alif(torch.zeros(1).expand(1, 1, many), torch.zeros(1).expand(many, many),
                        alpha=0.9, theta=0.5)


@needs_compiled
def test_in_place_change_of_a_saved_input() -> None:
    """Autograd notices that a tensor it needs was changed after the call."""
    w = W.clone().requires_grad_()
    spikes, _ = functional.alif(**{**GOOD, "w_rec": w})
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spikes.sum().backward()
