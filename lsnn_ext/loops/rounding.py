"""Differences of tensors: which are rounding errors."""
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..codegen.gradients import differentiate
from ..codegen.plain import draw_normal
from .ir import Call, Refused
from .rewrite import assign
from .values import run_call

Run: TypeAlias = Callable[[torch.Generator], tuple[Sequence[Tensor], Sequence[Tensor]]]
ULPS = 64  # of the largest number of a value: what rounding may change in one step
LOW_ULPS = 2  # the same in bfloat16 and float16
PERTURBATIONS = (1 / 64, 1 / 16, 1 / 4, 1)  # in turn, by which share of the tolerance inputs move
DRAWS = 6  # of random signs for each of them
PERTURBED_ULPS = 16.0  # of a gradient: how many times what a perturbation by an ulp changes


class VerificationError(RuntimeError):
    """A plan does not compute what the recording did.

    Attributes:
        component: line of the user's file, or the name of a result or gradient.
        step: iteration of the loop, from 0; None: outside of loops, or all.
        neuron: index in the tensor of a step.
    """

    def __init__(self, reason: str, component: str, step: int | None = None,
                 neuron: tuple[int, ...] = ()) -> None:
        self.component, self.step, self.neuron = component, step, neuron
        at = ("" if step is None else f", step {step}") + (f", neuron {neuron}" if neuron else "")
        super().__init__(f"{component}{at}: {reason}")


class Tolerance:
    """The largest difference allowed, as a share of the largest number of a tensor."""

    def __init__(self, shares: Mapping[torch.dtype, float], low: float) -> None:
        self.shares, self.low = shares, low

    def share(self, dtype: torch.dtype) -> float:
        """Returns the share of a dtype; 0 for integers and bools."""
        if not dtype.is_floating_point and not dtype.is_complex:
            return 0.0
        real = dtype.to_real() if dtype.is_complex else dtype
        return self.shares.get(real, self.low * torch.finfo(real).eps)

    def of(self, tensor: Tensor) -> float:
        share = self.share(tensor.dtype)
        if not share or not tensor.numel():
            return 0.0
        return share * find_largest(tensor)


EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}
STEP = Tolerance({dtype: ULPS * eps for dtype, eps in EPS.items()}, LOW_ULPS)
RUN = Tolerance({torch.float64: 1e-9, torch.float32: 1e-4}, 2.5)


def find_largest(tensor: Tensor) -> float:
    """Returns the largest magnitude of finite numbers."""
    tensor = tensor.detach().abs() if tensor.is_complex() else tensor.detach()
    low, high = map(float, tensor.aminmax())
    largest = max(-low, high)
    return largest if math.isfinite(largest) else float(tensor.abs().nan_to_num(0, 0, 0).max())


def tolerance_of(dtypes: Iterable[torch.dtype]) -> Tolerance:
    """Returns the tolerance of a run that computes values of these dtypes: that of the least
    precise one, as of spikes in float32 in a model in float64, or under autocast."""
    low = max(map(RUN.share, dtypes), default=0.0)
    return Tolerance({dtype: max(share, low) for dtype, share in RUN.shares.items()}, RUN.low)


def compare_gradients(got: Sequence[Tensor], want: Sequence[Tensor], leaves: Sequence[Tensor],
                      others: Sequence[Tensor], names: Sequence[str], run_perturbed: Run,
                      tolerance: Tolerance = RUN) -> float:
    """Returns the largest difference of a gradient, as a share of its largest magnitude; of those
    that are more than rounding errors of others.

    Args:
        got, want: outputs, functions of leaves and of others, whose graphs stay usable.
        names: of the leaves.
        run_perturbed: outputs and leaves once more, all values between and their gradients
            perturbed by an ulp of their largest, which shows what rounding may do.
        tolerance: of gradients.

    Raises:
        VerificationError: a gradient that differs by more than rounding.
    """
    random = torch.Generator().manual_seed(0)
    pairs = []
    for output, wanted in zip(got, want, strict=True):
        if output.requires_grad != wanted.requires_grad:
            raise VerificationError(f"expected requires_grad={wanted.requires_grad}, got "
                                    f"{output.requires_grad}", names[0] if names else "results")
        if wanted.requires_grad:
            pairs.append((output, wanted))
    if not pairs or not leaves:
        return 0.0
    got, want = zip(*pairs, strict=True)
    cotangents = [draw_normal(one.shape, random, one.dtype).to(one.device) for one in want]
    expected = differentiate(want, others, cotangents)
    found = _add_earlier_graph(differentiate(got, leaves, cotangents), others)
    for name, one in zip(names, expected, strict=False):
        if one is not None and one.layout != torch.strided:
            raise Refused(f"{name}: expected a dense gradient, got one of {one.layout}")
    worst = 0.0
    least = max((STEP.of(one.nan_to_num(0, 0, 0)) for one in expected if one is not None),
                default=0.0)
    suspects: dict[int, tuple[float, Tensor]] = {}  # by leaf, how far apart and the original's
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one is not None and other is None:  # such as of steps that nothing reads
            raise Refused(f"{names[k]}: expected None, got a gradient")
        if one is None and other is not None:
            raise VerificationError("expected a gradient", names[k])
        if one is None or other is None or not other.numel():
            continue
        is_finite = other.isfinite()
        if not torch.equal(one.isfinite(), is_finite):
            raise Refused(f"{names[k]}: expected a gradient that is finite where that of the "
                          f"original is, got others; check its surrogate")
        one, other = one.where(is_finite, 0), other.where(is_finite, 0)
        largest, apart = float(other.abs().max()), float(find_distance(one, other).max())
        if apart <= max(largest * tolerance.share(other.dtype), torch.finfo(other.dtype).tiny):
            worst = max(worst, apart / largest if largest else 0.0)
        elif apart > least:  # else the rounding of other gradients, as of a bias before a norm
            suspects[k] = apart, other
    spread = dict.fromkeys(suspects, 0.0)
    # the perturbed runs are compared with each other, as they may all be wrong
    first: dict[int, Tensor] = {}
    for _ in range(DRAWS + 1):
        if not suspects:
            break
        outputs, inputs = run_perturbed(random)
        outputs = [one for one in outputs if one.requires_grad]
        perturbed = differentiate(outputs, [inputs[k] for k in suspects],
                                  [perturb_by_ulp(one, random) for one in cotangents])
        for (k, (apart, _)), one in zip([*suspects.items()], perturbed, strict=True):
            if one is not None:
                distance = find_distance(one, first.setdefault(k, one))
                spread[k] = max(spread[k], float(distance.max()))
            if apart <= PERTURBED_ULPS * spread[k]:
                del suspects[k]
    if suspects:
        k, (apart, other) = next(iter(suspects.items()))
        raise VerificationError(f"a gradient differs by {apart:.1e} of at most "
                                f"{float(other.abs().max()):.1e}", names[k])
    return worst


