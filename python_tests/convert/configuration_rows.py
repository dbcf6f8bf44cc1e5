"""What a row of the tables of configurations says."""
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

DOUBLE, SINGLE = torch.float64, torch.float32
Make = Callable[[], Any]  # of a layer; Any: it may have any attributes
Values = dict[str, Tensor]


class Package(NamedTuple):
    """How layers of a package are run.

    inputs: of a layer. sequence: all that a call over all steps gives, "spikes" among it; loop: the
    same of calls step by step, None where a call has all steps. verify: for convert, None: the
    inputs.
    """

    inputs: Callable[[Any], Tensor]
    sequence: Callable[[Any, Tensor], Values]
    loop: Callable[[Any, Tensor], Values] | None = None


class Row(NamedTuple):
    """One configuration; reason: words of why it is refused, "" where it is not. dtype: in which
    the package computes. unlearned: what of the layer does not learn, or whose gradient is a sum
    over all neurons that may nearly cancel."""

    name: str
    package: Package
    make: Make
    dtype: torch.dtype
    reason: str = ""
    unlearned: tuple[str, ...] = ()
