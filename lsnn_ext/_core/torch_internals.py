"""All private interfaces of torch that this package uses, of torch 2.11 to 2.15.

python_tests/operators/test_torch_internals.py calls each of them, and names the torch version that
dropped one.
"""
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch._C import DisableTorchFunction as without_functions  # noqa: F401
from torch._compile import _disable_dynamo as without_compiler  # noqa: F401
from torch.autograd.graph import _engine_run_backward as run_backward  # noqa: F401
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes  # noqa: F401
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

assert_on_device = torch._assert_async  # raises if the condition is false, without synchronization
below_autograd = torch._C._AutoDispatchBelowAutograd  # skips kernels whose overhead matters
current_backward_pass = torch._C._current_graph_task_id  # unique; negative if there is none
is_legacy_batched = torch._C._functorch.is_legacy_batchedtensor  # autograd maps over the tensor
is_reached = torch._C._will_engine_execute_node  # by the current pass; inputs= may exclude a node
is_zero_tensor = Tensor._is_zerotensor  # without memory, as forward-mode differentiation makes it


def find_tensors(value: Any) -> list[Tensor]:
    """The tensors of nested values."""
    return [one for one in tree_leaves(value) if isinstance(one, Tensor)]


def bind_arguments(op: Any, args: Iterable[Any], kwargs: Any = ()) -> dict[str, Any]:
    """The arguments of an operator by name; torch leaves out trailing defaults."""
    defaults = {argument.name: argument.default_value for argument in op._schema.arguments}
    return defaults | dict(zip(defaults, args, strict=False)) | dict(kwargs)


def is_transforming() -> bool:
    """Whether a transform of torch.func is active, which always records the backward pass."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _transforms() -> int:
    """The number of active transforms of torch.func, also while torch.compile traces."""
    return len(torch._C._functorch.get_interpreter_stack() or [])


def mark_constant(function: Callable[..., Any]) -> None:
    """Makes torch.compile call a function while tracing and treat its result as a constant.

    torch.compiler.assume_constant_result does the same, but loads the compiler, which takes ten
    times as long as importing lsnn_ext.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


mark_constant(_transforms)


def leave_graph_of_transforms() -> None:
    """Breaks the graph of torch.compile inside a transform of torch.func; with fullgraph=True this
    raises. A graph would drop second derivatives, and gradients that torch.vmap hides."""
    if _transforms():
        torch._dynamo.graph_break()


def makes_graph() -> bool:
    """Whether torch.compile traces, and not torch.export, whose graph has the original."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def break_graph(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function between the graphs of torch.compile, which would unroll its loops; with
    fullgraph=True this raises. As torch.compiler.disable, which loads the compiler when it marks
    a function."""
    return torch._dynamo.disable(function)(*args, **kwargs)


break_graph._torchdynamo_disable = True  # type: ignore[attr-defined]
break_graph._torchdynamo_disable_msg = (  # type: ignore[attr-defined]
    "a converted model replays outside of graphs; for one graph call lsnn_ext.revert(model)")


def is_forward_mode() -> bool:
    """Whether forward-mode differentiation is active. Then the autograd function must run, which
    raises the error that it is not supported."""
    return torch.autograd.forward_ad._current_level >= 0


