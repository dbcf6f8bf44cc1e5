"""Runs a converted fooling program beside the original, and returns what differs."""
import dataclasses
import math
import re
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fooling.base import CALLS, Net, Wanted, build
from lsnn_ext import loops

INTERNAL = set(vars(nn.Module()))  # _parameters, _buffers, hooks, training
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class Verdict(NamedTuple):
    """What convert did with a model."""

    how: str  # "fused": a kernel runs a part of it; "loop": replayed without; "refused": unchanged
    reasons: str  # of the report


Convert = Callable[[nn.Module, Any], tuple[nn.Module, Verdict]]


def convert(model: nn.Module, x: Any) -> tuple[nn.Module, Verdict]:
    """lsnn_ext.loops.convert: the only place of these tests that knows its interface."""
    before = type(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted, report = loops.convert(model, x)
    assert converted is model
    if type(model) is before:
        return model, Verdict("refused", report.reason)
    return model, Verdict("fused" if report.fused else "loop", report.reason)


# --------------------------------------------------------------------------------- what a call did
class Seen(NamedTuple):
    """What can be seen of a call."""

    result: Any
    error: BaseException | None
    gradients: dict[str, Tensor | None]
    state: dict[str, Any]  # attributes and buffers afterwards
    arguments: Any
    random: Any  # the states of all generators
    same: list[int]  # for each tensor of the result the argument or parameter that it is, or -1
    ran: bool  # whether Python ran the program's own forward


@contextmanager
def notice(code: Any, found: list[Any], event: str = "call",
           note: Callable[[Any], Iterable[Any]] = lambda _: (True,)) -> Iterator[None]:
    """Notes that this thread enters the code, or returns from it, unseen by the code."""
    def profile(frame: Any, now: str, result: Any) -> None:
        if now == event and frame.f_code is code:
            found.extend(note(result))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Parameters, buffers and plain attributes of all modules, copied."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found: dict[str, Any] = {name: one.detach().clone() for name, one in tensors}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in INTERNAL and not name.startswith("_lsnn"):
                found[f"{path}.{name}"] = snapshot(value)
        found[f"{path}.training"] = module.training
    return found


def snapshot(value: Any) -> Any:
    """A copy of containers and tensors; anything else itself."""
    if isinstance(value, Tensor):
        has_gradient = value.is_leaf or value.retains_grad
        return (value.detach().clone(), value.requires_grad, value.is_leaf,
                value.grad.clone() if has_gradient and value.grad is not None else None)
    if isinstance(value, dict):
        return {key: snapshot(one) for key, one in value.items()}
    if isinstance(value, list | deque):
        return [snapshot(one) for one in value]
    if isinstance(value, tuple):
        return tuple(snapshot(one) for one in value)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, weakref.ref):
        return "a weak reference"
    if isinstance(value, torch.Generator):
        return value.get_state()
    return snapshot(vars(value)) if isinstance(value, SimpleNamespace) else value


def tensors_of(result: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(unfold(result)) if isinstance(one, Tensor)]


def unfold(result: Any) -> Any:
    if dataclasses.is_dataclass(result):
        return type(result).__name__, *[unfold(getattr(result, field.name))
                                        for field in dataclasses.fields(result)]
    return result


def observe(model: nn.Module, code: Any, kind: type[Net], call: int) -> Seen:
    """One call, forward and backward, with the seeds of the call."""
    import random

    arguments = kind.inputs(call)
    given = [one for one in pytree.tree_leaves(arguments) if isinstance(one, Tensor)]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(call)
    random.seed(call)
    np.random.seed(call)  # noqa: NPY002
    found: list[bool] = []
    result, error = None, None
    with kind.around(call), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with notice(code, found):
                result = model(*arguments)
            outputs = tensors_of(result)
            state = torch.get_rng_state()
            outputs += [getattr(model, name) for name in kind.losses]
            terms = losses(outputs)
            if terms:
                torch.stack([term.double() for term in terms]).sum().backward()
            torch.set_rng_state(state)
        except Exception as raised:
            error = raised
    owned = [*given, *model.parameters()]
    same = [next((k for k, one in enumerate(owned) if one is each), -1)
            for each in tensors_of(result)]
    gradients = {name: one.grad for name, one in model.named_parameters()}
    gradients |= {f"argument {k}": one.grad for k, one in enumerate(given) if one.is_leaf}
    drawn = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    return Seen(result, error, gradients, state_of(model), arguments, drawn, same, bool(found))


