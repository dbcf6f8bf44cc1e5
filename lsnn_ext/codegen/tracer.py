"""Traces the operators of a step and its gradient: those on rows of neurons become nodes of a
program, those on coefficients only calls to repeat."""
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from .._core.torch_internals import bind_arguments, find_storage, find_tensors, without_modes
from .calls import META, Place
from .norms import NORMS, find_norm
from .translate import OPERATIONS
from .values import Fixed, Resize, Row, StepError, Values, aten, find_line, is_whole

# Operators that return the values of their argument unchanged.
COPIES = {"alias", "clone", "detach", "lift_fresh", "lift_fresh_copy", "view", "_unsafe_view",
          "reshape", "expand", "squeeze", "unsqueeze", "_to_copy", "contiguous"}
LIFTS = {"lift_fresh", "lift_fresh_copy"}  # of what a step makes of Python numbers
# The value of each element; None: an argument. What `empty` holds is undefined.
FACTORIES = {"zeros": 0, "ones": 1, "empty": float("nan"), "full": None, "scalar_tensor": None,
             "_efficientzerotensor": 0}
# Operators that are a product of their first argument, a gradient, and a function of the others.
PRODUCTS = {f"{name}_backward" for name in ("elu", "gelu", "hardsigmoid", "hardswish", "logit",
                                            "mish", "softplus")}
# Operators that are linear in some arguments, taken together, if all others are fixed.
LINEAR = {"add": ("self", "other"), "sub": ("self", "other"), "neg": ("self",), "mul": ("self",),
          "div": ("self",), "where": ("self", "other"), "masked_fill": ("self", "value")} | {
    f"{name}_backward": ("grad_output",)
    for name in ("sigmoid", "tanh", "hardtanh", "silu")} | {
    name: ("grad_output",) for name in PRODUCTS}
# Elementwise operators that PyTorch does not tag as such; the last one not in 2.11.
UNTAGGED = {"hardswish", "log_sigmoid", "log_sigmoid_forward", "_prelu_kernel", "leaky_relu"}
# Operators whose results are integers if their arguments are.
OF_INTEGERS = {"add", "sub", "rsub", "mul", "neg", "abs", "relu", "maximum", "minimum", "clamp",
               "clamp_min", "clamp_max", "where", "masked_fill", "index_put"}
# Operators in place whose result has the dtype of the tensor that they write to.
WRITES = {"copy", "fill", "zero", "index_put", "masked_fill"}


