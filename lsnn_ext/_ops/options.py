"""What tests and benchmarks force, where otherwise the library chooses (csrc/options.h).

Nothing that users need.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .load import _C, Options

# The words of those options that have some; 0 is "automatic", of numbers too.
_WORDS: dict[str, tuple[str, ...]] = {}
if _C is not None:
    _WORDS = {"product": _C.products, "design": _C.designs, "kernels": _C.kernels}
_forced: ContextVar[tuple[int, ...]] = ContextVar("lsnn_ext forced", default=())


def forced_options() -> tuple[int, ...]:
    """Those that a call brings along if it starts now; none: as the environment says.

    Compiled graphs bring none: torch.compile knows no context variables. Exported programs leave
    all to the library, in zeros: AOTInductor makes None of a list without elements.
    """
    if torch.compiler.is_exporting():
        return tuple(Options())
    return () if torch.compiler.is_compiling() else _forced.get()


def _choose(**choices: str | int) -> Any:
    given: dict[str, int] = {}
    for name, choice in choices.items():
        if name not in Options._fields:
            raise TypeError(f"forced: expected some of {', '.join(Options._fields)}, got {name!r}")
        words = _WORDS.get(name, ("automatic",))
        if isinstance(choice, str):
            if choice not in words:
                raise ValueError(f"{name}: expected {' or '.join(words)}, got {choice!r}")
            choice = words.index(choice)
        given[name] = choice
    return Options(*(_forced.get() or _C.default_options()))._replace(**given)


@contextmanager
def forced(**choices: str | int) -> Iterator[None]:
    """Forces choices on calls that start inside, and on their backward passes wherever these run.

    What is not named stays as it is outside; "automatic" leaves it to the library, whatever the
    environment says. Other threads do not see it, nor do compiled graphs.

    Example:
        >>> with forced(product="sparse", team_size=2):
        ...     spikes, _ = functional.alif(current, w_rec, alpha=0.9, theta=0.3)
    """
    token = _forced.set(tuple(_choose(**choices)) if choices else _forced.get())
    try:
        yield
    finally:
        _forced.reset(token)
