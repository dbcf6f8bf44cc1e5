"""Values of the tensors of a step during a trace: nodes of a program, which depend on rows of
neurons, or calls to repeat, which depend on coefficients only."""
import linecache
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.torch_internals import DispatchMode, find_storage, without_modes
from .calls import CPU, META, Call, Place, Size, as_tensor, find_needed, make_key, repeat_calls
from .form import MAX_AXIS
from .graph import Graph

aten = torch.ops.aten
SMALL = (MAX_AXIS + 1, MAX_AXIS + 2)  # sizes that no axis of its own has
# Frames of these files are not those of a step.
NOT_OF_STEPS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep,
                "<frozen")


class StepError(RuntimeError):
    """A step that no program can express."""


class Resize(Exception):
    """The step reads a tensor with one value per neuron, which fixes the number of neurons."""

    def __init__(self, neurons: int) -> None:
        super().__init__(neurons)
        self.neurons = neurons


class Fixed(NamedTuple):
    """A value that no row enters: the result of a call to repeat."""

    place: int  # of Values.calls
    is_constant: bool  # depends on nothing at all
    is_number: bool  # a Python number in the loop


class Row(NamedTuple):
    """A value of each neuron of each item, or a sum of such values over items and neurons."""

    node: int
    is_sum: bool = False


def find_line(frames: Iterable[tuple[FrameType, int]]) -> str | None:
    """Returns the line of the step, or of a backward: the outermost frame inside Values.run."""
    found = None
    for frame, line in frames:
        if frame.f_code is Values.run.__code__:
            return found
        file = frame.f_code.co_filename
        if not file.startswith(NOT_OF_STEPS):
            source = linecache.getline(file, line).strip()
            found = f"in {os.path.basename(file)} line {line}"
            found = f"{found} (`{source}`)" if source else found
    return None


def is_whole(base: Tensor, sizes: Sequence[int], strides: Sequence[int],
              offset: int | None = None) -> bool:
    """Whether as_strided(base, ...) has the same elements in the same places."""
    return (tuple(sizes) == base.shape and tuple(strides) == base.stride()
            and offset in (None, base.storage_offset()))


