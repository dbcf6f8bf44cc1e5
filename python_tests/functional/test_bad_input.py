"""Invalid arguments are refused by name; unusual ones equal the reference."""
import re
from dataclasses import dataclass
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


def _arguments() -> dict[str, Any]:
    """A call that is in order, with a spike now and then."""
    problem = build(Case("good", T=T, B=B, N=N, delay="each", refractory=1, state="real"),
                    torch.float32, dyadic=True)
    return problem.arguments()


GOOD = _arguments()
CURRENT, W, STATE, DELAY = GOOD["current"], GOOD["w_rec"], GOOD["state"], GOOD["delay"]


def _state(**changed: Any) -> functional.State:
    return STATE._replace(**changed)


def _with(tensor: Tensor, value: float, *index: int) -> Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


@dataclass(frozen=True)
class Bad:
    """A change that must be refused by a message with these patterns in it, in any order."""

    name: str
    change: dict[str, Any]
    argument: str
    given: str
    wanted: str


nan, inf = float("nan"), float("inf")
BAD = [
    # current
    Bad("current-is-no-tensor", {"current": [[0.0]]}, "current", "list", "[Tt]ensor"),
    Bad("current-2d", {"current": CURRENT[0]}, "current", r"\(2, 5\)", r"\(T, ?B, ?N\)"),
    Bad("current-4d", {"current": CURRENT[None]}, "current", r"\(1, 6, 2, 5\)", r"\(T, ?B, ?N\)"),
    Bad("current-integer", {"current": CURRENT.long()}, "current", "int64", "float"),
    Bad("current-bool", {"current": CURRENT > 0}, "current", "bool", "float"),
    Bad("current-complex", {"current": CURRENT.to(torch.complex64)}, "current", "complex64",
        "float"),
    Bad("current-sparse", {"current": CURRENT.to_sparse()}, "current", "sparse", "dense|strided"),
    # w_rec
    Bad("w-is-no-tensor", {"w_rec": 1.0}, "w_rec", "float", "[Tt]ensor"),
    Bad("w-1d", {"w_rec": W[0]}, "w_rec", r"\(5,\)", r"\(N, ?N\)|\(5, 5\)"),
    Bad("w-3d", {"w_rec": W[None]}, "w_rec", r"\(1, 5, 5\)", r"\(N, ?N\)|\(5, 5\)"),
    Bad("w-not-square", {"w_rec": W[:4]}, "w_rec", r"\(4, 5\)", r"\(N, ?N\)|\(5, 5\)"),
    Bad("w-of-other-neurons", {"w_rec": W[:4, :4]}, "w_rec", r"\(4, 4\)", r"\(N, ?N\)|\(5, 5\)"),
    Bad("w-integer", {"w_rec": W.long()}, "w_rec", "int64", "float"),
    Bad("w-complex", {"w_rec": W.to(torch.complex64)}, "w_rec", "complex64", "float"),
    Bad("autapses", {"autapses": 1}, "autapses", "1", "True or False"),
    Bad("w-sparse", {"w_rec": W.to_sparse()}, "w_rec", "sparse", "dense|strided"),
    Bad("w-double", {"w_rec": W.double()}, "w_rec", "float64",
        "expected torch.float32, torch.float16 or torch.bfloat16"),
    Bad("w-single", {"current": CURRENT.double()}, "w_rec", "float32$", "expected torch.float64 "),
    Bad("w-on-another-device", {"w_rec": W.to("meta")}, "w_rec", "meta", "cpu"),
    # coefficients
    Bad("alpha-above-1", {"alpha": 1.01}, "alpha", r"1\.01", r"0.*1"),
    Bad("alpha-negative", {"alpha": _with(GOOD["alpha"], -0.25, 2)}, "alpha", r"-0\.25", r"0.*1"),
    Bad("alpha-nan", {"alpha": _with(GOOD["alpha"], nan, 4)}, "alpha", "nan", "finite|0.*1"),
    Bad("alpha-is-a-string", {"alpha": "0.9"}, "alpha", "str", "number|float|[Tt]ensor"),
    Bad("alpha-complex", {"alpha": GOOD["alpha"].to(torch.complex64)}, "alpha", "complex64",
        "float|real"),
    Bad("alpha-too-long", {"alpha": torch.full((6,), 0.9)}, "alpha", r"\(6,\)", r"\(N,\)|\(5,\)"),
    Bad("alpha-matrix", {"alpha": torch.full((2, 5), 0.9)}, "alpha", r"\(2, 5\)", r"\(N,\)|\(5,\)"),
    Bad("alpha-on-another-device", {"alpha": GOOD["alpha"].to("meta")}, "alpha", "meta", "cpu"),
    Bad("rho-above-1", {"rho": 1.5}, "rho", r"1\.5", r"0.*1"),
    Bad("rho-negative", {"rho": -0.5}, "rho", r"-0\.5", r"0.*1"),
    Bad("sigma-above-1", {"sigma": _with(GOOD["sigma"], 2.0, 0)}, "sigma", r"2\.0|2\b", r"0.*1"),
    Bad("sigma-negative", {"sigma": -1.0}, "sigma", r"-1", r"0.*1"),
    Bad("theta-infinite", {"theta": inf}, "theta", "inf", "finite"),
    Bad("theta-too-short", {"theta": torch.full((4,), 0.5)}, "theta", r"\(4,\)", r"\(N,\)|\(5,\)"),
    Bad("theta-none", {"theta": None}, "theta", "None", "number|float|[Tt]ensor"),
    Bad("kappa-infinite", {"kappa": _with(GOOD["kappa"], -inf, 1)}, "kappa", "-inf", "finite"),
    *(Bad(f"{name}-nan", {name: nan}, name, "nan", "finite") for name in ("beta", "q", "p", "R")),
    Bad("eta-infinite", {"eta": inf}, "eta", "inf", "finite"),
    Bad("width-zero", {"width": 0.0}, "width", r"0\.0|0\b", "> ?0|positive"),
    Bad("width-negative", {"width": _with(GOOD["width"], -1.0, 3)}, "width", r"-1",
        "> ?0|positive"),
    Bad("width-nan", {"width": nan}, "width", "nan", "> ?0|positive|finite"),
    Bad("dampening-negative", {"dampening": -0.3}, "dampening", r"-0\.3", ">= ?0|negative"),
    Bad("dampening-nan", {"dampening": nan}, "dampening", "nan", "finite|>= ?0"),
    Bad("dampening-is-a-string", {"dampening": "0.3"}, "dampening", "str", "number|float"),
    # refractory and delay
    Bad("refractory-negative", {"refractory": -1}, "refractory", "-1", ">= ?0|negative"),
    Bad("refractory-float", {"refractory": 1.5}, "refractory", r"1\.5|float", "int|whole"),
    Bad("refractory-tensor", {"refractory": torch.ones(N)}, "refractory", "[Tt]ensor", "int|whole"),
    Bad("delay-negative", {"delay": -1}, "delay", "-1", ">= ?0|negative"),
    Bad("delay-beyond-offsets", {"delay": 2**24 - 1, "state": None}, "delay", "16777215",
        "less than"),
    Bad("delay-float", {"delay": 1.0}, "delay", r"1\.0|float", "int|whole"),
    Bad("delay-with-a-negative", {"delay": _with(DELAY, -2, 1, 1)}, "delay", "-2",
        ">= ?0|negative"),
    Bad("delay-1d", {"delay": DELAY[0]}, "delay", r"\(5,\)", r"\(N, ?N\)|\(5, 5\)"),
    Bad("delay-of-other-neurons", {"delay": DELAY[:4, :4]}, "delay", r"\(4, 4\)",
        r"\(N, ?N\)|\(5, 5\)"),
    Bad("delay-float-tensor", {"delay": DELAY.float()}, "delay", "float32", "int|whole"),
    Bad("delay-bool-tensor", {"delay": DELAY > 0}, "delay", "bool", "int|whole"),
    # names
    Bad("dynamics-unknown", {"dynamics": "lsn"}, "dynamics", "lsn\\b", "lsnn.*adlif"),
    Bad("dynamics-none", {"dynamics": None}, "dynamics", "None", "lsnn.*adlif"),
    Bad("surrogate-unknown", {"surrogate": "tri"}, "surrogate", "tri\\b", "triangle.*gaussian"),
    Bad("surrogate-callable", {"surrogate": torch.relu}, "surrogate", "relu", "triangle.*gaussian"),
    # checkpoint_every
    Bad("checkpoint-zero", {"checkpoint_every": 0}, "checkpoint_every", "0", ">= ?1|> ?0|positive"),
    Bad("checkpoint-negative", {"checkpoint_every": -3}, "checkpoint_every", "-3",
        ">= ?1|> ?0|positive"),
    Bad("checkpoint-float", {"checkpoint_every": 2.5}, "checkpoint_every", r"2\.5|float",
        "int|whole"),
    # state
    Bad("state-is-a-tensor", {"state": STATE.v}, "state", "Tensor", "State"),
    Bad("state-too-few-parts", {"state": (STATE.v, STATE.a)}, "state", "tuple|2", "State"),
    Bad("state-part-missing", {"state": _state(a=None)}, r"state\.a", "None", "[Tt]ensor"),
    Bad("state-of-another-batch", {"state": _state(v=STATE.v[:1])}, r"state\.v", r"\(1, 5\)",
        r"\(B, ?N\)|\(2, 5\)"),
    Bad("state-of-other-neurons", {"state": _state(i=STATE.i[:, :4])}, r"state\.i", r"\(2, 4\)",
        r"\(B, ?N\)|\(2, 5\)"),
    Bad("state-adaptation-3d", {"state": _state(a=STATE.a[None])}, r"state\.a", r"\(1, 2, 5\)",
        r"\(B, ?N\)|\(2, 5\)"),
    Bad("state-counter-of-another-batch", {"state": _state(r=STATE.r[:1])}, r"state\.r",
        r"\(1, 5\)", r"\(B, ?N\)|\(2, 5\)"),
    Bad("state-too-few-past-steps", {"state": _state(z=STATE.z[:3])}, r"state\.z", r"\b3\b",
        r"\b4\b"),
    Bad("state-spikes-2d", {"state": _state(z=STATE.z[0])}, r"state\.z", r"\(2, 5\)",
        r"\(D, ?B, ?N\)|\(4, 2, 5\)"),
    Bad("state-spikes-of-another-batch", {"state": _state(z=STATE.z[:, :1])}, r"state\.z",
        r"\(4, 1, 5\)", r"\(D, ?B, ?N\)|\(4, 2, 5\)"),
    Bad("state-double", {"state": _state(v=STATE.v.double())}, r"state\.v", "float64", "float32"),
    Bad("state-integer-counter", {"state": _state(r=STATE.r.long())}, r"state\.r", "int64",
        "float32"),
    Bad("state-complex", {"state": _state(v=STATE.v.to(torch.complex64))}, r"state\.v", "complex64",
        "float32"),
    Bad("state-on-another-device", {"state": _state(v=STATE.v.to("meta"))}, r"state\.v", "meta",
        "cpu")]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_refused(bad: Bad) -> None:
    with pytest.raises(ERRORS) as caught:
        functional.alif(**{**GOOD, **bad.change})
    message = str(caught.value)
    patterns = (("the argument", bad.argument), ("what was given", bad.given),
                ("what is wanted", bad.wanted))
    for what, pattern in patterns:
        assert re.search(pattern, message,
                         re.DOTALL), f"{what} ({pattern}) is not named in: {message}"


