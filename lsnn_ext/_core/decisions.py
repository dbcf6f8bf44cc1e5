"""Reports of decisions: the operators and kernels that were chosen, for lsnn_ext.plan."""
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Listener = Callable[..., None]
_listener: Listener | None = None


def report(kind: str, *facts: Any) -> None:
    """Calls the listener with a decision; a no-op if there is none, and in torch.compile."""
    if _listener is not None and not torch.compiler.is_compiling():
        _listener(kind, *facts)


def is_listening() -> bool:
    return _listener is not None


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Sends the decisions of all threads to a listener; inside another one it replaces that."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
