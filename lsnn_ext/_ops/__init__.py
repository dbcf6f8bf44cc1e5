"""The compiled operators: loading, use_reference and options that tests force (load), shapes
(fake), calls (arguments), gradients (autograd) and linear maps (linear)."""
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from .._core import torch_internals as internals
from .._core.autograd_rules import loop_over_batch
from . import autograd, fake, load
from .arguments import *  # noqa: F403
from .autograd import *  # noqa: F403
from .linear import *  # noqa: F403
from .linear import Filter
from .load import *  # noqa: F403
from .load import _C as _C

_DIFFERENTIATED: dict[str, Callable[..., Any]] = {
    "alif_forward": lambda *args: autograd.call_differentiable(SimpleNamespace(
        **internals.bind_arguments(torch.ops.lsnn.alif_forward.default, args))),
    "leaky_readout": lambda *args: Filter.apply(*args, False),
    "leaky_readout_backward": lambda *args: Filter.apply(*args, True),
}


def _autograd_kernel(name: str) -> Callable[..., Any]:
    """Returns the autograd kernel of a raw operator: an error where a gradient would be lost."""
    op = getattr(torch.ops.lsnn, name).default
    lists = {k for k, argument in enumerate(op._schema.arguments)
             if str(argument.type) == "List[int]"}

    def kernel(keys: Any, *args: Any) -> Any:
        # an AOTInductor package passes None for an empty list
        args = tuple([] if arg is None and k in lists else arg for k, arg in enumerate(args))
        if torch.is_grad_enabled() and any(
                one.requires_grad for one in internals.find_tensors(args)):
            out = _DIFFERENTIATED[name](*args) if name in _DIFFERENTIATED else None
            if out is not None:
                return out
            raise RuntimeError(
                f"torch.ops.lsnn.{name}: expected tensors that do not require grad, since the "
                "operator has no gradient, got some that do. In an exported program: run it under "
                "torch.no_grad(), or export it with gradients enabled. In code: call the functions "
                "of lsnn_ext.functional, which are differentiable")
        return op.redispatch(internals.keys_after_autograd(keys), *args)

    return kernel


def _kernel_of_memory(name: str) -> Callable[..., Any]:
    """Returns the kernel of a raw operator for lazily negated tensors and zeros without memory,
    which torch's fallback ignores in lists with None."""
    op = getattr(torch.ops.lsnn, name).default

    def kernel(keys: Any, *args: Any) -> Any:
        return op.redispatch(internals.keys_of_memory(keys), *internals.tree_map(
            lambda arg: load.materialize(arg) if isinstance(arg, torch.Tensor) else arg, args))

    return kernel


if load.available:
    _registry = torch.library.Library("lsnn", "IMPL")
    for _name, _kernel in fake.make_kernels().items():
        torch.library.register_fake(f"lsnn::{_name}", _kernel)
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(f"lsnn::{_name}", _device, torch.float32)
        torch.library.register_vmap(f"lsnn::{_name}",
                                    loop_over_batch(getattr(torch.ops.lsnn, _name)))
        _registry.impl(_name, _autograd_kernel(_name), "Autograd", with_keyset=True)
        for _key in ("Negative", "ZeroTensor"):
            _registry.impl(_name, _kernel_of_memory(_name), _key, with_keyset=True)
    torch.library.register_fake("lsnn::buffer", lambda like, rows,
                                columns: like.new_empty(rows, columns))
