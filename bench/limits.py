"""Limits of time and memory, and the reason why a contestant did not run."""
import math
from dataclasses import dataclass

GB = 1e9
SPARE_BYTES = 2 * GB  # what the rest of the machine is left with


@dataclass(frozen=True)
class Limits:
    """The most time and memory of a contestant."""

    seconds: float = math.inf  # of forward+backward on one yardstick, all rounds together
    bytes: float = math.inf  # of memory beyond inputs and weights

    def check(self, needed: float) -> None:
        """Raises OverLimitError for more bytes than the limit."""
        if needed > self.bytes:
            raise OverLimitError(f"would need about {needed / GB:.1f} GB, the limit is "
                                 f"{self.bytes / GB:.1f} GB")


NO_LIMITS = Limits()


@dataclass
class Skip:
    """A contestant that did not run on a yardstick, and why."""

    yardstick: str
    contestant: str
    reason: str


class OverLimitError(Exception):
    """A contestant would take more than it may."""


def describe_error(error: Exception) -> str:
    """Its type, and the first line of its message."""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first}"


def reason_of(error: Exception) -> str:
    if isinstance(error, OverLimitError):
        return f"not run: {error}"
    return f"skipped: {describe_error(error)}"
