"""What lsnn_ext.profile learns from the operators that torch calls during a pass."""

import time
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import _ops
from ..._core.torch_internals import DispatchMode

Shape: TypeAlias = tuple[int, ...]


class Call(NamedTuple):
    """A call of alif_forward, as far as the report needs it."""

    neuron_steps: int
    delays: int
    surrogate: str
    checkpoint: int
    spikes: int  # bytes
    readout: bool  # whether it has one inside


class OpRecorder(DispatchMode):
    """Sees the operators of a pass: looks at what goes into ours, and times the products with their
    weights."""

    def __init__(self, projections: set[Shape], readouts: set[Shape]) -> None:
        super().__init__()
        self.shapes = projections, readouts  # of weights, in either order
        self.seconds = [0.0, 0.0]  # of both outside of alif_forward and alif_backward
        self.readout_apart = False  # whether one runs outside of them
        self.calls: list[Call] = []
        self.kinds: dict[str, None] = {}  # of projections, in the order seen
        # those that are not zero, and all, of projections outside of alif_forward
        self.inputs = [0, 0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - start
        name = func.overloadpacket.__name__
        if func.namespace == "lsnn" and name == "alif_forward":
            self._call(dict(zip((argument.name for argument in func._schema.arguments), args,
                                strict=False)), out)
        elif func.namespace == "lsnn" and name.startswith("leaky_readout"):
            self.readout_apart = True
            self.seconds[1] += seconds
        elif func.namespace == "lsnn" and name.startswith("linear_events"):
            weight = args[1] if name == "linear_events" else out[0]
            self._product("by events in front", args[0], {tuple(weight.shape)}, seconds)
        elif func.namespace == "aten" and name in ("mm", "addmm"):
            self._product("as a matrix product", args[-2],
                          {tuple(t.shape) for t in (*args[-2:], out)}, seconds)
        return out

    def _product(self, kind: str, x: Tensor, shapes: set[Shape], seconds: float) -> None:
        for which in (0, 1):
            if shapes & self.shapes[which]:
                self.seconds[which] += seconds
                if which == 0:
                    self.kinds[kind] = None
                    self.inputs = [self.inputs[0] + int(torch.count_nonzero(x)),
                                   self.inputs[1] + x.numel()]
                return

    def _call(self, given: dict[str, Any], out: tuple[Tensor, ...]) -> None:
        x, coefficients, constants = given["x"], given["coefficients"], _ops.Constants(
            *given["constants"])
        if any(t is not None for t in given["projection"]):
            self.kinds["inside the operator"] = None
        self.calls.append(Call(
            x.shape[0] * x.shape[1] * coefficients.shape[1], len(given["delays"]),
            _ops._C.surrogates()[constants.surrogate], constants.checkpoint,
            out[0].numel() * out[0].element_size(), any(t is not None for t in given["readout"])))
