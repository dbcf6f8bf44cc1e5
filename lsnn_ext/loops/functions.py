"""Functions of torch in a recording: their names, and what they may do."""
import functools
import os
import sys
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .._core.torch_internals import find_storage

# What Python may read of a tensor: it does not depend on its numbers.
READS = frozenset({
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "itemsize", "nbytes", "is_cpu",
    "is_cuda", "is_meta", "is_mps", "is_sparse", "is_sparse_csr", "is_quantized", "is_nested",
    "is_mkldnn", "is_xpu", "names", "size", "dim", "stride", "numel", "nelement", "__len__",
    "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_inference", "is_same_size",
    "is_tensor", "element_size", "get_device", "__hash__", "result_type", "promote_types",
    "can_cast", "is_grad_enabled", "is_storage", "get_default_dtype", "is_autocast_enabled",
    "_has_compatible_shallow_copy_type", "has_names"})
# Functions without a result that change the state of torch, which each call notes.
SWITCHES = frozenset({
    "_set_grad_enabled", "set_autocast_enabled", "set_autocast_dtype", "autocast_increment_nesting",
    "autocast_decrement_nesting", "set_autocast_cache_enabled", "clear_autocast_cache"})
# Functions whose effect is not in their result.
REFUSED = frozenset({
    "grad", "grad_fn", "_base", "_version", "__delete__", "_grad", "output_nr", "backward",
    "retain_grad", "register_hook", "apply_", "map_", "set_", "resize_", "share_memory_", "rename_",
    "_make_subclass", "as_subclass", "as_strided", "as_strided_", "as_strided_copy",
    "as_strided_scatter"})
# Views of a tensor that take its place.
IN_PLACE_VIEWS = {getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in (
    "detach", "unsqueeze", "squeeze", "transpose", "swapaxes", "swapdims", "t")}
# These write no numbers.
FLAGS = frozenset({"__set__", "requires_grad_", *(one.__name__ for one in IN_PLACE_VIEWS)})
# Operators that read numbers, or whose results have shapes that depend on them.
VALUE_READS = frozenset({"item", "tolist", "__bool__", "__float__", "__int__", "__index__"})
MOST_READ = 16  # numbers of an attribute that each call compares
MOST_MASKED, MOST_CALLS = 1 << 14, 256  # the same of a mask, and calls between it and a use
# FILLS take a number of a tensor, but no size.
FILLS = frozenset({"full", "full_like", "new_full", "fill_", "masked_fill", "masked_fill_"})
VALUE_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
PLAIN = (type(None), bool, int, float, complex, str, bytes, slice, type(Ellipsis), torch.dtype,
         torch.device, torch.layout, torch.memory_format, np.generic, range)

PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "einsum", "__matmul__", "tensordot",
                      "__rmatmul__", "conv1d", "conv2d", "conv3d", "bilinear", "baddbmm", "inner"})
# ATen's names of functions.
OTHER_NAMES = {"__add__": "add", "__sub__": "sub", "__mul__": "mul", "__truediv__": "div",
               "float": "_to_copy", "double": "_to_copy", "to": "_to_copy", "type": "_to_copy"}

APPLY: Any = Function.__dict__["apply"]


