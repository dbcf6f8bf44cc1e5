"""Modes of torch and of Python around a call."""
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from .._core import torch_internals
from .._core.torch_internals import find_storage
from ..codegen.plain import generator_states, set_generator_states
from .ir import DEVICES
from .origins import Origins


def read_flags() -> tuple[Any, ...]:
    """Returns the settings of torch that a call depends on."""
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            torch.get_default_device(),
            *((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
              for device in DEVICES), torch.is_autocast_cache_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled())


def read_settings() -> tuple[Any, ...]:
    """Returns the settings of torch that a call may change."""
    return *read_flags(), torch.get_num_threads(), torch.is_anomaly_enabled()


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
    and in lists and dicts there, such as states that were reset in it: they have no version, and
    may not be written to outside of it. Tensors that share memory stay."""
    held: list[tuple[Any, Any, Tensor]] = []

    def find(place: Any, depth: int) -> None:
        for name, one in enumerate(place) if isinstance(place, list) else place.items():
            if isinstance(one, Tensor) and one.is_inference():
                held.append((place, name, one))
            elif depth and type(one) in (list, dict):
                find(one, depth - 1)

    for module in nn.Module.modules(root) if isinstance(root, nn.Module) else ():
        find(vars(module), 2)
    copies = {id(one): one.clone() for *_, one in held}
    if len(copies) == len({find_storage(one) for *_, one in held}):
        for place, name, one in held:
            place[name] = copies[id(one)]


class NotReplayed(Exception):  # noqa: N818
    """No recording holds for a call."""


class OnTheSide(NamedTuple):
    """The original of a call that is only replayed: a recording of it is made on the side."""

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotReplayed


def run_aside(run: Callable[[Any, Any], Any], root: Any, args: tuple[Any, ...],
              kwargs: dict[str, Any]) -> str:
    """Runs a call with copies of its arguments, and restores all state. Returns why it fails."""
    copies: dict[int, Tensor] = {}
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda one: copies.setdefault(id(one), one.clone()), (args, kwargs))
    states = generator_states()
    try:
        origins = Origins(root, args, kwargs, has_copies=True)
        try:
            run(args, kwargs)
        finally:
            origins.restore()
            set_generator_states(states)
    except Exception as error:  # also of the program
        return (f"torch.inference_mode: expected a call that runs under torch.no_grad, got "
                f"{type(error).__name__}: {error}; the original runs")
    return ""


@contextmanager
def prepare_recording() -> Iterator[None]:
    """Lets Python not search for garbage: what runs then is not the model's. A recording makes so
    many objects that each search takes up to 0.3 s. Functions of torch.compile run as written:
    else their compiler traces the recorder, too."""
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        has_compiler = "torch._dynamo" in sys.modules
        with torch.compiler.set_stance("force_eager") if has_compiler else nullcontext():
            yield
    finally:
        if is_collecting:
            gc.enable()
