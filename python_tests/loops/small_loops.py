"""Small functions with a loop, recorded and run as a plan."""
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lsnn_ext.loops.component import Component, RunInputs
from lsnn_ext.loops.origins import Origins
from lsnn_ext.loops.plan import Plan
from lsnn_ext.loops.record import record
from surrogates import Triangle

spike = Triangle.apply


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers, others for each shape."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def run(function: Callable[..., Any], args: Sequence[Tensor]) -> tuple[Any, Any, Plan]:
    """The result of the function, that of its plan, and the plan."""
    result, recording = record(function, tuple(args), {}, Origins(function, tuple(args), {}))
    if isinstance(recording, Exception):
        raise recording
    plan = Plan(recording)
    leaves = {value: args[leaf.path[0]] for value, leaf in recording.leaves.items()}
    return result, plan(leaves)[0], plan


def prepare(function: Callable[..., Any], args: list[Tensor]) -> tuple[Plan, Any]:
    """A plan that verify can check, and the result of the function."""
    args = [one.requires_grad_(one.is_floating_point()) for one in args]
    result, recording = record(function, tuple(args), {}, Origins(function, tuple(args), {}),
                               keep_numbers=True)
    assert not isinstance(recording, Exception), recording
    return Plan(recording), result


def find_components(plan: Plan) -> list[Component]:
    """Those that run in kernels."""
    return [stage.run for stage in plan.stages if isinstance(stage.run, Component)]


def line_of(path: str, text: str) -> str:
    """FILE:NUMBER of the first line with this text."""
    lines = Path(path).read_text().splitlines()
    return f"{Path(path).name}:{next(i for i, line in enumerate(lines, 1) if text in line)}"


def over(step: Callable[..., tuple[Tensor, ...]], states: int, keep: tuple[int, ...] = (-1,),
         last: tuple[int, ...] = (), is_stacked: bool = False) -> Callable[..., Any]:
    """A loop over x: step(x[t], *constants, *states) returns the next states.

    Args:
        keep: the states that the loop returns of all steps, in lists, or stacked.
        last: those that it returns of the last step.
    """
    def model(x: Tensor, *args: Tensor) -> list[Any]:
        constants, now = args[:-states], args[-states:]
        rows = []
        for x_t in x.unbind(0):
            now = step(x_t, *constants, *now)
            rows.append(now)
        kept = [[row[k] for row in rows] for k in keep]
        return [*(map(torch.stack, kept) if is_stacked else kept), *(now[k] for k in last)]

    return model


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, read: Callable[..., Any],
        ) -> list[Any]:
    """What `read` returns of the arguments of each call of a function."""
    seen: list[Any] = []
    function = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        seen.append(read(*args, **options))
        return function(*args, **options)

    monkeypatch.setattr(owner, name, call)
    return seen


def run_cells(currents: Iterable[Tensor], w: Tensor, rows: int,
              threshold: Tensor | float = 1.0) -> Tensor:
    """Spikes of leaky neurons with a matrix."""
    v = z = w.new_zeros(rows, len(w))
    made = []
    for current in currents:
        v = 0.9 * v + current + z @ w - z
        z = spike(v - threshold)
        made.append(z)
    return torch.stack(made)


def compare_calls(fused: Callable[..., Any], function: Callable[..., Any], *args: Any,
                  seeds: Sequence[int] = (0,), **limits: float) -> None:
    """Fails unless a fused function, or a converted module, and the original agree in results,
    draws and gradients."""
    for seed in seeds:
        found = []
        for call in (fused, function):
            learned = [one for one in args if one.requires_grad]
            if isinstance(call, nn.Module):
                learned += call.parameters()
            torch.manual_seed(seed)
            results = pytree.tree_leaves(call(*args))
            has_gradients = [one.requires_grad for one in results]
            outputs = [one for one in results if one.requires_grad]
            weights = [torch.linspace(0.5, 1.5, one.numel(), dtype=one.dtype).view(one.shape)
                       for one in outputs]
            gradients: Sequence[Tensor | None] = ()
            if learned and outputs:
                gradients = torch.autograd.grad(outputs, learned, weights, allow_unused=True)
            found.append((results, has_gradients, gradients, torch.get_rng_state()))
        torch.testing.assert_close(*found, **limits)


def compare(function: Callable[..., Any], *args: Tensor, fused: int = 1,
            tolerance: float = 1e-9) -> Plan:
    """Fails unless results and all gradients of the function and of its plan agree, and as many
    components run in the kernels."""
    args = tuple(one.detach().clone().requires_grad_(one.is_floating_point()) for one in args)
    want, got, plan = run(function, args)
    reasons = [(stage.kind, stage.reason, stage.line) for stage in plan.stages
               if stage.kind in ("fused", "loop")]
    assert [kind for kind, *_ in reasons] == ["fused"] * fused, reasons
    for component in find_components(plan):
        check_device(component)
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


def check_device(component: Component) -> None:
    """Fails unless all that a kernel reads is on the device of the inputs, for which meta stands:
    its operators refuse tensors of another device."""
    meta = torch.device("meta")
    drawn = component._draw(2)
    given = RunInputs(2, {key: one.to(meta) for key, one in drawn.tensors.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(component.options, "device", meta)
        inputs, *_, projection = component.make_arguments(given)
        x, weights, _, state, coefficients, first, _ = component.make_arguments(given, False)
    rows = [kernel.rows(list(coefficients.values()), x)
            for _, kernel in component.neuron.kernels.values()]
    tensors = [inputs, *projection.values(), x, state.z, *state.states.values(),
               *coefficients.values(), *first.values(), *rows]
    tensors += [] if weights is None else [weights]
    assert all(one.device == meta for one in tensors)


def check_loop(function: Callable[..., Any], file: str, *args: Tensor) -> None:
    """Fails unless the plan has one loop, with a reason and a line of the file, and is exact."""
    want, got, plan = run(function, args)
    loop, = [stage for stage in plan.stages if stage.kind == "loop"]
    assert loop.reason
    assert loop.line.startswith(f"{file}:")
    assert all(map(torch.equal, pytree.tree_leaves(got), pytree.tree_leaves(want)))


def close(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    largest = want.double().abs().max().item()
    error = (got.double() - want.double()).abs().max().item()
    assert error <= tolerance * largest, f"{what}: {error} of {largest}"