@dataclass(frozen=True)
class Apply:
    """The apply of an autograd.Function, under whatever name the program calls it."""

    function: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return APPLY.__get__(None, self.function)(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return f"{self.function.__name__}.apply"


@dataclass(frozen=True)
class OneStep:
    """One step of an operator that loops over the first axis of its arguments and results."""

    operator: Any

    def __call__(self, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        return tuple(one.squeeze(0) if one.dim() > x.dim() else one
                     for one in self.operator(x.unsqueeze(0), *others))

    @property
    def __name__(self) -> str:
        return f"one step of {self.operator}"


def is_static(leaf: Any) -> bool:
    """Whether a leaf is a class, or a function without a closure."""
    return isinstance(leaf, type | BuiltinFunctionType) or (
        isinstance(leaf, FunctionType) and leaf.__closure__ is None)


@functools.lru_cache(64)
def is_pure(function: Any) -> bool:
    """Whether a function of TorchScript does nothing but compute with its arguments: it neither
    calls Python nor prints, and holds no tensor, as a traced function does."""
    graph: Any = function.inlined_graph
    constants = [one.kindOf("value") for one in graph.findAllNodes("prim::Constant")
                 if one.hasAttribute("value")]
    return {*constants} <= {"i", "f", "s", "c", "is", "fs", "ss"} and not any(
        graph.findAllNodes(kind) for kind in ("prim::PythonOp", "prim::Print", "aten::warn"))


def is_operator(function: Any) -> bool:
    """Whether a function is one of torch.ops, such as those that packages register."""
    return isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket | OneStep)


def get_name(function: Any) -> str:
    """Returns the name of a function, or that of the property of a getter."""
    name = getattr(function, "__name__", type(function).__name__)
    return get_property_name(function) if name == "__get__" else str(name)


def get_property_name(function: Any) -> str:
    return str(getattr(getattr(function, "__self__", None), "__name__", ""))


def is_read(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function makes no tensor, and returns nothing that depends on numbers."""
    # nn.Module.__setattr__ looks whether a parameter has no grad_fn, as in self.w *= mask
    is_none = name == "grad_fn" and isinstance(args[0], torch.nn.Parameter) and args[0].is_leaf
    return is_none or name in READS or name in SWITCHES or (
        (name, len(args), kwargs) == ("type", 1, {}))


def may_write(name: str) -> bool:
    """Whether a function of this name may write to its first argument."""
    return name.endswith("_") and (not name.endswith("__") or name.startswith(("__i", "__set")))


def list_numbers(data: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments of torch.tensor that are equal, without an array of NumPy."""
    if isinstance(data, np.ndarray) and data.size and data.dtype.kind in "biufc" and (
            data.dtype.isnative):
        dtype = kwargs.get("dtype") or getattr(torch, data.dtype.name)
        return (data.tolist(),), {**kwargs, "dtype": dtype}
    return (data,), kwargs


def list_masks(func: Any, args: Any) -> list[Any]:
    """Returns the arguments whose numbers an operator reads: none of an index by integers."""
    if func is not torch.ops.aten.index.Tensor:
        return [args[0]]
    return [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]


class Effects(NamedTuple):
    """What an operator does beside its result."""

    reads: bool  # numbers, in Python or for a shape
    writes: bool  # without incrementing a version, see written_statistics
    draws: bool  # from a generator


@functools.cache
def find_effects(func: Any) -> Effects:
    schema, tags = func._schema, set(func.tags)
    writes = schema.name.startswith("aten::_foreach") and schema.name.endswith("_") or any(
        one.name == "running_mean" for one in schema.arguments)
    return Effects(bool(VALUE_TAGS & tags), writes, torch.Tag.nondeterministic_seeded in tags)


def written_statistics(func: Any, args: Any) -> set[int]:
    """Returns the storages that batch norms or _foreach write to without a new version."""
    if func._schema.name.startswith("aten::_foreach"):
        return {find_storage(one) for one in args[0]}
    named = dict(zip((one.name for one in func._schema.arguments), args, strict=False))
    if not (named.get("training", True) and named.get("train", True)):
        return set()
    return {find_storage(one) for one in (
        named.get("running_mean"), named.get("running_var")) if isinstance(one, Tensor)}


def is_unversioned(call: Any) -> bool:
    """Whether what a recorded call writes to has the version of before."""
    return call.name.startswith("_foreach") or call.name.endswith(("batch_norm", "instance_norm"))


# Folders of torch and of this package.
_INTERNAL = tuple(os.path.dirname(os.path.abspath(path)) + os.sep
                  for path in (torch.__file__, os.path.dirname(__file__)))


def find_line() -> str:
    """Returns the line of the program that runs, "file.py:12"."""
    frame = sys._getframe(1)
    while frame is not None:
        if name := find_file(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


@functools.cache
def find_file(path: str) -> str:
    """Returns the name of a file of the program; empty: of another one."""
    is_other = path.startswith(_INTERNAL) or "/contextlib.py" in path
    return "" if is_other else os.path.basename(path)


def is_pointwise(call: Any) -> bool:
    """Whether a function of torch computes each number from those in its place."""
    name = OTHER_NAMES.get(call.name, call.name.strip("_"))
    packet = getattr(torch.ops.aten, name, None)
    if name in ("max", "min"):  # which may be reductions
        return False
    return packet is not None and any(torch.Tag.pointwise in getattr(packet, overload).tags
                                      for overload in packet.overloads())


def is_elementwise(call: Any) -> bool:
    """Whether a function is elementwise by its name, or an autograd.Function, which may be."""
    return isinstance(call.function, Apply) or is_pointwise(call) or OTHER_NAMES.get(
        call.name, call.name.strip("_")) in ("_to_copy", "detach", "clone", "contiguous")