def _add_earlier_graph(found: Sequence[Tensor | None],
                       leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Adds what reaches leaves through the graph of the call that made other leaves: of a state in
    an attribute, which the next call reads, the original's gradient passes on to that call."""
    made = [(leaf, one) for leaf, one in zip(leaves, found, strict=True)
            if leaf.grad_fn is not None and one is not None]
    if not made:
        return tuple(found)
    more = differentiate([leaf for leaf, _ in made], leaves, [one for _, one in made])
    return tuple(other if one is None or leaf.grad_fn is not None else
                 one if other is None else one + other
                 for leaf, one, other in zip(leaves, found, more, strict=True))


def run_perturbed_call(call: Call, values: dict[int, Tensor], numbers: Mapping[int, Tensor],
                       random: torch.Generator | None) -> None:
    """Adds the outputs of a call, with their graph.

    Args:
        numbers: which outputs have. Default: those that the call gives.
        random: perturbs numbers and gradients by rounding. None: they are as they are.
    """
    for value, one in run_call(call, values):
        values[value], number = one, numbers.get(value, one.detach())
        if one.requires_grad:
            number = number if random is None else perturb_by_ulp(number, random)
            values[value] = assign(one, number)
            if random is not None:
                values[value].register_hook(partial(perturb_by_ulp, random=random))
        elif random is None:
            values[value] = number


def perturb_by_ulp(tensor: Tensor, random: torch.Generator) -> Tensor:
    """Returns the tensor changed at random by an ulp of its largest number."""
    if not tensor.numel() or not tensor.is_floating_point():
        return tensor
    return perturb(tensor, torch.finfo(tensor.dtype).eps * find_largest(tensor), 0, random)


def get_kind(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def check_kind(got: Tensor, want: Tensor, component: str, step: int | None = None) -> None:
    if get_kind(got) != get_kind(want):
        raise VerificationError(f"expected {get_kind(want)}, got {get_kind(got)}", component, step)


def find_distance(one: Tensor, other: Tensor) -> Tensor:
    """Returns absolute differences; 0 for equal infinities and for two NaN."""
    if not one.is_floating_point() and not one.is_complex():
        return (one != other).double()
    apart = (one - other).abs()
    if not apart.numel() or not apart.max().isnan():
        return apart
    return apart.masked_fill((one == other) | (one.isnan() & other.isnan()), 0)


def find_differences(one: Tensor, other: Tensor, limit: float) -> Tensor:
    return ~(find_distance(one, other) <= limit)


def is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have one kind and are equal within the rounding of one step."""
    if get_kind(one) != get_kind(other):
        return False
    return torch.equal(one, other) or not bool(find_differences(one, other, STEP.of(other)).any())


def perturb(tensor: Tensor, size: Any, sign: int, random: torch.Generator) -> Tensor:
    """Returns the tensor changed by size, up, down, or 0: at random. Integers are unchanged, as
    counts of spikes are, unless the dtype has no other numbers of this size."""
    if not tensor.is_floating_point():
        return tensor
    signs: Any = sign
    if not sign:
        signs = torch.randint(0, 2, tensor.shape, generator=random, device="cpu").to(tensor) * 2 - 1
    is_integer = (tensor == tensor.round()) & (tensor.abs() * torch.finfo(tensor.dtype).eps < 1)
    return torch.where(is_integer, tensor, tensor + signs * size)


