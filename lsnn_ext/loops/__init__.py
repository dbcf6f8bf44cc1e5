"""Any loop: a recorded call of a model, the recurrences in its loops, and their kernels."""
from .ir import Refused
from .model import convert, fuse, revert
from .rounding import VerificationError

__all__ = ["Refused", "VerificationError", "convert", "fuse", "revert"]
