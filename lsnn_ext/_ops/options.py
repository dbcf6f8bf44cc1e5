"""Choices that tests and benchmarks force on the library (csrc/options.h). Users need none."""
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .load import _C, Options

# The names of the choices of an option; 0 is "automatic", also for options that are numbers.
_WORDS: dict[str, tuple[str, ...]] = {}
if _C is not None:
    _WORDS = {"product": _C.products, "design": _C.designs, "kernels": _C.kernels}
_forced: ContextVar[tuple[int, ...]] = ContextVar("lsnn_ext forced", default=())


def forced_options() -> tuple[int, ...]:
    """The options of a call that starts now; empty: those of the environment.

    Compiled graphs have none, since torch.compile does not trace context variables. Exported
    programs have zeros, which force nothing: AOTInductor turns an empty list into None.
    """
    if torch.compiler.is_exporting():
        return tuple(Options())
    return () if torch.compiler.is_compiling() else _forced.get()


def _choose(**choices: str | int) -> Any:
    numbers: dict[str, int] = {}
    for name, choice in choices.items():
        if name not in Options._fields:
            raise TypeError(f"forced: expected some of {', '.join(Options._fields)}, got {name!r}")
        words = _WORDS.get(name, ("automatic",))
        if isinstance(choice, str):
            if choice not in words:
                raise ValueError(f"{name}: expected {' or '.join(words)}, got {choice!r}")
            choice = words.index(choice)
        numbers[name] = choice
    return Options(*(_forced.get() or _C.default_options()))._replace(**numbers)


@contextmanager
def forced(**choices: str | int) -> Iterator[None]:
    """Forces choices on calls that start inside, and on their backward passes.

    Other options keep their values; "automatic" overrides the environment. Other threads and
    compiled graphs are not affected.

    Example:
        >>> with forced(product="sparse", team_size=2):
        ...     spikes, _ = functional.alif(current, w_rec, alpha=0.9, theta=0.3)
    """
    token = _forced.set(tuple(_choose(**choices)) if choices else _forced.get())
    try:
        yield
    finally:
        _forced.reset(token)
