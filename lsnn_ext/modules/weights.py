"""The weights of a module: matrices, masks, signs, and parameter groups for an optimizer."""
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .checks import check_number
from .learned_delay import LearnedDelay
from .neuron import RANGES
from .parametrizations import Log, Logit
from .readout import LeakyReadout
from .recurrent import Recurrent

_CONSTANTS = {*RANGES, "tau", "tau_syn", "delay"}


def find_weights(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are weights: two dimensions or more, no constants of our
    neurons, logarithms or logits, and no gains of torch's weight_norm."""
    others = {id(parameter) for part in module.modules() if isinstance(part, ParametrizationList)
             for name, parameter in part.named_parameters(recurse=False)
             if any(isinstance(form, Log | Logit) for form in part)
             or name == "original0" and type(part[0]).__name__ == "_WeightNorm"}

    ours = {path for path, part in module.named_modules()
            if isinstance(part, Recurrent | LeakyReadout | LearnedDelay)}

    def is_constant(name: str) -> bool:
        path, _, name = re.sub(r"parametrizations\.(\w+)\.\w+$", r"\1", name).rpartition(".")
        return path in ours and re.sub(r"_l\d+(_reverse)?$", "", name) in _CONSTANTS

    return [parameter for name, parameter in module.named_parameters()
            if parameter.dim() > 1 and id(parameter) not in others and not is_constant(name)]


def find_synapses(module: nn.Module) -> tuple[list[nn.Parameter], dict[Tensor, Tensor]]:
    """Returns the weight matrices of a module, and masks of those without autapses.

    Args:
        module: an LSNN, or any module.

    Returns:
        The weights of two dimensions, and for each recurrent matrix (N, N) of a layer with
        autapses=False a bool mask (N, N), False on the diagonal, which has no effect.
    """
    masks: dict[Tensor, Tensor] = {}
    for layer in module.modules():
        if isinstance(layer, Recurrent) and layer.recurrent and not layer.autapses:
            for name, weight in layer.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    masks[weight] = ~torch.eye(len(weight), dtype=torch.bool, device=weight.device)
    return [weight for weight in find_weights(module) if weight.dim() == 2], masks


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two parameter groups of a module for an optimizer: weights, which decay, and all
    others, which do not.

    Weight decay pulls a parameter towards 0. A learned time constant is stored as its logarithm, so
    weight decay would pull tau towards 1 ms, and a decay stored as its logit towards 1/2.

    Args:
        module: an LSNN, or any module.
        weight_decay: of the weights, as in torch.optim.AdamW, >= 0.

    Returns:
        A group of weights: parameters of two dimensions or more, except constants of neurons and
        delays. A group of biases, constants, delays and gains of normalization, with
        weight_decay 0. Other options such as lr may be added to each.

    Raises:
        TypeError, ValueError: not a module, no parameters, or weight_decay is not a number >= 0.

    Example:
        >>> torch.optim.AdamW(parameter_groups(net, weight_decay=0.01), lr=0.002)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    check_number("weight_decay", weight_decay)
    weights = find_weights(module)
    ids = set(map(id, weights))
    others = [other for other in module.parameters() if id(other) not in ids]
    if not (weights or others):
        raise ValueError(f"module: expected parameters, got none in {type(module).__name__}")
    return [{"params": weights, "weight_decay": float(weight_decay)},
            {"params": others, "weight_decay": 0.0}]


def keep_signs(optimizer: Optimizer, signs: Mapping[Tensor, Tensor]) -> RemovableHandle:
    """Keeps the signs of weights (Dale's law) under any optimizer: after each step, weights whose
    sign has changed are set to 0.

    Args:
        optimizer: any optimizer of torch.
        signs: for each weight a tensor of 1 and -1 that broadcasts to its shape, as returned by
            lsnn_ext.init.dale.

    Returns:
        A handle; remove() ends it. Copies and pickles of an optimizer have no hooks: call
        keep_signs again for these.

    Raises:
        ValueError: signs other than 1 and -1, another shape, a weight of another sign, or one that
            the optimizer does not train.
    """
    trained = [weight for group in optimizer.param_groups for weight in group["params"]]
    pairs: list[tuple[Tensor, Tensor]] = []
    for weight, sign in signs.items():
        if not any(weight is one for one in trained):
            raise ValueError(f"signs: expected weights of the optimizer, got another of shape "
                             f"{tuple(weight.shape)}")
        pairs.append((weight, check_signs(sign, weight)))

    @torch.no_grad()
    def set_to_zero(*_: Any) -> None:
        for weight, sign in pairs:
            weight.masked_fill_(weight * sign < 0, 0.0)

    return optimizer.register_step_post_hook(set_to_zero)


def broadcast_to(name: str, value: Tensor, weight: Tensor) -> Tensor:
    """Signs or a mask in the shape of a weight. Raises TypeError or ValueError."""
    if name == "masks" and value.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool tensors, got {value.dtype}")
    try:
        return value.detach().to(weight.device).expand_as(weight)
    except RuntimeError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {tuple(weight.shape)}, got "
                         f"{tuple(value.shape)}") from None


def check_signs(value: Tensor, weight: Tensor) -> Tensor:
    """A copy of signs in the shape and dtype of a weight. Raises ValueError for others."""
    sign = broadcast_to("signs", value, weight).to(weight.dtype, copy=True)
    if not bool((sign.abs() == 1).all()):
        raise ValueError("signs: expected 1 and -1, got other numbers")
    other = int((weight.detach() * sign < 0).sum())
    if other:
        raise ValueError(f"signs: expected the signs of the weights, got {other} others in "
                         f"a weight of shape {tuple(weight.shape)}")
    return sign
