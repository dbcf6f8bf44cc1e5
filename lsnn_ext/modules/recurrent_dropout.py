"""Recurrent dropout: neurons whose recurrent synapses are dropped for a whole sequence.

Source: variational dropout (Gal and Ghahramani, NeurIPS 2016), as recurrent_dropout of Keras: the
mask is on the presynaptic side. DelRec (2025) draws a mask of the recurrent current that each
neuron receives.
"""
import math
from typing import Any

import torch
from torch import Tensor

from .checks import check_number


def check_dropout(p: Any, recurrent: bool) -> None:
    check_number("recurrent_dropout", p, "a probability >= 0 and < 1", math.nextafter(1, 0))
    if p and not recurrent:
        raise ValueError(f"recurrent_dropout: expected 0 with recurrent=False, got {p}")


def is_dropping(layer: Any) -> bool:
    """Whether calls of a module draw a mask."""
    return bool(layer.training and getattr(layer, "recurrent_dropout", 0) and layer.recurrent)


def draw_masks(layer: Any, *batch: int, device: torch.device) -> Tensor | None:
    """A recurrent_mask (*batch, N); None if nothing is dropped."""
    if not is_dropping(layer):
        return None
    return torch.rand(*batch, layer.hidden_size, device=device) >= layer.recurrent_dropout


def scale_synapses(layer: Any, w_rec: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """The recurrent weights of a call with this mask."""
    return w_rec if w_rec is None or mask is None else w_rec / (1 - layer.recurrent_dropout)


def drop_synapses(layer: Any, w_rec: Tensor | None, x: Tensor) -> tuple[Tensor | None,
                                                                       Tensor | None]:
    """The recurrent weights and the recurrent_mask (B, N) of a call with x (T, B, I)."""
    mask = draw_masks(layer, x.shape[1], device=x.device)
    return scale_synapses(layer, w_rec, mask), mask


def refuse_steps(layer: Any) -> None:
    """Raises ValueError if a call of one step would draw a mask."""
    if is_dropping(layer):
        raise ValueError(f"step: expected recurrent_dropout=0 or a layer in eval mode, got "
                         f"{layer.recurrent_dropout} in training mode; forward draws one mask for "
                         f"all steps of a call")
