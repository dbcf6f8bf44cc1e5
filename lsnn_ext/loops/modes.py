"""Modes of torch and of Python around a call."""
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from .._core import torch_internals
from .._core.torch_internals import find_storage


def must_run_original(is_strict: bool) -> bool:
    """Whether a compiler, tracer, transform or mode intercepts the calls of torch, or a hook those
    of all modules, which convert refuses (is_strict)."""
    return (not is_strict and _has_any_global_hook()  # type: ignore[no-untyped-call]
            or torch.compiler.is_compiling() or torch_internals.is_mode_active()
            or torch_internals.is_transforming() or torch_internals.is_forward_mode()
            or torch._C._get_tracing_state() is not None)


def has_saved_tensor_hooks() -> bool:
    """Whether hooks of saved tensors are active, as inside of torch.utils.checkpoint."""
    autograd: Any = torch._C._autograd
    return autograd._top_saved_tensors_default_hooks(True) is not None


def is_profiling() -> bool:
    """Whether torch.profiler runs; with_stack=True reads attributes of tensors meanwhile."""
    return torch.autograd._profiler_enabled()  # type: ignore[attr-defined,no-any-return]


def copy_inference_states(root: Any) -> None:
    """Puts copies in the place of tensors of torch.inference_mode among the attributes of a module,
    such as states that were reset in it: such tensors have no version. Tensors that share memory
    stay."""
    held = [(place, name, one) for module in
            (nn.Module.modules(root) if isinstance(root, nn.Module) else ())
            for place in (vars(module), module._buffers) for name, one in place.items()
            if isinstance(one, Tensor) and one.is_inference()]
    copies = {id(one): one.clone() for *_, one in held}
    if len(copies) == len({find_storage(one) for *_, one in held}):
        for place, name, one in held:
            place[name] = copies[id(one)]


def call_without_inference_mode(call: Callable[..., Any], args: tuple[Any, ...],
                                kwargs: dict[str, Any]) -> Any:
    """Returns call(*args, **kwargs) as under torch.no_grad, whose tensors may be states of a later
    call with gradients. Tensors of torch.inference_mode among the arguments are copied."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # by id

    def copy(one: Any) -> Any:
        if not isinstance(one, Tensor) or not one.is_inference():
            return one
        if id(one) not in copies:
            copies[id(one)] = one, one.clone()
        return copies[id(one)][1]

    with torch.inference_mode(False), torch.no_grad():
        args, kwargs = pytree.tree_map(copy, (args, kwargs))
        result = call(*args, **kwargs)
    for one, other in copies.values():
        if other._version:  # the call wrote to it
            one.copy_(other)
    given = {id(other): one for one, other in copies.values()}
    return pytree.tree_map(lambda one: given.get(id(one), one), result) if copies else result


@contextmanager
def without_collections() -> Iterator[None]:
    """Lets Python not search for garbage: what runs then is not the model's. A recording makes so
    many objects that each search takes up to 0.3 s."""
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_collecting:
            gc.enable()
