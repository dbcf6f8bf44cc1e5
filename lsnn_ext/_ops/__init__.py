"""The compiled operators: loading and use_reference (load), shapes (fake), gradients (autograd),
linear maps (linear), the readout (readout), and options that tests and benchmarks force
(options)."""
from collections.abc import Callable
from typing import Any

import torch

from .._core.autograd_rules import loop_over_batch
from .._core.torch_internals import keys_after_autograd, keys_of_memory, tree_map
from . import fake, readout
from .autograd import (
    Outputs,
    Settings,
    Tensors,
    call_differentiable,
    count_bf16_parts,
    run_recurrence,
)
from .linear import (
    SCARCE_OUTPUTS,
    SPARSE,
    is_mostly_zero,
    linear,
    pack_inputs,
    sample_nonzero,
)
from .load import (
    _C,
    DEVICES,
    MANY,
    Constants,
    Numbers,
    Options,
    available,
    can_fuse_readout,
    can_multiply_bits,
    can_read_bits,
    can_use_cpu_operators,
    can_use_cuda_operators,
    compiled_models,
    has_bit,
    has_cpu_kernels,
    is_compiled_active,
    is_gradient_memory_reused,
    is_memory_reused,
    is_reference_active,
    load_error,
    make_mask,
    materialize,
    use_reference,
    why_not_cpu,
    why_not_reused,
)
from .neuron import NeuronTensors, make_constants, make_neuron_call, run_neuron
from .neuron_sizes import CHUNK, NeuronSizes, find_sizes, register_sizes
from .options import forced, forced_options
from .readout import leaky_readout

__all__ = [
    "CHUNK", "DEVICES", "MANY", "SCARCE_OUTPUTS", "SPARSE", "_C", "Constants", "NeuronSizes",
    "NeuronTensors", "Numbers", "Options", "Outputs", "Settings", "Tensors", "available",
    "can_fuse_readout", "can_multiply_bits", "can_read_bits", "can_use_cpu_operators",
    "can_use_cuda_operators", "compiled_models", "count_bf16_parts", "find_sizes", "forced",
    "forced_options", "has_bit", "has_cpu_kernels", "is_compiled_active",
    "is_gradient_memory_reused", "is_memory_reused", "is_mostly_zero", "is_reference_active",
    "leaky_readout", "linear", "load_error", "make_constants", "make_mask", "make_neuron_call",
    "materialize", "pack_inputs", "register_sizes", "run_neuron", "run_recurrence",
    "sample_nonzero", "use_reference", "why_not_cpu", "why_not_reused",
]


_DIFFERENTIATED: dict[str, Callable[..., Any]] = {
    "alif_forward": lambda *args: call_differentiable(
        fake.bind_arguments(torch.ops.lsnn.alif_forward.default, args)
    ),
    "leaky_readout": readout.LeakyReadout.apply,
    "leaky_readout_backward": readout.LeakyReadoutBackward.apply,
}


def _autograd_kernel(name: str) -> Callable[..., Any]:
    """Returns the autograd kernel of a raw operator: an error where a gradient would be silently
    lost."""
    op = getattr(torch.ops.lsnn, name).default
    lists = {k for k, argument in enumerate(op._schema.arguments)
             if str(argument.type) == "List[int]"}

    def kernel(keys: Any, *args: Any) -> Any:
        # an AOTInductor package passes None for an empty list
        args = tuple([] if arg is None and k in lists else arg for k, arg in enumerate(args))
        if torch.is_grad_enabled() and any(tensor.requires_grad
                                           for tensor in fake.find_tensors(args)):
            out = _DIFFERENTIATED[name](*args) if name in _DIFFERENTIATED else None
            if out is not None:
                return out
            raise RuntimeError(
                f"torch.ops.lsnn.{name}: expected tensors that do not require grad, since the "
                "operator has no gradient, got some that do. In an exported program: run it under "
                "torch.no_grad(), or export it with gradients enabled. In code: call the functions "
                "of lsnn_ext.functional, which are differentiable"
            )
        return op.redispatch(keys_after_autograd(keys), *args)

    return kernel


def _kernel_of_memory(name: str) -> Callable[..., Any]:
    """Returns the kernel of a raw operator for lazily negated tensors and zeros without memory,
    which torch's fallback ignores in lists with None."""
    op = getattr(torch.ops.lsnn, name).default

    def kernel(keys: Any, *args: Any) -> Any:
        return op.redispatch(keys_of_memory(keys), *tree_map(
            lambda arg: materialize(arg) if isinstance(arg, torch.Tensor) else arg, args))

    return kernel


if available:
    from .load import DYNAMICS as DYNAMICS
    from .load import SURROGATES as SURROGATES

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
