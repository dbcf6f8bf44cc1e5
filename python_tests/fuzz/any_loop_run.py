"""Calls of random models, and what differs between those of two copies."""
import math
import random
import sys
import types
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from any_loop_models import Program
from any_neuron import INEXACT, Noise
from fuzz_calls import gradients_of

LIMITS = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest
SMALL = 1e-3  # of the largest number of all tensors: a tensor below is compared with this
OWN = "_lsnn"  # attributes of converted models
PRODUCTS = {"linear", "matmul", "mm", "addmm", "einsum", "__matmul__", "bmm", "layer_norm", "sum",
            "mean", "softmax", "log_softmax", "batch_norm", "normalize", "cumsum", "__pow__"}


class Call(NamedTuple):
    """change: what is done to the model before; see _change."""

    change: str
    seed: int
    T: int
    B: int


class Case(NamedTuple):
    program: Program
    dtype: torch.dtype
    is_exact: bool  # parameters and inputs are multiples of 1 / 64
    calls: tuple[Call, ...]
    number: str  # of the model and the attempt
    is_verified: bool  # convert compares its result with the model
    is_dynamic: bool = False  # sizes are predicted


class Outcome(NamedTuple):
    """What a call leaves behind; error: the type of an exception."""

    results: dict[str, Any]
    gradients: dict[str, Any]
    state: dict[str, Any]
    generator: Tensor
    error: str