@pytest.mark.parametrize("name", ["current", "w_rec", "alpha", "theta"])
def test_missing(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        functional.alif(**{key: value for key, value in GOOD.items() if key != name})


# What is unusual, and works.
UNUSUAL: dict[str, dict[str, Any]] = {
    "no-steps": {"current": CURRENT[:0]},
    "no-batch": {"current": CURRENT[:, :0],
                 "state": functional.State(*(leaf[..., :0, :] for leaf in STATE))},
    "current-not-contiguous": {"current": CURRENT.transpose(1, 2).contiguous().transpose(1, 2)},
    "current-batch-first": {"current": CURRENT.transpose(0, 1).contiguous().transpose(0, 1)},
    "current-expanded": {"current": CURRENT[:1, :1].expand(T, B, N)},
    "current-constant": {"current": torch.full((1, 1, 1), 0.75).expand(T, B, N)},
    "current-with-nan": {"current": _with(CURRENT, nan, 0, 0, 0)},
    "w-transposed": {"w_rec": W.T},
    "w-expanded": {"w_rec": W[:1].expand(N, N)},
    "w-zero": {"w_rec": torch.zeros(N, N)},
    "coefficient-expanded": {"theta": torch.tensor(0.5).expand(N)},
    "coefficient-strided": {"theta": torch.linspace(0.3, 0.8, 2 * N)[::2]},
    "coefficients-at-their-limits": {"alpha": 1.0, "rho": 0.0, "sigma": 1.0},
    "coefficients-at-their-other-limits": {"alpha": 0.0, "rho": 1.0, "sigma": 0.0},
    "coefficients-whole-numbers": {"alpha": 1, "theta": 1, "rho": 0},
    "coefficient-double": {"alpha": GOOD["alpha"].double()},
    "beta-negative": {"beta": -0.1},
    "threshold-zero": {"theta": 0.0, "dynamics": "srnn"},
    "dampening-zero": {"dampening": 0.0},
    "delay-int32": {"delay": DELAY.int()},
    "delay-transposed": {"delay": DELAY.T},
    "delay-all-the-same": {"delay": torch.full((N, N), 3)},
    "delay-longer-than-sequence": {"delay": 20, "state": _state(z=torch.ones(21, B, N))},
    "refractory-longer-than-sequence": {"refractory": 1000},
    "checkpoint-longer-than-sequence": {"checkpoint_every": 1000},
    "state-expanded": {"state": functional.State(*(leaf[..., :1, :].expand_as(leaf)
                                                   for leaf in STATE))},
    "state-with-more-past-steps": {"state": _state(z=torch.cat([STATE.z, STATE.z]))}}


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