def losses(outputs: list[Tensor]) -> list[Tensor]:
    """The sum of each output that has a gradient, each number with a weight of its own."""
    return [(one * torch.linspace(0.5, 1.5, max(one.numel(), 1), dtype=one.dtype)[:one.numel()]
             .view(one.shape)).sum()
            for one in outputs if one.requires_grad and not one.is_complex()]


# --------------------------------------------------------------------------------------- difference
def differ(a: Any, b: Any, rounds: bool = False) -> str:
    """What differs between two results, or nothing."""
    a, b = unfold(a), unfold(b)
    if type(a) is not type(b):
        return f"{type(a).__name__} became {type(b).__name__}"
    if isinstance(a, Tensor):
        return differ_tensors(a, b, rounds)
    if isinstance(a, dict):
        if list(a) != list(b):
            return f"keys {list(a)} became {list(b)}"
        pairs = [(key, a[key], b[key]) for key in a]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"length {len(a)} became {len(b)}"
        pairs = [(k, one, other) for k, (one, other) in enumerate(zip(a, b, strict=True))]
    elif isinstance(a, np.ndarray):
        return "" if np.array_equal(a, b) else "other numbers of NumPy"
    else:
        equal = a is b or a == b or repr(a) == repr(b) or is_opaque(a)
        return "" if equal else f"{a!r} became {b!r}"
    texts = [(key, differ(one, other, rounds)) for key, one, other in pairs]
    return "; ".join([f"[{key}]: {text}" for key, text in texts if text][:3])


def is_opaque(value: Any) -> bool:
    """Whether two copies of it cannot be compared."""
    return callable(value) or type(value).__eq__ is object.__eq__


def differ_tensors(a: Tensor, b: Tensor, rounds: bool) -> str:
    for name in ("layout", "is_nested", "dtype", "requires_grad", "is_leaf"):
        if getattr(a, name) != getattr(b, name):
            return f"{name} {getattr(a, name)} became {getattr(b, name)}"
    a, b = (one.to_padded_tensor(math.nan) if one.is_nested else one.to_dense()
            for one in (a.detach(), b.detach()))
    if a.shape != b.shape:
        return f"shape {a.shape} became {b.shape}"
    if rounds and a.is_floating_point():
        return differ_gradients(a, b)
    wrong = ~((a == b) | ((a != a) & (b != b)))
    return f"{int(wrong.sum())} of {a.numel()} numbers differ" if wrong.any() else ""


def differ_gradients(a: Tensor | None, b: Tensor | None, largest: float = 0.0) -> str:
    if a is None or b is None:
        return "" if a is b else f"{'None' if a is None else 'a gradient'} became another"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.shape} {a.dtype} became {b.shape} {b.dtype}"
    if not torch.equal(a.isnan(), b.isnan()):
        return "other gradients are NaN"
    a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    error = float((a - b).abs().max()) if a.numel() else 0.0
    largest = max(largest, float(a.abs().max()) if a.numel() else 0.0)
    limit = TOLERANCE.get(a.dtype, 0.02) * largest
    return "" if error <= limit else f"differs by {error:.1e}, more than {limit:.1e}"