class Kind(tuple[bool, bool]):
    """requires_grad, is_contiguous: a result may be contiguous where that of the copy is not."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and self[0] == other[0] and self[1] >= other[1]

    __hash__ = tuple.__hash__


# ------------------------------------------------------------------------------------- running
def _round(tensor: Tensor) -> Tensor:
    return (tensor * 64).round() / 64


def make_model(case: Case) -> Any:
    """A model of a module of its own, which is among sys.modules as an imported one is."""
    name = "any_loop_program"
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(case.program.source, f"<model {case.number}>", "exec"), vars(module))
    torch.manual_seed(1)
    model = module.Model().to(case.dtype)
    if case.is_exact:
        with torch.no_grad():
            for one in model.parameters():
                one.copy_(_round(one))
    return model


def make_input(case: Case, call: Call) -> Tensor:
    generator = torch.Generator().manual_seed(call.seed)
    shape = {"tbi": (call.T, call.B, case.program.inputs),
             "bti": (call.B, call.T, case.program.inputs),
             "bit": (call.B, case.program.inputs, call.T),
             "bi": (call.B, case.program.inputs)}[case.program.layout]
    x = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 0.4
    x = (_round(x) if case.is_exact else x).to(case.dtype)
    x = x.to(torch.float16) if call.change == "dtype of x" else x
    return x if call.change == "without x" else x.requires_grad_()


def _change(model: Any, call: Call) -> None:
    """What a program may do between calls."""
    r = random.Random(f"change {call.seed}")
    parameters = list(model.parameters())
    modules = list(model.modules())
    if call.change == "eval":
        model.train(not model.training)
    elif call.change == "step":
        with torch.no_grad():
            for one in parameters:
                one.mul_(0.875)
    elif call.change == "attribute":
        numbers = [(module, name) for module in modules for name, value in vars(module).items()
                   if type(value) is float]
        for module, name in r.sample(numbers, min(2, len(numbers))):
            setattr(module, name, getattr(module, name) * 0.75)
    elif call.change == "frozen" and parameters:
        one = r.choice(parameters)
        one.requires_grad_(not one.requires_grad)
    elif call.change == "replaced" and parameters:
        place = r.choice([(module, name) for module in modules
                          for name in module._parameters if module._parameters[name] is not None])
        old = place[0]._parameters[place[1]]
        setattr(*place, torch.nn.Parameter(old.detach() * 0.75))
    elif call.change == "global":
        model.scale_of.__func__.__globals__["SCALES"][0] = 0.75
    elif call.change == "buffer":
        with torch.no_grad():
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.mul_(0.75)


def _named(name: str, value: Any) -> dict[str, Any]:
    """The leaves of containers by their places."""
    if isinstance(value, float | np.floating | np.ndarray):
        kind = type(value).__name__, getattr(value, "dtype", None)
        return {f"{name} class": str(kind), name: torch.as_tensor(value, dtype=torch.float32)}
    if isinstance(value, Tensor) or not isinstance(value, list | tuple | dict):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {f"{name} form": (type(value).__name__, len(value))}
    for key, one in items:
        found |= _named(f"{name}.{key}", one)
    return found


def state_of(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        found[f"{path} class"] = type(module).__name__
        for name, value in vars(module).items():
            if name != "_modules" and not name.startswith(OWN):
                found |= _named(f"{path}.{name}", value)
    return {name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in found.items()
            if isinstance(value, Tensor | int | float | str | tuple | type(None))}


def run_call(case: Case, model: Any, call: Call) -> Outcome:
    _change(model, call)
    x = make_input(case, call)
    given = x.detach().clone()
    torch.manual_seed(call.seed)
    results: dict[str, Any] = {}
    gradients: dict[str, Any] = {}
    error = ""
    try:
        with torch.no_grad() if call.change == "no_grad" else nullcontext():
            results = _named("result", model(x))
        gradients = _gradients(case, model, x, results)
    except Exception as raised:
        error = type(raised).__name__
    if not torch.equal(x.detach(), given):
        results["input"] = x.detach()
    kinds = {f"{name} requires_grad, is_contiguous": Kind((one.requires_grad, one.is_contiguous()))
             for name, one in results.items() if isinstance(one, Tensor)}
    results = kinds | {name: one.detach().clone() if isinstance(one, Tensor) else one
                       for name, one in results.items()}
    return Outcome(results, gradients, state_of(model), torch.get_rng_state(), error)


def _gradients(case: Case, model: Any, x: Tensor, results: dict[str, Any]) -> dict[str, Any]:
    r = random.Random(f"loss {case.number}")
    shown = [one for one in results.values()
             if isinstance(one, Tensor) and one.requires_grad and r.random() < 0.8]
    return gradients_of(shown, {"x": x, **dict(model.named_parameters())})


class Rounding(Noise):
    """All inexact functions round otherwise."""

    def __init__(self, seed: int) -> None:
        torch.overrides.TorchFunctionMode.__init__(self)
        self.names = INEXACT | PRODUCTS
        self.generator = torch.Generator().manual_seed(seed)


def run_original(case: Case, noise: int | None = None) -> list[Outcome]:
    model, found = make_model(case), []
    for call in case.calls:
        with nullcontext() if noise is None else Rounding(noise):
            found.append(run_call(case, model, call))
        if found[-1].error:
            break
    return found


# ----------------------------------------------------------------------------------- comparing
def difference_of(what: str, found: dict[str, Any], wanted: dict[str, Any],
                   limits: dict[torch.dtype, float], share: float) -> str:
    if found.keys() != wanted.keys():
        return f"{what}: {sorted(found.keys() ^ wanted.keys())[:4]} in one only"
    sizes = [float(one.detach().abs().max()) for one in wanted.values()
             if isinstance(one, Tensor) and one.numel() and one.is_floating_point()]
    largest = max((size for size in sizes if math.isfinite(size)), default=0.0)
    for name, one in wanted.items():
        other = found[name]
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            is_same = other == one if not isinstance(one, Tensor) and not isinstance(
                other, Tensor) else False
            if not is_same:
                return f"{what} {name}: {_words(other)} instead of {_words(one)}"
            continue
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{what} {name}: {_words(other)} instead of {_words(one)}"
        limit = share * limits.get(one.dtype, 0.0)
        if not limit or not one.is_floating_point():
            if not torch.equal(one, other):
                return f"{what} {name}: not equal"
            continue
        size = max(float(one.abs().max()) if one.numel() else 0.0, SMALL * largest)
        apart = (one - other).abs()
        bad = ~((apart <= limit * size) | (one == other) | (one.isnan() & other.isnan()))
        if bad.any():
            return (f"{what} {name}: {int(bad.sum())} of {bad.numel()} differ, by "
                    f"{float(apart.max()):.1e} of {size:.1e}")
    return ""


def _words(one: Any) -> str:
    return f"tensor {tuple(one.shape)} {one.dtype}" if isinstance(one, Tensor) else repr(one)[:80]


def difference(case: Case, found: list[Outcome], wanted: list[Outcome], share: float = 1.0) -> str:
    """Words for what differs by more than this share of the limits."""
    for call, a, b in zip(case.calls, found, wanted, strict=False):
        if a.error != b.error:
            return f"call {call}: raises {a.error or 'nothing'} instead of {b.error or 'nothing'}"
        if b.error:
            return ""
        if not torch.equal(a.generator, b.generator):
            return f"call {call}: another state of the generator"
        for what, one, other in (("", a.results, b.results), ("gradient of", a.gradients,
                                                             b.gradients),
                                 ("attribute", a.state, b.state)):
            words = difference_of(what, one, other, LIMITS, share)
            if words:
                return f"call {call}: {words}"
    return ""
