"""Any loop: a recorded call of a model, the recurrences in its loops, and their kernels."""
from .model import convert, fuse, revert
from .refused import Refused
from .rounding import VerificationError

__all__ = ["Refused", "VerificationError", "convert", "fuse", "revert"]
