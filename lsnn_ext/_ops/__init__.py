"""The compiled operators: loading (load), shapes without data (fake), gradients (autograd), linear
maps (linear), the readout alone (readout); and what tests and benchmarks force (options)."""
from collections.abc import Callable
from typing import Any

import torch

from .._core.batching import one_by_one
from .._core.torch_internals import keys_after_autograd, keys_of_memory, tree_map
from . import fake, readout
from .autograd import Outputs, Settings, Tensors, bf16_parts, differentiated
from .linear import SCARCE_OUTPUTS, linear, mostly_zero, spike_bits
from .load import (
    _C,
    DEVICES,
    Constants,
    Numbers,
    Options,
    available,
    compiled_code_runs,
    compiled_models,
    cpu_kernels,
    cpu_operators_take,
    cuda_fuses,
    cuda_knows_bits,
    cuda_multiplies_bits,
    cuda_operators_take,
    has,
    load_error,
    mask,
    reused,
    reused_gradient,
    solid,
)
from .neuron import NeuronTensors, constants_of, neuron_call, neuron_recurrence
from .options import forced, forced_options
from .readout import leaky_readout
from .registered import CHUNK, NeuronSizes, keep_sizes, sizes_of
from .switch import reference_is_chosen, use_reference
from .unequal import recurrence

__all__ = [
    "CHUNK", "DEVICES", "SCARCE_OUTPUTS", "Constants", "NeuronSizes", "NeuronTensors", "Numbers",
    "Options", "Outputs", "Settings", "Tensors", "_C", "available", "bf16_parts",
    "compiled_code_runs", "compiled_models", "constants_of", "cpu_kernels", "cpu_operators_take",
    "cuda_fuses", "cuda_knows_bits", "cuda_multiplies_bits", "cuda_operators_take", "forced",
    "forced_options", "has", "keep_sizes", "leaky_readout", "linear", "load_error", "mask",
    "mostly_zero", "neuron_call", "neuron_recurrence", "recurrence", "reference_is_chosen",
    "reused", "reused_gradient", "sizes_of", "solid", "spike_bits", "use_reference",
]


_DIFFERENTIATED: dict[str, Callable[..., Any]] = {
    "alif_forward": lambda *args: differentiated(
        fake.by_name(torch.ops.lsnn.alif_forward.default, args)
    ),
    "leaky_readout": readout.LeakyReadout.apply,
    "leaky_readout_backward": readout.LeakyReadoutBackward.apply,
}


def _autograd_kernel(name: str) -> Callable[..., Any]:
    """The autograd kernel of a raw operator: an error where a gradient would be lost without a
    word."""
    op = getattr(torch.ops.lsnn, name).default
    lists = {k for k, argument in enumerate(op._schema.arguments)
             if str(argument.type) == "List[int]"}

    def kernel(keys: Any, *args: Any) -> Any:
        # a package of AOTInductor hands on None for a list without elements
        args = tuple([] if arg is None and k in lists else arg for k, arg in enumerate(args))
        if torch.is_grad_enabled() and any(tensor.requires_grad
                                           for tensor in fake.tensors_in(args)):
            out = _DIFFERENTIATED[name](*args) if name in _DIFFERENTIATED else None
            if out is not None:
                return out
            raise RuntimeError(
                f"torch.ops.lsnn.{name} has no gradient of its own: expected tensors that do not "
                "require grad, got some that do. In an exported program: run it under "
                "torch.no_grad(), or export it with gradients on. In code: call the functions of "
                "lsnn_ext.functional, which are differentiable"
            )
        return op.redispatch(keys_after_autograd(keys), *args)

    return kernel


def _kernel_of_memory(name: str) -> Callable[..., Any]:
    """The kernel of a raw operator for tensors that are not what their memory says, lazily negated
    or zeros without memory: torch's own leaves out those in lists with None."""
    op = getattr(torch.ops.lsnn, name).default

    def kernel(keys: Any, *args: Any) -> Any:
        return op.redispatch(keys_of_memory(keys), *tree_map(
            lambda arg: solid(arg) if isinstance(arg, torch.Tensor) else arg, args))

    return kernel


if available:
    from .load import DYNAMICS as DYNAMICS
    from .load import SURROGATES as SURROGATES

    _registry = torch.library.Library("lsnn", "IMPL")
    for _name, _kernel in fake.kernels().items():
        torch.library.register_fake(f"lsnn::{_name}", _kernel)
        for _device in ("cpu", "cuda"):
            torch.library.register_autocast(f"lsnn::{_name}", _device, torch.float32)
        torch.library.register_vmap(f"lsnn::{_name}", one_by_one(getattr(torch.ops.lsnn, _name)))
        _registry.impl(_name, _autograd_kernel(_name), "Autograd", with_keyset=True)
        for _key in ("Negative", "ZeroTensor"):
            _registry.impl(_name, _kernel_of_memory(_name), _key, with_keyset=True)
    torch.library.register_fake("lsnn::buffer", lambda like, rows,
                                columns: like.new_empty(rows, columns))
