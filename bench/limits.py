"""What a contestant may take, and why one did not run."""
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a contestant may take, so that neither the machine nor the patience runs out."""

    seconds: float = math.inf  # of forward+backward on one yardstick, all rounds together
    bytes: float = math.inf  # of memory beyond inputs and weights


NO_LIMITS = Limits()


@dataclass
class Skip:
    """A contestant that did not run on a yardstick, and why."""

    yardstick: str
    contestant: str
    reason: str


class OverLimitError(Exception):
    """A contestant would take more than it may."""


def reason_of(error: Exception) -> str:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    if isinstance(error, OverLimitError):
        return f"not run: {first}"
    return f"skipped: {type(error).__name__}: {first}"