def _levels(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, and those that the transforms of torch.func have wrapped, outermost first."""
    functorch = torch._C._functorch
    yield tensor
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
        yield tensor


def is_batched(tensor: Tensor) -> bool:
    """Whether torch.vmap maps over it, at any level, or autograd maps over batches of gradients.
    Then its numbers cannot be read."""
    functorch = torch._C._functorch
    if not functorch.is_functorch_wrapped_tensor(tensor):
        return is_legacy_batched(tensor)
    return any(functorch.is_batchedtensor(level) or is_legacy_batched(level)
               for level in _levels(tensor))


def requires_gradient(tensor: Tensor) -> bool:
    """Whether it requires a gradient, also outside of a torch.vmap, which hides requires_grad."""
    if tensor.requires_grad or torch.compiler.is_compiling():
        return tensor.requires_grad
    return is_transforming() and any(level.requires_grad for level in _levels(tensor))


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that does not ask whether a compiler is active: it takes longer than a small
    operator, and first imports the compiler."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class ObservingMode(DispatchMode):
    """A dispatch mode of lsnn_ext.plan and profile. Calls run as they do without it."""


def is_mode_active(functions: bool = True) -> bool:
    """Whether a dispatch mode other than ObservingMode or, with functions=True, a function mode
    other than a default device is active. No call may bypass it."""
    modes = [torch._C._get_dispatch_stack_at(k)
             for k in range(torch._C._len_torch_dispatch_stack())]
    if functions:
        modes += [torch._C._get_function_stack_at(k)
                  for k in range(torch._C._len_torch_function_stack())]
    return any(not isinstance(one, ObservingMode | DeviceContext) for one in modes)


def without_function_mode(mode: overrides.TorchFunctionMode) -> AbstractContextManager[Any]:
    """Disables a mode of functions of torch, if it is the innermost one."""
    is_innermost = overrides._get_current_function_mode() is mode
    return overrides._pop_mode_temporarily() if is_innermost else nullcontext()


_MODES = torch._C.DispatchKeySet(torch._C.DispatchKey.Python) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.PythonTLSSnapshot)


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Hides operators from modes of operators."""
    return torch._C._ExcludeDispatchKeyGuard(_MODES)


def keep_during_pass(value: object) -> None:
    """Keeps an object alive until the backward pass on this thread ends, also with an exception:
    the pass owns its callbacks, although it calls them only after a success."""
    def owner(_: object = value) -> None:
        pass

    torch.autograd.Variable._execution_engine.queue_callback(owner)


def is_graph_freed(tensor: Tensor, through: int = 8) -> bool:
    """Whether a backward pass has freed the graph of the tensor, so another one would fail. It
    examines the first node written in Python, behind at most `through` views and stacks."""
    node: Any = tensor.grad_fn
    for _ in range(through):
        if node is None:
            return False
        if hasattr(type(node), "_raw_saved_tensors"):
            try:
                node._raw_saved_tensors  # noqa: B018  # without unpacking any
            except RuntimeError:
                return True
            return False
        node = node.next_functions[0][0] if node.next_functions else None
    return False


def keys_after_autograd(keys: Any) -> Any:
    """The dispatch keys behind autograd, with which an autograd kernel redispatches."""
    return keys & torch._C._after_autograd_keyset


def keys_of_memory(keys: Any) -> Any:
    """The dispatch keys without Negative and ZeroTensor, once the tensors are materialized."""
    key = torch._C.DispatchKey
    return keys.remove(key.Negative).remove(key.ZeroTensor)


def find_storage(tensor: Tensor) -> int:
    """Returns a number of the memory of a tensor, which its views have, too."""
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]


def make_savable(kind: type) -> None:
    """Registers a named tuple of tensors for torch.load with weights_only=True and for
    torch.export.save, which has a public interface for dataclasses only."""
    torch.serialization.add_safe_globals([kind])
    torch.utils._pytree._register_namedtuple(kind, serialized_type_name=f"lsnn_ext.{kind.__name__}")


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks, of this module or of all modules."""
    return has_registered_hooks(module) or bool(_has_any_global_hook())


def has_registered_hooks(module: nn.Module) -> bool:
    """Whether hooks that a call runs are registered with this module."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks)


def is_compiled_module(module: nn.Module) -> bool:
    """Whether Module.compile() was called, which replaces forward."""
    return module._compiled_call_impl is not None


def has_plain_call(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call runs the forward of kind and nothing else, so it may be skipped."""
    return (type(module).forward is kind.forward and "forward" not in module.__dict__
            and type(module).__call__ is nn.Module.__call__ and not is_compiled_module(module)
            and not has_hooks(module))


def without_saved_tensor_hooks() -> AbstractContextManager[Any]:
    """Disables saved tensor hooks, as of torch.utils.checkpoint, for graphs built inside."""
    autograd: Any = torch._C._autograd
    if (not autograd._saved_tensors_hooks_is_enabled()
            or autograd._top_saved_tensors_default_hooks(True) is None):
        return nullcontext()  # hooks would disable the check for changes in place
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
