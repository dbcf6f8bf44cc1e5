"""Costs: estimates of the time of recorded calls and of stages, forward and backward.

Only ratios matter. What calls of torch take beside their numbers is in microseconds of one thread
of a Zen 5; the rest was measured in ratios to it on a Zen 4: networks of 1 to 3 layers and 5 to 200
steps with 64 to 4,096 numbers in a result, and 20 to 40 steps with up to 262,144.
"""
from collections.abc import Mapping, Sequence
from math import prod, sqrt
from typing import Any

from .. import _ops
from .functions import PRODUCTS, Apply, OneStep, is_operator
from .ir import Call, Kind, Loop, Recording, Ref
from .products import list_operands
from .stages import Stage

CALL, FUNCTION, PRODUCT = 3.8, 15.0, 15.0  # of torch, of an autograd.Function, of a matrix
# Of these times without a backward pass; what a plan adds to them shrinks less.
FORWARD, FORWARD_PRODUCT = 0.65, 0.45
OPERATOR, STEP = 70.0, 48.0  # of a package: a step of a neuron; a step of one that runs many
# times as long as other numbers take those of such a step, and those that a kernel computes for it
OPERATIONS, FUSED_OPERATIONS = 4.2, 5.5
GUARD, FUSED, FUSED_STEP, BATCHED = 120.0, 400.0, 2.0, 95.0  # beside the numbers
NUMBER, FUSED_NUMBER = 0.45e-3, 0.3e-3
CACHED = 1 << 15  # what is read of at most so many numbers stays in the cache
# A result of at least so many numbers, of 32 MB, up to which glibc keeps what was freed, has new
# memory in each call: 1.5 to 2 ns for each on a virtual Zen 4, in place of 0.15. What backward
# needs has it in any case.
LARGE, LARGE_NUMBER = 1 << 23, 1.5e-3
MULTIPLICATION = 0.09e-3
WEIGHT = 0.5e-3  # of a matrix beyond the cache, read and its gradient written, however few rows
PLANNED = 0.4  # of a product of a sequence that is mostly zero
REPLAYED = 5.0  # to find the arguments of a call that a plan runs outside of loops
RETURNED = 6.5  # to copy a result of one iteration, such as each of a list
IN_ORDER = 1.5  # of calls in their order, whose arguments are taken apart and results stacked
WRITTEN = 1.1  # copies of the parts that a loop writes to a tensor
SPREAD = 0.4  # times as long takes a number of x in the gradient of x[t], which has the size of x
# Times as long is a recurrent product of spikes, or of other numbers; of these without a gradient.
SPIKES, DENSE, DENSE_FORWARD = 0.45, 1.02, 1.25


def _count_numbers(call: Call, kinds: Mapping[int, Kind], operations: float = OPERATIONS) -> float:
    """Returns the size of the results, without that of what is written to in part."""
    written = {after for _, after in call.written}
    size = sum(prod(kinds[value].shape) for value in call.outputs if value not in written)
    return size * (operations if is_operator(call.function) else 1)


def skips_zeros(call: Call, recording: Recording, times: int = 1) -> bool:
    """Whether a plan multiplies by what is mostly zero; times: iterations at once."""
    one = next(iter(list_operands(call, call.leaves)), None)
    if one is None or not isinstance(one.source, Ref) or not isinstance(one.matrix, Ref):
        return False
    (*rows, _), matrix = (recording.kinds[ref.value].shape for ref in (one.source, one.matrix))
    x = recording.numbers.get(one.source.value)
    return not _ops.has_few_rows(times * prod(rows), prod(matrix)) and (
        x is None or _ops.is_mostly_zero(x))


