"""plan: which kernels run a call, why, and how much memory a training step takes."""
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import _ops
from .._core.arguments import parse_bytes
from .._core.decisions import listening
from .._core.torch_internals import find_tensors, is_compiled_module
from .memory import OTHERS, LiveMemory, Part, available_bytes
from .passes import Passes, counting, one_at_a_time
from .plan_calls import Calls
from .plan_report import MARGIN, LayerPlan, Plan


def plan(target: Callable[..., Any], *inputs: Any, memory: str | None = None,
         device: str | None = None) -> Plan:
    """Returns which kernels run a call, why, what is saved for the backward pass, and the memory.

    Runs the call three times, with its backward pass if gradients are enabled, and reports the
    decisions that were made. Parameters, gradients, buffers and random generators keep their
    values. Calls of lsnn_ext in other threads are reported too.

    Args:
        target: a module, a converted model, or a function that calls operators of lsnn_ext; it is
            called as target(*inputs).
        *inputs: x of the size in question, and what else the target takes, such as a state.
        memory: what inputs and a step may take, such as "8 GB". Default what the device has free,
            and what the inputs take now.
        device: a card, such as "h100", whose CUDA kernels are reported too, by the formulas of
            docs/kernels.md; no GPU is needed. Default the GPU of the inputs, if they are on one.

    Returns:
        Plan: the report is its str(). The peak of memory is an estimate, on CUDA without the
        workspace of the kernels. The largest T and B follow from it, if the same kernels run.

    Raises:
        TypeError, ValueError, RuntimeError: a wrong argument, no call of lsnn_ext, or no compiled
            part.

    Example:
        >>> print(lsnn_ext.plan(lsnn_ext.ALIF(80, 220), torch.rand(784, 64, 80).round()))
    """
    budget = parse_bytes(memory) if isinstance(memory, str) else 0.0
    if memory is not None and not budget:
        raise ValueError(f"memory: expected a text such as '8 GB', got {memory!r}")
    passes = Passes("lsnn_ext.plan", target, inputs)
    if hasattr(target, "_torchdynamo_orig_callable") or any(
            is_compiled_module(part) or type(part).__name__ == "OptimizedModule"
            for module in passes.modules for part in module.modules()):
        raise TypeError(f"target: expected a module or function without torch.compile, whose "
                        f"graphs choose on their own, got {passes.name}")
    with one_at_a_time, passes.unchanged():
        passes.warm_up()
        passes.cotangents.clear()
        live = LiveMemory([*passes.tensors(), *passes.leaves])
        calls = Calls(passes.modules, live, device)
        with counting(), listening(calls), live:
            with torch.autograd.graph.saved_tensors_hooks(live.pack, lambda one: one):
                out = passes.forward()
            calls.end_forward()
            saved = sum(live.saved.values())
            passes.backward(out)
    if not calls.layers:
        raise ValueError(f"target: expected a module or function that calls lsnn_ext, got "
                         f"{passes.name}, which does not")
    tensors = find_tensors(passes.inputs)
    x_bytes, ids = sum(one.nbytes for one in tensors), set(map(id, tensors))
    parameter_shapes = {tuple(one.shape) for one in passes.leaves if id(one) not in ids}
    is_packed = any(isinstance(one, PackedSequence) for one in inputs)
    return Plan(
        target=passes.name, device=str(out.device), instruction_set=_ops._C.instruction_set(),
        threads=torch.get_num_threads(), layers=tuple(calls.layers), saved_bytes=saved,
        **_memory(live.peak, calls.layers, parameter_shapes, x_bytes,
                  budget or available_bytes(out.device) + x_bytes, not is_packed))


def _memory(parts: Sequence[Part], layers: Sequence[LayerPlan], fixed: set[tuple[int, ...]],
            x_bytes: int, budget: float, has_sizes: bool) -> dict[str, Any]:
    """The fields of Plan; fixed: shapes of tensors that do not grow with T and B; has_sizes: a
    call of each layer has all sequences."""
    T, B = max(((one.sizes.get("T", 0), one.sizes.get("B", 0)) for one in layers),
               key=lambda sizes: sizes[0] * sizes[1])
    sums = {"both": float(x_bytes), "B": 0.0, "": 0.0}
    owners: dict[str, int] = {}
    for part in parts:
        grows = ""
        if part.is_free:
            grows = "both"
        elif T * B and part.shape and part.shape not in fixed:
            has_steps = (math.prod(part.shape) % (T * B) == 0
                         or part.owner != OTHERS and B in part.shape)
            grows = "both" if has_steps else "B" if B in part.shape else ""
        sums[grows] += part.bytes
        owners[part.owner] = owners.get(part.owner, 0) + part.bytes
    peak, room = sum(owners.values()), budget / (1 + MARGIN)
    steps = sequences = None
    if has_sizes and T * B and math.isfinite(budget):
        steps = max(0, int((room - sums["B"] - sums[""]) * T / sums["both"]))
        sequences = max(0, int((room - sums[""]) * B / (sums["both"] + sums["B"])))
    largest = max(owners, key=lambda one: owners[one], default="")
    return {"peak_bytes": peak, "memory_bytes": budget, "most_steps": steps,
            "most_sequences": sequences,
            "binds": f"{largest} ({owners.get(largest, 0) / max(1, peak):.0%})"}
