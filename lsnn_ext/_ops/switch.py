"""Whether compiled code computes what is called, or the reference."""
from contextlib import ContextDecorator
from typing import Any

_inside = 0  # use_reference() that have been entered and not left


class use_reference(ContextDecorator):  # noqa: N801  # named as a function, as torch.no_grad is
    """The reference, plain PyTorch operations in a loop over time, computes what is called inside.

    It runs on every device that PyTorch runs on, MPS and XPU among them, can be looked into step by
    step, and gives the same spikes, to rounding, in many times the time. Functions and modules of
    lsnn_ext alike take it, also their single steps. A result keeps its kind: the backward pass of
    what was computed inside is the reference's wherever it runs.

    It acts on all threads of the process, as torch.backends does, and torch.compile compiles anew
    where it changes. checkpoint_every and saved_dtype have no effect inside.

    Example:
        >>> with lsnn_ext.use_reference():
        ...     spikes, state = layer(x.to("mps"))
    """

    def __enter__(self) -> None:
        global _inside
        _inside += 1

    def __exit__(self, *_: Any) -> None:
        global _inside
        _inside -= 1


def is_reference_active() -> bool:
    """Whether a use_reference() is open."""
    return _inside > 0
