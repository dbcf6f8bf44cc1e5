"""Which synapses a module has, their signs, and an optimizer that keeps them."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .modules.recurrent import Recurrent


def synapses(module: nn.Module) -> tuple[list[nn.Parameter], dict[Tensor, Tensor]]:
    """The weight matrices of a module, and where those of its layers have no synapse.

    Args:
        module: an LSNN, or any module.

    Returns:
        Its parameters of two dimensions, and for each recurrent matrix (N, N) of a layer with
        autapses=False a mask (N, N), False on the diagonal, whose numbers never act.
    """
    masks: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        if isinstance(layer, Recurrent) and layer.recurrent and not layer.autapses:
            for name, weight in layer.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    masks[weight] = ~torch.eye(len(weight), dtype=torch.bool, device=weight.device)
    return [weight for weight in module.parameters() if weight.dim() == 2], masks


def keep_signs(optimizer: Optimizer, signs: Mapping[Tensor, Tensor]) -> RemovableHandle:
    """Holds weights to their signs, Dale's law, under any optimizer: after each of its steps what
    has changed its sign is set to 0.

    Args:
        optimizer: any optimizer of torch.
        signs: for each weight 1 and -1, of a shape that broadcasts to its own, as
            lsnn_ext.init.dale returns them.

    Returns:
        A handle whose remove() ends it. Copies and pickles of an optimizer have no hooks: call
        keep_signs again for these.

    Raises:
        ValueError: other signs than 1 and -1, another shape, a weight of another sign, or one that
            the optimizer does not train.
    """
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    kept: list[tuple[Tensor, Tensor]] = []
    for weight, sign in signs.items():
        if not any(weight is one for one in trained):
            raise ValueError(f"signs: expected weights of the optimizer, got another of shape "
                             f"{tuple(weight.shape)}")
        kept.append((weight, checked_signs(sign, weight)))

    @torch.no_grad()
    def hold(*_: Any) -> None:
        for weight, sign in kept:
            weight.masked_fill_(weight * sign < 0, 0.0)

    return optimizer.register_step_post_hook(hold)


def expanded(name: str, given: Tensor, weight: Tensor) -> Tensor:
    """Signs or a mask in the shape of a weight; raises TypeError or ValueError."""
    if name == "masks" and given.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool tensors, got {given.dtype}")
    try:
        return given.detach().to(weight.device).expand_as(weight)
    except RuntimeError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {tuple(weight.shape)}, got "
                         f"{tuple(given.shape)}") from None


def checked_signs(given: Tensor, weight: Tensor) -> Tensor:
    """A copy of signs in the shape and dtype of their weight, which must have them."""
    sign = expanded("signs", given, weight).to(weight.dtype, copy=True)
    if not bool((sign.abs() == 1).all()):
        raise ValueError("signs: expected 1 and -1, got other numbers")
    other = int((weight.detach() * sign < 0).sum())
    if other:
        raise ValueError(f"signs: expected those of the weights, got {other} of the other sign in "
                         f"a weight of shape {tuple(weight.shape)}")
    return sign
