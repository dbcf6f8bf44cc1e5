"""Small functions with a loop, recorded and run as a plan."""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record


def run(function: Callable[..., Any], args: Sequence[Tensor]) -> tuple[Any, Any, Plan]:
    """The result of the function, that of its plan, and the plan."""
    result, recording = record(function, tuple(args), {}, Origins(function, tuple(args), {}))
    if isinstance(recording, Exception):
        raise recording
    plan = Plan(recording)
    leaves = {value: args[leaf.path[0]] for value, leaf in recording.leaves.items()}
    return result, plan(leaves)[0], plan


def compare(function: Callable[..., Any], *args: Tensor, fused: int = 1,
            tolerance: float = 1e-9) -> Plan:
    """Fails unless results and all gradients of the function and of its plan agree, and as many
    components run in the kernels."""
    args = tuple(one.detach().clone().requires_grad_(one.is_floating_point()) for one in args)
    want, got, plan = run(function, args)
    reasons = [(stage.kind, stage.reason, stage.line) for stage in plan.stages
               if stage.kind in ("fused", "loop")]
    assert [kind for kind, *_ in reasons] == ["fused"] * fused, reasons
    gradients = []
    results = [pytree.tree_leaves(one) for one in (want, got)]
    for one, other in zip(*results, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        close(other.detach(), one.detach(), tolerance, "result")
    for leaves in results:
        random = torch.Generator().manual_seed(1)
        total = sum((one * torch.randn(one.shape, generator=random, dtype=torch.float64)).sum()
                    for one in leaves)
        wanted = [one for one in args if one.requires_grad]
        gradients.append(torch.autograd.grad(total, wanted, allow_unused=True))
    for k, (one, other) in enumerate(zip(*gradients, strict=True)):
        assert (one is None) == (other is None), f"gradient {k}: {one}, {other}"
        if one is not None:
            close(other, one, tolerance, f"gradient {k}")
    return plan


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    largest = want.double().abs().max().item()
    error = (got.double() - want.double()).abs().max().item()
    assert error <= tolerance * largest, f"{what}: {error} of {largest}"
