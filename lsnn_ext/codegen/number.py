"""Arithmetic of Python numbers that are tensors while a step is traced."""
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._core.torch_internals import find_storage, is_transforming
from .calls import CPU, META, Place
from .values import NOT_OF_STEPS, Fixed, Values

ARITHMETIC: dict[str, Callable[..., Any]] = {
    "div": operator.truediv, "true_divide": operator.truediv, "floor_divide": operator.floordiv,
    "remainder": operator.mod, **{name: getattr(operator, name) for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "abs")}}
# What a step sees of a tensor of a trace.
SEEN = {Tensor.device.__get__: CPU, Tensor.is_cpu.__get__: True,  # type: ignore[attr-defined]
        Tensor.is_meta.__get__: False}  # type: ignore[attr-defined]


class NumberArithmetic(TorchFunctionMode):
    """Python numbers among coefficients are tensors while a step is traced. Their arithmetic is
    recorded as that of Python, and they enter functions of torch as numbers do."""

    def __init__(self, tracer: Values) -> None:
        super().__init__()
        self.tracer = tracer

    def _is_number(self, value: Any) -> bool:
        if not isinstance(value, Tensor) or not value.is_meta or is_transforming():
            return False
        # Definitions of operators call functions of torch with tensors of their own.
        known = self.tracer.values.get(find_storage(value))
        return isinstance(known, Fixed) and known.is_number

    def _make_number(self, value: Any, arguments: Sequence[Any] | None = None) -> Tensor:
        """A Python number, or the result of a function of Python numbers."""
        function, given = (None, (value,)) if arguments is None else (value, arguments)
        result = self.tracer.call(function, given, is_constant=function is None, is_number=True)
        return self.tracer.give(torch.empty((), dtype=torch.float64, device=META), result, True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in SEEN and args[0].is_meta and not sys._getframe(1).f_code.co_filename.startswith(
                NOT_OF_STEPS):  # torch's own code, such as checkpoint, sees META
            return SEEN[func]
        if func is Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("meta.", "")
        if name == "to" or name in ("cpu", "cuda") and isinstance(args[0], Tensor):
            return _cast(*args, **kwargs)
        if name == "new_tensor":
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs})
        if not args or not any(map(self._is_number, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        base = name.strip("_")
        is_reversed = base not in ARITHMETIC and base[:1] == "r" and base[1:] in ARITHMETIC
        base = base[1:] if is_reversed else base
        # Python has no operators in place for numbers: x += 1 is x = x + 1.
        if base in ARITHMETIC and not kwargs and all(
                self._is_number(x) or type(x) in (int, float) for x in args):
            places = [Place(self.tracer.value(x).place)  # type: ignore[union-attr]
                      if isinstance(x, Tensor) else x for x in args]
            places = places[::-1] if is_reversed else places
            return self._make_number(ARITHMETIC[base], places)
        if base in ("div", "truediv", "true_divide") and self._is_number(args[0]):
            return args[1].reciprocal() * args[0]  # as Tensor.__rtruediv__
        if func is torch.where:
            args = [self._make_number(x) if type(x) in (int, float) else x for x in args]
        if func in (torch.as_tensor, torch.tensor, torch.scalar_tensor):
            return args[0].to(kwargs.get("dtype") or torch.get_default_dtype(), copy=True)
        if base == "full_like" and len(args) == 2:
            return torch.empty_like(args[0], **kwargs).fill_(args[1])
        if base in ("clamp", "clip") and len(args) + len(kwargs) > 2:
            args = [x if isinstance(x, Tensor) or i == 0 or x is None
                    else torch.full((), x, dtype=args[0].dtype) for i, x in enumerate(args)]
            kwargs = {key: x if isinstance(x, Tensor) or x is None
                      else torch.full((), x, dtype=args[0].dtype) for key, x in kwargs.items()}
        return func(*args, **kwargs)


def _cast(tensor: Tensor, *args: Any, device: Any = None, dtype: torch.dtype | None = None,
          copy: bool = False, **_: Any) -> Tensor:
    """Tensor.to, without the device: all tensors of a trace stay on META."""
    given = [one.dtype if isinstance(one, Tensor) else one for one in args]
    dtype = next((one for one in given if isinstance(one, torch.dtype)), dtype)
    flags = [one for one in given if isinstance(one, bool)]  # non_blocking, copy
    return tensor.to(dtype or tensor.dtype, copy=copy or len(flags) > 1 and flags[1])
