"""The constants of a layer: what stands for those left out, and checks, when they are given and
when they are used."""
import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..models import Coefficient, Origin, named_model

# nn.Linear takes bias at the third place
_BY_NAME = "; what is True or False, as bias is, is given by its name"


def whole(name: str, value: Any, least: int) -> None:
    """Raises ValueError for all but whole numbers from least on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}{hint}")


def positive(name: str, value: Any) -> None:
    """Raises TypeError for what is no number, ValueError for one that is not > 0."""
    if isinstance(value, bool) or not isinstance(value, Real):  # a number of numpy's is a Real too
        hint = _BY_NAME if isinstance(value, bool) else ""
        raise TypeError(f"{name}: expected a number > 0, got {value!r}{hint}")
    if not float(value) > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")


def flag(name: str, value: Any) -> None:
    """Raises TypeError for all but True and False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def learned(learn: Any, names: Iterable[str]) -> tuple[str, ...]:
    """The names among `names` that are to become Parameters."""
    learn = (learn,) if isinstance(learn, str) else learn
    wanted = f"some of {', '.join(names)}"
    if not isinstance(learn, Iterable):
        raise TypeError(f"learn: expected {wanted}, got {learn!r}")
    for name in (learn := tuple(learn)):
        if name not in names:
            raise ValueError(f"learn: expected {wanted}, got {name!r}")
    return learn


def _own_values(origin: Origin, names: list[str]) -> str:
    """A sentence on what the makers of a model have in place of these arguments."""
    values = "; ".join(f"{name}: {getattr(origin, name)}" for name in names)
    beyond = f"; functional.alif alone can say {origin.beyond}" if origin.beyond else ""
    return f"{origin.whose} has {values}{beyond}"


def chosen(
    kind: str, dynamics: str, paper: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """given, with the paper's values for what is None; with another model's equations nothing may
    be None."""
    origin = named_model(dynamics).origin
    missing = [name for name, value in given.items() if value is None]
    if missing and dynamics != "lsnn":
        raise TypeError(
            f"{', '.join(missing)}: expected to be given with dynamics={dynamics!r}, as the "
            f"defaults of {kind} are those of the LSNN paper, got none; "
            f"{_own_values(origin, missing)}"
        )
    return {name: paper[name] if value is None else value for name, value in given.items()}


def constant(name: str, value: Coefficient, shapes: Iterable[tuple[int, ...]],
             dtype: torch.dtype) -> Tensor:
    """The value on the CPU, apart from the caller's; checked as it will be in dtype. A meta tensor
    has none and stays.

    Numbers stay in float64, so that a layer which is made anew in another dtype rounds once.
    """
    if isinstance(value, bool) or isinstance(value, str) or value is None:
        raise TypeError(f"{name}: expected a number or a tensor, got {value!r}")
    if not isinstance(value, Tensor):
        kept = torch.as_tensor(value, dtype=torch.float64, device="cpu").clone()
    else:
        kept = value.detach().clone() if value.is_meta else value.detach().to("cpu", copy=True)
    if kept.dtype == torch.bool or kept.dtype.is_complex:
        raise TypeError(f"{name}: expected real numbers, got {kept.dtype}")
    if kept.shape not in tuple(shapes):
        wanted = " or ".join(str(shape) for shape in shapes if shape)
        raise ValueError(f"{name}: expected a number or shape {wanted}, got shape "
                         f"{tuple(kept.shape)}")
    if not kept.is_meta:
        data = kept.to(dtype)
        if not bool(data.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got "
                             f"{data[~data.isfinite()][0].item()}")
        # a negative beta is the paper's family too (ELIF)
        if name != "beta" and not bool((data > 0).all()):
            raise ValueError(f"{name}: expected numbers > 0, got {data.min().item()}")
    return kept


def put(name: str, target: Tensor, value: Tensor) -> None:
    """Writes a constant into a parameter or buffer, of whatever device and dtype."""
    if value.is_meta and not target.is_meta:
        raise RuntimeError(f"{name}: expected the numbers that the layer was made with, got a meta "
                           f"tensor, which has "
                           "none; make it on the CPU, also where the layer is made on meta")
    if value.dim():
        target.copy_(value)
    elif not value.is_meta:
        target.fill_(value.item())


def hold_range(kind: str, name: str, value: Tensor, is_learned: bool) -> None:
    """Raises ValueError where a constant in use has left its range; looks on the CPU only, and
    where nobody compiles.

    Training does that: a step of the optimizer carries a small threshold or time constant through
    zero, and the next pass would make everything NaN.
    """
    if not functional.readable(value):
        return
    value = value.detach()
    low, high = (value, value) if value.dim() == 0 else value.aminmax()
    least = -math.inf if name.startswith("beta") else 0.0
    if least < float(low) and float(high) < math.inf:
        return
    wanted = "finite numbers" if least < 0 else "finite numbers > 0"
    bad = int((~value.isfinite() | (value <= least)).reshape(-1).nonzero()[0])
    where = f" at neuron {bad}" if value.dim() else ""
    remedy = (
        f"; the last step of an optimizer, or the loss, has carried what this {kind} learns out of "
        f"its range: go back to a state before it, and clamp {name} after each step (under "
        f"torch.no_grad()), give it a smaller learning "
        "rate, or learn its logarithm with torch.nn.utils.parametrize"
    ) if is_learned else ""
    raise ValueError(f"{name}: expected {wanted} in {kind}, got "
                     f"{float(value.reshape(-1)[bad]):.6g}{where}{remedy}")