def difference(original: Seen, other: Seen, rounds: bool) -> str:
    """What differs between two calls, or nothing."""
    if original.error is not None or other.error is not None:
        a, b = original.error, other.error
        same = type(a) is type(b) and str(a).split("\n")[0] == str(b).split("\n")[0]
        return "" if same else f"error {a!r} became {b!r}"
    found = [f"{name}: {text}" for name, text in (
        ("result", differ(original.result, other.result, rounds)),
        ("the same objects", differ(original.same, other.same)),
        ("arguments", differ(original.arguments, other.arguments)),
        ("random", differ(original.random, other.random)),
        ("state", differ(original.state, other.state, rounds)),
        ("gradients", differ(list(original.gradients), list(other.gradients)))) if text]
    largest = max([float(one.nan_to_num(0.0).abs().max()) for one in original.gradients.values()
                   if one is not None and one.numel()], default=0.0)
    found += [f"gradient of {name}: {text}" for name, one in original.gradients.items()
              if (text := differ_gradients(one, other.gradients.get(name), largest))]
    return "\n  ".join(found)


# -------------------------------------------------------------------------------------- all calls
def spoil(*results: list[Tensor]) -> None:
    """Writes another number to each tensor, in turn."""
    for tensors in results:
        for k, one in enumerate(tensors):
            one.detach().fill_(k + 1)


def check_program(kind: type[Net], seen: Seen) -> list[str]:
    """Returns why no wrong conversion of the program could be found, by its first call."""
    if seen.error is not None:
        return [f"the program raises {seen.error!r}"]
    results = [one.double() for one in tensors_of(seen.result) if not one.is_complex()]
    is_still = bool(results) and all(bool((one == one.flatten()[0]).all()) for one in results)
    learns = any(one is not None and one.any() for one in seen.gradients.values())
    return [text for text, is_wrong in (
        ("all results of the program are equal", is_still),
        ("the program does not run its forward", not seen.ran),
        ("the program has other gradients than `learns` tells", learns != kind.learns)) if is_wrong]


def judge(kind: type[Net], wanted: Wanted, convert: Convert = convert) -> list[str]:
    """Returns what is wrong with a program or with how it was converted."""
    original, model, unchanged = build(kind), build(kind), build(kind)
    code = kind.forward.__code__
    wrong = []
    try:
        with kind.around(-1):
            torch.manual_seed(7)
            before = state_of(model)
            arguments = kind.inputs(-1)
            random = torch.get_rng_state()
            _, verdict = convert(model, arguments if len(arguments) != 1 else arguments[0])
            if not torch.equal(torch.get_rng_state(), random):
                wrong.append("convert: changes the state of the generator")
            if text := differ(before, state_of(model)):
                wrong.append(f"convert: changes the model: {text}")
            if any(one.grad is not None for one in model.parameters()):
                wrong.append("convert: sets .grad")
        seen, has_effect = [], False
        for call in range(CALLS):
            kind.reset()
            original.change(call)
            a = observe(original, code, kind, call)
            wrong += check_program(kind, a) if call == 0 else []
            kind.reset()
            model.change(call)
            b = observe(model, code, kind, call)
            if text := difference(a, b, kind.rounds):
                wrong.append(f"call {call} ({'original' if b.ran else 'replayed'}): {text}")
            seen.append(b)
            if kind.changes:
                kind.reset()
                same = observe(unchanged, code, kind, call)
                has_effect |= bool(difference(a, same, kind.rounds))
            if kind.spoils:
                spoil(tensors_of(a.result), tensors_of(b.result))
                text = differ([a.result, state_of(original)], [b.result, state_of(model)])
                wrong += [f"after writes to the result of call {call}: {text}"] if text else []
        if kind.changes and not has_effect:
            wrong.append("the change of the program has no effect")
    finally:
        kind.reset()
    if wanted.how == "fused":
        wrong += [] if verdict.how == "fused" else [f"expected a kernel, got {verdict}"]
        wrong += [f"call {call}: runs the original" for call in kind.replayed if seen[call].ran]
    if wanted.how == "refused" and not (
            verdict.how == "refused" and re.search(wanted.reason, verdict.reasons, re.I)):
        wrong.append(f"expected it refused because of {wanted.reason!r}, got {verdict}")
    return wrong
