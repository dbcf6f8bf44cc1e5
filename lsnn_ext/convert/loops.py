"""Modules of which a call is one step, inside a loop of the user's: what one call for all steps
would give in its place."""
import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import copies, trial, verification
from .comparison import Pair
from .known import qualified
from .report import InLoop, Speed
from .tree import Found
from .trial import Call, Given


class Loop(nn.Module):
    """A module of one step, called for all of them: what the user's loop does with it.

    first: the state before the first step; empty for a module that keeps it. whole: of which
    results those of all steps are wanted, of the others those of the last.
    """

    def __init__(self, layer: nn.Module, first: tuple[Tensor, ...],
                 whole: tuple[bool, ...]) -> None:
        super().__init__()
        self.layer, self.first, self.whole = layer, first, whole

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        state = tuple(value.to(x) for value in self.first)
        steps = []
        for x_t in x:
            found = self.layer(x_t, *state)
            steps.append(found if isinstance(found, tuple) else (found,))
            state = steps[-1] if self.first else ()
        return tuple(torch.stack(each) if whole else each[-1]
                     for each, whole in zip(zip(*steps, strict=True), self.whole, strict=True))


class Sequence(nn.Module):
    """Our layer on all steps at once, with the states of all steps where it can say them."""

    def __init__(self, layer: nn.Module, first: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.layer, self.first = layer, first
        if getattr(layer, "step_mode", None) == "s":
            layer.step_mode = "m"  # type: ignore[assignment]
        traces = "trace" in inspect.signature(layer.forward).parameters
        self.more = {"trace": True} if traces else {}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.layer(x, *(value.to(x) for value in self.first), **self.more)
        return found if isinstance(found, tuple) else (found,)


def seen(model: nn.Module, given: Given, entries: list[Found], repeats: int) -> list[InLoop]:
    """Each of the modules, in the loop that the model calls it in."""
    few = copies.duplicate(model)
    copies.round_weights(few, verification.BITS[0])
    watched = {entry.name: few.get_submodule(entry.name) for entry in entries}
    first: dict[str, nn.Module] = {}  # as they are when the loop begins

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: object) -> None:
            if name not in first:
                first[name] = copies.duplicate(module)
                first[name]._forward_pre_hooks.clear()
                first[name]._forward_hooks.clear()

        return hook

    for name, module in watched.items():
        module.register_forward_pre_hook(keep(name))
    calls = trial.run(few, verification.rounded(given), watched, backward=False).calls
    return [_one(first[entry.name], entry, calls[entry.name], repeats) if entry.name in calls
            else unseen(entry, "the model does not call it") for entry in entries]


def unseen(entry: Found, note: str) -> InLoop:
    """A module of which nothing was measured, and why."""
    assert entry.new is not None
    return InLoop(tuple(entry.names), entry.original, qualified(type(entry.new)), 0, None, None,
                  _code(entry), note)


def _one(module: nn.Module, entry: Found, calls: list[Call], repeats: int) -> InLoop:
    """One of them, as it was before the loop, and its calls there."""
    assert entry.new is not None and entry.known is not None
    kind = entry.known.ours
    xs = [next((value for value in call.args if isinstance(value, Tensor)), None)
          for call in calls]
    if any(x is None or x.shape != xs[0].shape for x in xs if xs[0] is not None):
        return unseen(entry, "its calls have inputs of several shapes")
    x = torch.stack([x for x in xs if x is not None])
    results = tuple(calls[0].results.values())
    first: tuple[Tensor, ...] = ()
    if _takes_state(module, len(results)):
        given = [value for value in calls[0].args[1:] if isinstance(value, Tensor)]
        fits = [value.shape for value in given] == [value.shape for value in results]
        first = tuple(given) if fits else tuple(torch.zeros_like(value) for value in results)
    whole = (True,) * len(results)
    with torch.no_grad():
        again = Loop(copies.duplicate(module), first, whole)(x)
        made = Sequence(kind.from_original(copies.duplicate(module)), first)(x)
    for value, name in zip(again, calls[0].results, strict=True):
        if not torch.equal(value, torch.stack([call.results[name] for call in calls])):
            return unseen(entry, "the loop sets its state between two steps, or calls it for more "
                                 "than one sequence")
    whole = tuple(value.dim() == x.dim() for value in made)

    def candidates(dtype: torch.dtype | None) -> tuple[nn.Module, nn.Module, list[Pair]]:
        theirs, ours = copies.duplicate(module), copies.duplicate(module)
        for part in (theirs, ours):
            if dtype is not None:
                copies.cast(part, dtype)
        loop = Loop(theirs, first, whole)
        line = Sequence(kind.from_original(ours), first)
        return loop, line, [Pair(entry.name, loop, line, 0, spikes=entry.spikes)]

    comparison = verification.compared(candidates, x, verification.BITS[0])
    speed: Speed | None = None
    if repeats and comparison.verdict != "mapping":
        loop, line, _ = candidates(None)
        speed = verification.in_turns([verification.one_pass(loop, x),
                                       verification.one_pass(line, x)], repeats)
    return InLoop(tuple(entry.names), entry.original, qualified(type(entry.new)), len(calls),
                  comparison, speed, _code(entry) if comparison.verdict != "mapping" else ())


def _takes_state(module: nn.Module, results: int) -> bool:
    """Whether a call takes what the last one returned; other modules keep it."""
    arguments = inspect.signature(module.forward).parameters.values()
    return sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in arguments) > results > 1


def _code(entry: Found) -> tuple[str, ...]:
    """What to write in place of the loop."""
    assert entry.known is not None and entry.new is not None
    module, _, name = qualified(type(entry.new)).rpartition(".")
    # an entry of a list or of a Sequential is no attribute
    where = "".join(f"[{part}]" if part.isdigit() else f".{part}"
                    for part in entry.name.split(".")) if entry.name else "layer"
    where = f"self{where}" if entry.name else where
    if hasattr(entry.module, "step_mode"):
        return (f'{where}.step_mode = "m"  # once; then lsnn_ext.convert replaces it',
                f"spikes = {where}(xs)  # (T, B, I), in place of the loop over its steps")
    results = ("mem, spike" if entry.spikes else "spk, syn, mem" if name == "RSynaptic"
               else "spk, mem")
    return (f"from {module} import {name}  # in place of the one of {entry.known.package}",
            f"{results} = {where}(currents)  # (T, B, N), in place of the loop over its steps")