class Values(DispatchMode):
    """The values of a step so far, and its current line."""

    def __init__(self, graph: Graph, batch: int, neurons: int) -> None:
        super().__init__()
        self.graph, self.batch, self.neurons = graph, batch, neurons
        self.calls: list[Call] = []
        self.is_backward = False
        self.failure: StepError | None = None
        self.tensors: dict[int, Tensor] = {}  # that the step closes over
        self._places: dict[object, int] = {}  # of calls
        self.shapes: dict[int, torch.Size] = {}  # of the results of calls
        self.values: dict[int, Fixed | Row] = {}  # by storage
        self.inputs: set[int] = set()  # storages that are not to be written
        self.lines: dict[int, str] = {}  # of the nodes of autograd
        self.alive: list[Tensor] = []

    def run(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """Traces the calls of a function; its errors name the line."""
        try:
            with self:
                result = function(*arguments, **keywords)
            if self.failure is not None:  # and the step has caught it
                raise self.failure
            return result
        except (StepError, Resize):
            raise
        except Exception as error:
            line = find_line(reversed([*traceback.walk_tb(error.__traceback__)])) or ""
            text = str(error).partition("\n")[0]
            raise StepError(f"step: expected elementwise operators of torch, got "
                            f"{type(error).__name__}: {text} {line}".rstrip()) from error

    # ------------------------------------------------------------------------------- values
    def infer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Returns the result of an operator, without numbers: views are views, others are found by
        a run on small tensors. Most kernels for META are Python code that imports torch's compiler,
        which takes longer than a trace."""
        if func.is_view or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        small = dict(zip((self.batch, self.neurons), SMALL, strict=True))
        large = {size: one for one, size in small.items()}

        def shrink(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.ones([small.get(size, size) for size in value.shape],
                                  dtype=value.dtype, device=CPU)
            if isinstance(value, list | tuple):
                return [small.get(one, one) if type(one) is int else shrink(one) for one in value]
            return CPU if value == META else value

        out = func(*map(shrink, args), **{key: shrink(one) for key, one in kwargs.items()})
        if func._schema.is_mutable:
            return args[0]
        return torch.empty([large.get(size, size) for size in out.shape], dtype=out.dtype,
                           device=META)

    def give(self, tensor: Tensor, value: Fixed | Row, is_input: bool = False) -> Tensor:
        storage = find_storage(tensor)
        self.values[storage] = value
        if isinstance(value, Fixed):
            self.shapes[value.place] = tensor.shape
        self.alive.append(tensor)
        self.inputs |= {storage} if is_input else set()
        return tensor

    def value(self, tensor: Tensor) -> Fixed | Row:
        return self.hold(tensor) if self.is_closed_over(tensor) else self.values[
            find_storage(tensor)]

    def is_closed_over(self, tensor: Tensor) -> bool:
        return not tensor.is_meta or find_storage(tensor) not in self.values

    def call(self, function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any] = {},  # noqa: B006
             is_constant: bool = False, is_number: bool = False) -> Fixed:
        call = Call(function, tuple(arguments), keywords)
        place = self._places.setdefault(make_key(call), len(self.calls))
        if place == len(self.calls):
            self.calls.append(call)
        return Fixed(place, is_constant, is_number)

    def fill(self, like: Tensor, value: Any) -> Fixed:
        """Returns the call that makes a tensor of equal numbers."""
        keywords = {"dtype": like.dtype, "device": CPU}  # repeated, on that of the call
        return self.call(aten.full.default, (self.sizes(like.shape), value), keywords,
                         is_constant=True)

    def hold(self, tensor: Tensor) -> Fixed:
        """Returns the value of a tensor that the step closes over. Repeated calls read it again."""
        if tensor._cdata not in self.tensors:
            if tensor.requires_grad:
                raise self.error("no closed-over tensor that requires a gradient",
                                 f"one of shape {tuple(tensor.shape)}; pass it as a keyword-only "
                                 f"argument")
            sizes = tuple(tensor.shape)
            if len(sizes) > 1 and sizes[:-1] != (1,) * (len(sizes) - 1):
                raise self.error("closed-over tensors of shape () or (N,)", f"one of shape {sizes}")
            if sizes and sizes[-1] not in (1, self.neurons):
                raise Resize(sizes[-1])
            self.tensors[tensor._cdata] = tensor
            self.alive.append(tensor)
        return self.call(None, (tensor,))

    def read(self, value: Tensor | float | bool, dtype: torch.dtype) -> int:
        """Returns the node of an argument that an operator reads as numbers of `dtype`."""
        if not isinstance(value, Tensor):
            return self.graph.constant(value)
        known = self.value(value)
        if isinstance(known, Row):
            return known.node
        return self.read_fixed(known, dtype, value.dtype == torch.bool)

    def read_fixed(self, known: Fixed, dtype: torch.dtype, is_mask: bool = False) -> int:
        if known.is_constant:
            return self.graph.constant(self.find_number(known, dtype))
        key = ("coefficient", known.place, dtype if dtype.is_floating_point else None)
        return self.graph.coefficient(key, dtype in (torch.float32, torch.bool), is_mask)

    def find_number(self, known: Fixed, dtype: torch.dtype) -> Any:
        with without_modes(), torch.no_grad():
            needed = find_needed(self.calls, [known.place])
            number = repeat_calls(self.calls, needed, 1, [])[known.place]
            return as_tensor(number).to(dtype).reshape(()).item()

    def sizes(self, shape: Sequence[int]) -> Size:
        names: dict[int, str] = {self.batch: "B", self.neurons: "N"}
        return Size(tuple(names.get(size, size) for size in shape))

    def place(self, tensor: Tensor) -> Place:
        """Returns the call whose result is a tensor, in its shape: views share their values."""
        known: Any = self.value(tensor)
        shape = self.shapes.get(known.place, tensor.shape)
        if shape != tensor.shape:
            function = aten.view.default if shape.numel() == tensor.numel() else aten.expand.default
            known = self.call(function, (Place(known.place), self.sizes(tensor.shape)), {},
                              known.is_constant, known.is_number)
        return Place(known.place)

    def is_zero(self, value: Any) -> bool:
        """Whether a value is 0, or a product of 0 and fixed values."""
        if not isinstance(value, Tensor):
            return value == 0
        known = self.value(value)
        return isinstance(known, Fixed) and self._is_zero_call(known.place)

    def _is_zero_call(self, place: int) -> bool:
        function, arguments, _ = self.calls[place]
        if function is aten.full.default:
            return arguments[1] == 0
        name = getattr(getattr(function, "_schema", None), "name", "").removeprefix("aten::")
        first, *others = [isinstance(x, Place) and self._is_zero_call(x) for x in arguments] or [
            False]
        if name == "mul":
            return first or any(others)
        if name in ("add", "sub", "where"):
            return all(others) and (first or name == "where")
        return first and name in ("neg", "div", "view", "expand", "clone", "detach", "_to_copy")

    # ------------------------------------------------------------------------------- errors
    def error(self, expected: str, got: str) -> StepError:
        line = find_line(traceback.walk_stack(None))
        node = torch._C._current_autograd_node()
        if line is None and node is not None and (found := self.lines.get(node._sequence_nr())):
            line = f"in the gradient of what is {found}"
        self.failure = StepError(f"step: expected {expected}, got {got} {line or ''}".rstrip())
        return self.failure