def estimate_call(call: Call, kinds: Mapping[int, Kind], times: int = 1,
                  is_sparse: bool = False) -> float:
    """Returns the time of one call for some iterations; is_sparse: see skips_zeros."""
    size = times * _count_numbers(call, kinds)
    found = NUMBER * size
    has_grad = any(kinds[value].requires_grad for value in call.outputs)
    share = 1 if has_grad else FORWARD
    product = PRODUCT * (1 if has_grad else FORWARD_PRODUCT)
    if size >= LARGE and not has_grad:
        found += LARGE_NUMBER * size
    if isinstance(call.function, Apply):
        return share * FUNCTION + found
    if is_operator(call.function):
        return (STEP if isinstance(call.function, OneStep) else OPERATOR) + found
    if call.name == "__getitem__" and kinds[source := call.inputs[0]].requires_grad:
        found += SPREAD * NUMBER * max(prod(kinds[source].shape) - CACHED, 0)
    if call.name not in PRODUCTS:
        return share * CALL + found
    if call.name.startswith("conv"):
        each = prod(kinds[call.inputs[1]].shape[1:])  # of the weight (outputs, inputs, ...)
        return product + found + MULTIPLICATION * each * size
    one = next(iter(list_operands(call, call.leaves)), None)
    if one is not None and isinstance(one.matrix, Ref):
        found += WEIGHT * max(prod(kinds[one.matrix.value].shape) - CACHED, 0)
    # the sizes of both arguments and of the result: m k, k n, m n
    sizes = sorted(prod(kinds[value].shape) for value in call.inputs)[-2:]
    multiplication = MULTIPLICATION * (PLANNED if is_sparse else 1)
    return product + found + multiplication * times * sqrt(prod(sizes) * size / times)


def estimate_copies(call: Call, kinds: Mapping[int, Kind]) -> float:
    """Returns the time of the copies that a plan makes of what a call writes to."""
    return WRITTEN * NUMBER * sum(prod(kinds[after].shape) for _, after in call.written)


def estimate_stage(loop: Loop, stage: Stage, recording: Recording) -> float:
    kinds = recording.kinds
    calls, n = [loop.body[q].call for q in stage.positions], loop.iterations
    if stage.kind == "fused":
        return estimate_recurrence(loop, stage.run.found, recording)  # type: ignore[attr-defined]
    if stage.kind in ("loop", "drawn", "in order"):
        return n * sum(IN_ORDER * estimate_call(call, kinds) + estimate_copies(call, kinds)
                       for call in calls)
    if stage.kind == "written":
        return sum(CALL + WRITTEN * NUMBER * n * prod(kinds[call.inputs[-1]].shape)
                   for call in calls)
    if stage.kind == "batched":
        q, = stage.positions
        is_sparse = skips_zeros(loop.expand(n // 2, q), recording, n)
        return BATCHED + estimate_call(calls[0], kinds, n, is_sparse)
    return CALL


def estimate_recurrence(loop: Loop, found: Any, recording: Recording) -> float:
    """Returns the time of a Recurrence in a kernel."""
    n = loop.iterations
    calls = [loop.body[q].call for q in found.reader.inside]
    is_sparse = all(isinstance(loop.body[q].call.function, Apply) or (
        (z := recording.numbers.get(loop.made[n // 2][q][k])) is not None
        and z.dim() > 0 and _ops.is_mostly_zero(z)) for q, k in found.emitted)
    return FUSED + n * (FUSED_STEP + _estimate_step(found, calls, recording.kinds, is_sparse))


def _estimate_step(found: Any, calls: Sequence[Call], kinds: Mapping[int, Kind],
                   is_sparse: bool) -> float:
    """found: the Recurrence. If one current has a product, all take part in it."""
    numbers = found.copies * sum(_count_numbers(call, kinds, FUSED_OPERATIONS) for call in calls)
    width = any(one.products for one in found.currents) * sum(
        found.width(one.shape) for one, name in found.currents.items()
        if name in found.shared_currents)
    has_grad = any(kinds[value].requires_grad for call in calls for value in call.outputs)
    times = SPIKES if is_sparse else DENSE if has_grad else DENSE_FORWARD
    return FUSED_NUMBER * numbers + MULTIPLICATION * times * (
        found.retiming.groups * found.retiming.count_rows(found.rows) * sum(found.sizes)**2 * width)