class Tracer(Values):
    """Traces every operator below autograd."""

    # ----------------------------------------------------------------------------- dispatch
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.is_backward:
            number = torch._C._autograd._get_sequence_nr() - 1
            if number not in self.lines and (line := find_line(traceback.walk_stack(None))):
                self.lines[number] = line
        name = func._schema.name.removeprefix("aten::")
        is_in_place = name.endswith("_") and not name.endswith("__")
        name = name.removesuffix("_") if is_in_place else name
        if name == "as_strided" and is_whole(*args):  # of autograd, after a write to a view
            func, name, args = aten.view.default, "view", args[:2]
        if name == "_local_scalar_dense" and isinstance(
                one := self.value(args[0]), Fixed) and one.is_constant:
            return self.find_number(one, args[0].dtype)
        if (decomposition := self._find_decomposition(func, name, is_in_place, args)) is not None:
            try:
                with self:
                    made = decomposition(*args, **kwargs)
                    return args[0].copy_(made) if is_in_place else made
            except StepError:  # which names a part of it
                raise self.error("elementwise operators", f"aten.{name}") from None
        if name in LIFTS and not args[0].is_meta:
            return self._make_constant(args[0])
        self._check_operator(func, name, args)
        if factory := self._find_factory(name):
            return self._make(func, factory, args, kwargs)
        args = self._round_numbers(name, args)
        tensors = find_tensors((args, kwargs))
        if not tensors:
            raise self.error("elementwise operators", f"aten.{name}")
        known = [self.value(x) for x in tensors]  # before an operator in place
        fixed = [x for x in known if isinstance(x, Fixed)]
        try:
            out = self.infer(func, args, kwargs)
        except (StepError, Resize):
            raise
        except RuntimeError as error:
            raise self.error("elementwise operators on (B, N)", f"aten.{name}: {error}") from error
        self._check_result(name, out)
        if is_in_place and (self.inputs & {find_storage(args[0])}
                            or (isinstance(known[0], Fixed) and known[0].is_number)):
            raise self.error("no write in place to a coefficient or a closed-over tensor",
                             f"aten.{name}_")
        if is_in_place and out.untyped_storage().nbytes() < out.numel() * out.itemsize:
            raise self.error("no write in place to an expanded tensor", f"aten.{name}_")
        if len(fixed) == len(known):
            result: Fixed | Row = self._repeat(func, name, is_in_place, args, kwargs, fixed, out)
        elif name in COPIES or (name == "sum" and out.numel() == tensors[0].numel()):
            result = self._copy(name, known[0], tensors[0], out)
        elif name in PRODUCTS and self._is_sum(args[0]):
            result = self._multiply(func, name, args, kwargs, out)
        elif name == "sum":
            if not self.is_backward:
                raise self.error("elementwise operators", "aten.sum")
            result = Row(known[0].node, True)  # type: ignore[union-attr]
        else:
            result = self._translate(func, name, is_in_place, args, kwargs, known, tensors, out)
        if is_in_place or find_storage(out) not in self.values:
            self.give(out, result)
        else:
            self.alive.append(out)
        return out

    def check_kind(self, func: Any, name: str) -> None:
        """Refuses reads of values, and random numbers."""
        if name in ("_local_scalar_dense", "is_nonzero", "equal", "item"):
            raise self.error("no branch on a value and no float(), bool() or .item() of a tensor",
                             f"aten.{name}")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise self.error("no random numbers", f"aten.{name}")

    def _is_known(self, name: str, args: Any) -> bool:
        return (name in OPERATIONS or name in COPIES or name == "sum" or name in WRITES
                or self._find_factory(name) is not None
                or (name in PRODUCTS and self._is_sum(args[0])))

    def _are_fixed(self, args: Any) -> bool:
        tensors = find_tensors(args)
        return bool(tensors) and all(isinstance(self.value(x), Fixed) for x in tensors)

    def _find_decomposition(self, func: Any, name: str, is_in_place: bool,
                            args: Any) -> Callable[..., Any] | None:
        """Returns torch's definition of an elementwise operator, or its gradient, by others."""
        if self._is_known(name, args) or (self._are_fixed(args) and name != "to"):
            return None
        if name in NORMS:
            return partial(find_norm(self, name, args), self._average)
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            return func.decompose  # within the definition of another one
        if func.namespace not in ("aten", "prim", "prims") and func.has_kernel_for_dispatch_key(
                torch._C.DispatchKey.CPU):  # of a package
            return partial(func._op_dk, torch._C.DispatchKey.CPU)
        base = name.removesuffix("_backward")
        packet = getattr(aten, base, None)
        if packet is None or base not in UNTAGGED and not any(
                torch.Tag.pointwise in getattr(packet, one).tags for one in packet.overloads()):
            return None
        self.check_kind(func, name)
        if is_in_place:
            func = getattr(getattr(aten, name), func._overloadname, None)
        return decomposition_table.get(func)

    def _check_operator(self, func: Any, name: str, args: Any) -> None:
        self.check_kind(func, name)
        are_fixed = self._are_fixed(args)
        if not self._is_known(name, args) and not (are_fixed and (
                torch.Tag.pointwise in func.tags or (
                    name == "select" and args[0].numel() == 1))):
            raise self.error("elementwise operators", f"aten.{name}")
        if func._overloadname == "decimals" or "out" in func._overloadname or len(
                func._schema.returns) != 1:
            raise self.error("elementwise operators", f"{func}")
        if name == "sum" and are_fixed and not self.is_backward:
            raise self.error("elementwise operators", "aten.sum")

    def _check_result(self, name: str, out: Tensor) -> None:
        sizes = tuple(out.shape)
        full = (self.batch, self.neurons)
        if sizes == (0,):
            return  # torch.utils.checkpoint makes one, which nothing reads
        sizes = strip_ones(sizes) if len(strip_ones(sizes)) == 2 else sizes  # (1, B, N)
        if len(sizes) > 2 or any(size not in (1, limit) for size, limit in zip(
                reversed(sizes), reversed(full), strict=False)):
            raise self.error("values of shape (), (N,) or (B, N)",
                             f"aten.{name} with a result of shape {sizes}, where (B, N) is {full}")
        if out.is_sparse or out.dtype.is_complex or not out.is_meta:
            raise self.error("dense real numbers on the CPU", f"{out.dtype} on {out.device}")

    # ----------------------------------------------------------------------- fixed values
    @staticmethod
    def _find_factory(name: str) -> str | None:
        base = name.removeprefix("new_").removesuffix("_like").removesuffix("_strided")
        return base if base in FACTORIES else None

    def _make_constant(self, tensor: Tensor) -> Tensor:
        """Returns what stands for a tensor that the step makes of Python numbers."""
        known = self.hold(tensor)
        self.tensors.pop(tensor._cdata)
        with without_modes():
            known = self.call(None, (tensor.clone(),), is_constant=tensor.numel() == 1)
        return self.give(torch.empty(tensor.shape, dtype=tensor.dtype, device=META), known)

    def _make(self, func: Any, factory: str, args: Any, kwargs: Any) -> Tensor:
        value = FACTORIES[factory]
        if value is None:
            named = bind_arguments(func, args, kwargs)
            value = named.get("fill_value", named.get("s"))
        out = self.infer(func, args, kwargs)
        value = 0 if factory == "empty" and not out.dtype.is_floating_point else value
        self._check_result(factory, out)
        return self.give(out, self.fill(out, value))

    def _repeat(self, func: Any, name: str, is_in_place: bool, args: Any, kwargs: Any,
                fixed: Sequence[Fixed], out: Tensor) -> Fixed:
        is_constant = all(x.is_constant for x in fixed)
        if is_in_place:
            try:
                func = getattr(getattr(aten, name), func._overloadname)
            except AttributeError:
                raise self.error("elementwise operators", f"{func}") from None

        def replace(value: Any) -> Any:
            if isinstance(value, Tensor):
                return self.place(value)
            if isinstance(value, list | tuple):
                is_size = value and all(isinstance(x, int) for x in value)
                return self.sizes(value) if is_size else tuple(map(replace, value))
            return value

        is_number = (name != "_to_copy" and all(x.is_number for x in fixed)
                     and out.dtype == torch.float64 and not out.dim())
        if name == "sum":
            if not self.is_zero(args[0]):
                raise self.error("elementwise operators", "aten.sum of coefficients")
            return self.fill(out, 0)
        result = self.call(func, [replace(x) for x in args],
                           {key: replace(x) for key, x in kwargs.items()}, is_constant, is_number)
        if is_in_place:
            result = self.call(aten._to_copy.default, (Place(result.place),), {"dtype": out.dtype},
                               is_constant, is_number)
        return result

    def _round_numbers(self, name: str, args: Any) -> Any:
        """Casts tensors that are Python numbers in the loop as torch casts numbers."""
        tensors = find_tensors(args)
        numbers = [x for x in tensors
                   if isinstance(known := self.value(x), Fixed) and known.is_number]
        others = [x for x in tensors if not any(x is y for y in numbers)]
        if not numbers or not others or name == "copy":
            return args
        floating = [x for x in others if x.dtype.is_floating_point]
        if any(x.dim() for x in floating) and name not in ("index_put", "lerp", "masked_fill"):
            return args
        dtypes = [x.dtype for x in floating if x.dim()][:1] or [x.dtype for x in floating]
        dtype = reduce(torch.promote_types, dtypes or [torch.get_default_dtype()])

        def cast(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(cast, value))
            if any(value is x for x in numbers):
                return self.__torch_dispatch__(aten._to_copy.default, (), (value,),
                                               {"dtype": dtype})
            return value

        return cast(args)

    # ------------------------------------------------------------------------------- rows
    def _copy(self, name: str, known: Any, before: Tensor, out: Tensor) -> Row:
        if known.is_sum and before.numel() != out.numel():
            raise self.error("elementwise operators", f"aten.{name} of a sum over the batch")
        if known.is_sum or before.dtype == out.dtype:
            return known
        if name != "_to_copy":
            raise self.error("elementwise operators", f"aten.{name} to {out.dtype}")
        return Row(self._cast(known.node, out.dtype))

    def _average(self, x: Tensor) -> Tensor:
        """Returns the mean over the neurons, for each of them."""
        mean = self._cast(self.graph.mean(self.read(x, x.dtype)), x.dtype)
        return self.give(torch.empty_like(x), Row(mean))

    def _cast(self, node: int, dtype: torch.dtype) -> int:
        g = self.graph
        self._check_dtype(dtype)
        if dtype == torch.bool:
            return g.is_true(node)
        if not dtype.is_floating_point and node not in g.zero_or_one:
            node = g.add("add", node, g.constant(0))  # no integer is -0.0
            self._note_integer(node, dtype, f"a cast to {dtype}")
        if dtype == torch.float32 and g.dtype == torch.float64 and node not in g.single:
            return g.add("float32", node)
        return node

    def _note_integer(self, node: int, dtype: torch.dtype, got: str) -> None:
        """Notes a value of an integer dtype, of which is known later whether it is exact."""
        if node in self.graph.zero_or_one:
            return
        before = self.failure
        error = self.error("floating-point numbers, or integers that stay below 2**24", got)
        if dtype not in (torch.int32, torch.int64):
            raise error
        self.failure = before
        self.graph.integers.append((node, error))

    def _check_dtype(self, dtype: torch.dtype) -> None:
        g = self.graph
        if dtype in (torch.float16, torch.bfloat16) or dtype.is_complex or (
                dtype == torch.float64 and g.dtype == torch.float32):
            raise self.error(f"numbers of {g.dtype}", f"a tensor (B, N) of {dtype}; cast what it "
                             f"is computed from to the dtype of the states")

    def _translate(self, func: Any, name: str, is_in_place: bool, args: Any, kwargs: Any,
                   known: Sequence[Fixed | Row], tensors: Sequence[Tensor], out: Tensor) -> Row:
        g = self.graph
        named = bind_arguments(func, args, kwargs)
        has_sum = self._check_sums(name, named, out)
        if has_sum and name == "add" and len(known) == 2:
            for term, other in (("self", 1), ("other", 0)):
                if self.is_zero(named[term]):
                    return Row(known[other].node, True)  # type: ignore[union-attr]
        dtype = g.dtype if has_sum else out.dtype  # kernels sum in the dtype of the program
        self._check_dtype(dtype)
        compared = [x for key, x in named.items() if key in ("self", "other")]
        if is_in_place and name not in WRITES and not has_sum:
            for x in tensors[1:]:  # torch computes in the common dtype, and casts the result
                dtype = torch.promote_types(dtype, torch.result_type(tensors[0], x))
        elif not dtype.is_floating_point and len(compared) == 2:
            dtype = torch.result_type(*compared)
        elif not dtype.is_floating_point:
            dtype = tensors[0].dtype
        self._check_dtype(dtype)
        g.rounds_to_single = g.dtype == torch.float64 and dtype == torch.float32
        try:
            node = self._add_nodes(name, named, dtype, out)
        finally:
            g.rounds_to_single = False
        if not dtype.is_floating_point and torch.bool not in (dtype, out.dtype) and name != "copy":
            if name not in OF_INTEGERS:
                raise self.error("floating-point numbers", f"aten.{name} of {dtype}")
            if name in ("mul", "neg") and node not in g.zero_or_one:
                node = g.add("add", node, g.constant(0))
            self._note_integer(node, out.dtype, f"aten.{name} of {dtype}")
        if dtype != out.dtype and not has_sum and out.dtype.is_floating_point:
            node = self._cast(node, out.dtype)
        if out.dtype == torch.bool:  # True + True is True
            node = g.is_true(node)
        return Row(node, has_sum)

    def _add_nodes(self, name: str, named: dict[str, Any], dtype: torch.dtype,
                   out: Tensor) -> int:
        g = self.graph
        if name in ("fill", "zero"):
            return self.read(named.get("value", 0), dtype)
        if name == "copy":
            return self._cast(self.read(named["src"], dtype), dtype)
        if name == "index_put":
            masks = named["indices"]
            if (len(masks) != 1 or masks[0] is None or masks[0].dtype != torch.bool
                    or masks[0].shape != out.shape or named.get("accumulate")
                    or named["values"].numel() != 1):
                raise self.error("a write of one value where a mask (B, N) is true",
                                 "aten.index_put; torch.where(mask, a, b) takes tensors")
            named = {"self": named["self"], "mask": masks[0], "value": named["values"]}
            name = "masked_fill"
        read: dict[str, Any] = {}
        for key, value in named.items():
            if key in ("alpha", "rounding_mode", "inplace") or value is None:
                if isinstance(value, Tensor):
                    raise self.error("elementwise operators", f"aten.{name} with {key}={value!r}")
                read |= {} if value is None else {key: value}
            elif key == "value" and name == "addcmul":
                read[key] = value
            elif isinstance(value, Tensor | float | int):
                read[key] = self.read(value, dtype)
        if name == "pow":
            read["is_number"] = not isinstance(named["exponent"], Tensor)
        return OPERATIONS[name](g, **read)

    def _is_sum(self, value: Any) -> bool:
        known = self.value(value) if isinstance(value, Tensor) else None
        return isinstance(known, Row) and known.is_sum

    def _multiply(self, func: Any, name: str, args: Any, kwargs: Any, out: Tensor) -> Row:
        """Returns a sum times the gradient of 1."""
        self._check_sums(name, bind_arguments(func, args, kwargs), out)
        one = self.fill(args[0], 1)
        others = [self.place(x) if isinstance(x, Tensor) else x for x in args[1:]]
        factor = self.call(func, [Place(one.place), *others], kwargs)
        node = self.read_fixed(factor, self.graph.dtype)
        return Row(self.graph.add("mul", self.read(args[0], out.dtype), node), True)

    def _check_sums(self, name: str, named: Mapping[str, Any], out: Tensor) -> bool:
        """Whether a result is a sum over items and neurons. Sums are left to the kernels, so that
        only what is linear in them can follow."""
        values = {key: x for key, x in named.items() if isinstance(x, Tensor)}
        sums = [x for x in values.values() if self._is_sum(x)]
        if not sums:
            return False
        terms = () if named.get("rounding_mode") else LINEAR.get(name, ())
        if name == "mul":  # either factor
            terms = tuple(key for key, x in values.items() if self._is_sum(x))[:1]
        are_terms = all(self._is_sum(named[key]) or (key in ("self", "other", "value")
                                                     and self.is_zero(named[key]))
                        for key in terms if key in named)
        others = [x for key, x in values.items() if key not in terms]
        shapes = {strip_ones(x.shape) for x in sums}
        if not terms or not are_terms or shapes != {strip_ones(out.shape)} or not all(
                isinstance(self.value(x), Fixed) for x in others):
            raise self.error("elementwise operators", f"aten.{name} of a sum over the batch")
        return True


def strip_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(dropwhile(lambda size: size == 1, shape))
