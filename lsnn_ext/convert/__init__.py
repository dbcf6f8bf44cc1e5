"""convert: models of other packages with the layers of this one, and proof that they are the
same."""
from collections.abc import Iterable
from dataclasses import replace as changed
from typing import Any

import torch
from torch import nn

from .. import (  # noqa: F401  for the registry
    _original,
    norse,
    se_adlif,
    sinabs,
    snntorch,
    sparch,
    spikingjelly,
    yin,
)
from . import copies, known, linears, loops, tree, verification
from .known import Known, Refused
from .report import Comparison, Difference, InLoop, Left, Replaced, Report, Speed
from .trial import Given, check_given
from .verification import ConversionError

__all__ = [
    "Comparison", "ConversionError", "Difference", "InLoop", "Left", "Refused", "Replaced",
    "Report", "Speed", "convert", "revert",
]


def convert(
    model: nn.Module, *, verify: Given | None = None, inplace: bool = True, strict: bool = True,
    steps: bool = False, spike_linears: bool = True, classes: Iterable[type[Any]] = (),
    repeats: int = 5,
) -> tuple[nn.Module, Report]:
    """Puts layers of lsnn_ext in place of those of Norse, snnTorch, sinabs, SpikingJelly and
    others, with the same numbers, and says what it did.

    Two results, so that nobody overlooks what was left as it is. The parameters are the same
    objects as before, under the same names where the layers have the same: an optimizer that was
    made before goes on with them, and so does the state dict.

    Args:
        model: any module; its parts are found by the names of their classes.
        verify: what to run the model on, forward and backward, before and after, on copies of it: a
            tensor, a tuple of arguments, or a function of the model that runs it, as
            `lambda model: model(x, state)`. A short sequence will do. Weights and inputs are
            rounded to few bits on the copies, so that sums are exact and spikes can be equal; the
            computation is in float64 where the original can. Default None: nothing is run.
        inplace: the modules inside of this model are replaced, once all has been verified; False:
            in a copy of it, and the model stays as it is. A model that is itself such a layer is
            never changed; the result is the new layer.
        strict: a difference that is no rounding raises; False: the model comes back as it was, with
            the report.
        steps: replace modules too of which a call is one step inside your loop, as snnTorch's are.
            One step at a time there is little to gain; the report says what the layer gains where
            one call takes the place of the loop, and what to write. Default False: they stay.
        spike_linears: replace the Linears of torch too that are given sequences of 0 and 1 on
            verify, and nothing else, as a readout is: by lsnn_ext.Linear, a subclass on the same
            parameters, which takes spikes by events. False: they stay, as they do where no layer
            is replaced, or without verify.
        classes: classes of your own that stand for others, each with `original`, the qualified name
            of the other class, and `from_original(module)`, which makes one of a module or raises
            lsnn_ext.Refused with the reason.
        repeats: rounds in which both are timed, forward and backward, in turns; 0: none.

    Returns:
        the model, and a Report: print it.

    Raises:
        ConversionError: verify shows another result that is no rounding; it has the .report.
        TypeError, ValueError: a wrong argument, or a model inside a wrapper (torch.compile,
            DistributedDataParallel, TorchScript).

    Example:
        >>> model, report = lsnn_ext.convert(model, verify=x)
        >>> print(report)
    """
    table = _checked(model, verify, classes, repeats)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        mine = model if inplace else copies.duplicate(model)
        plan = tree.plan(mine, table, steps)
        report = Report(
            known.qualified(type(model)), True,
            tuple(Replaced(tuple(entry.names), entry.original,
                           known.qualified(type(entry.new))) for entry in plan.replaced),
            tuple(Left(tuple(entry.names), entry.original, entry.reason)
                  for entry in plan.refused),
            tuple(loops.unseen(entry, "give verify= an input of the model")
                  for entry in plan.in_loop),
            notes=tuple(known.NOTES[package] for package in dict.fromkeys(
                entry.known.kin for entry in plan.replaced if entry.known is not None)
                if package in known.NOTES))
        names: list[str] = []
        if verify is not None:
            if plan.replaced and spike_linears:
                names = linears.taking_spikes(model, verify, plan)
            make = verification.Maker(table, steps, names)
            report = _verified(model, verify, make, report, plan, repeats)
        if not report.changed:
            if strict:
                raise ConversionError(f"model: expected the same results after conversion, got "
                                      f"others; the model is as it was\n{report}", report)
            return model, report
        found = linears.entries(mine, names)
        report = changed(report, linears=tuple(
            Replaced(tuple(entry.names), entry.original, known.qualified(type(entry.new)))
            for entry in found))
        return tree.replace(mine, [*plan.replaced, *found]), report


def _checked(model: Any, given: Any, classes: Iterable[type[Any]],
             repeats: Any) -> dict[str, Known]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(repeats, bool) or not isinstance(repeats, int):
        raise TypeError(f"repeats: expected an int >= 0, got {type(repeats).__name__}")
    if repeats < 0:
        raise ValueError(f"repeats: expected an int >= 0, got {repeats}")
    if given is not None:
        check_given(given)
    known.check_wrappers(model)
    return known.table_of([*_original.Original.registry.values(), *classes])


def _verified(model: nn.Module, given: Given, maker: verification.Maker, report: Report,
              plan: tree.Plan, repeats: int) -> Report:
    if plan.in_loop:
        report = changed(report, in_loop=tuple(loops.seen(model, given, plan.in_loop, repeats)))
    if not plan.replaced:
        return report
    found = verification.verified(model, given, maker)
    if found.verdict == "mapping":
        return changed(report, changed=False, comparison=found)
    make = verification.both(model, maker)
    found = changed(found, own_weights=verification.own_weights(make, given))
    speed = verification.timed(make, given, repeats) if repeats else None
    return changed(report, comparison=found, speed=speed)


def revert(model: nn.Module) -> nn.Module:
    """Puts the modules back that convert has replaced, with the parameters as they are now.

    Args:
        model: what convert returned, or a copy of it; trained since, or on another device.

    Returns:
        the model itself, or the original layer where the model is one.

    Raises:
        TypeError: no module.
        ValueError: nothing in it was converted.
        RuntimeError: a parameter that the original does not have.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not tree.converted(model):
        raise ValueError(f"model: expected one that was converted, got {type(model).__name__} with "
                         f"nothing to put back")
    return tree.go_back(model)
