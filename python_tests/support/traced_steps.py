"""Compares the program of a step with the step itself and autograd."""
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lsnn_ext.codegen.program import Program
from lsnn_ext.codegen.trace import Traced, trace
from program import Evaluated, evaluate

BATCH, NEURONS = 6, 11
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def assert_well_formed(program: Program) -> None:
    """Order of nodes, no dead nodes, none twice, none of coefficients only."""
    inputs = program.currents + 2 * program.states + 2 + program.coefficients
    before = program.currents + program.states + 1
    fixed = {*range(before, before + program.coefficients)}
    of_gradients = {*range(before + program.coefficients, inputs)}
    used: set[int] = set()
    for place, node in enumerate(program.nodes):
        assert (node.operator == "input") == (place < inputs)
        assert all(i < place for i in node.arguments)
        used.update(node.arguments)
        if node.operator == "constant":
            fixed.add(place)
        elif node.operator != "input":
            assert not fixed.issuperset(node.arguments), (place, node)
        if not of_gradients.isdisjoint(node.arguments):
            of_gradients.add(place)
    outputs = [*program.new_states, program.z, *(program.slopes or ()), *program.d_currents,
               *program.d_states, program.d_z, *program.gradients]
    assert {*range(inputs, len(program.nodes))} <= used | {*outputs}
    assert fixed & {*range(before, inputs)} <= used | {*outputs}
    real = program.nodes[inputs:]
    assert len({repr(node) for node in real}) == len(real)
    assert of_gradients.isdisjoint([*program.new_states, program.z, *(program.slopes or ())])


def _assert_close(name: str, got: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    expected = torch.zeros(()) if expected is None else expected
    got = torch.zeros_like(expected) if got is None else got
    assert got.shape == expected.shape or expected.dim() == 0, name
    got, expected = got.double(), expected.double()
    scale = expected.abs()[expected.isfinite()].max().item() if expected.isfinite().any() else 0.0
    torch.testing.assert_close(got, expected.expand_as(got), rtol=tolerance,
                               atol=tolerance * (scale + 1e-30), equal_nan=True,
                               msg=lambda text: f"{name}: {text}")


def trace_step(step: Callable[..., Any], dtype: torch.dtype = torch.float32,
               coefficients: Mapping[str, Any] | None = None) -> Traced:
    """A step with one current and one state."""
    return trace(step, currents=1, states=1, dtype=dtype, coefficients=coefficients or {})


def values_of(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """function(v) (n,) as the program of a step computes it."""
    program = trace_step(lambda c, v, z: (function(v), z), v.dtype).program
    return evaluate(program, [v[None]], [v[None]], v[None], []).new_states[0][0]


def check_step(step: Callable[..., Any], coefficients: Mapping[str, Tensor | float] | None = None,
               *, currents: int = 1, states: int = 1, dtype: torch.dtype = torch.float64,
               is_exact: bool = True, scale: float = 1.5, seed: int = 0,
               tolerance: float | None = None, batch: int = BATCH) -> Traced:
    """Traces a step and asserts that results are bitwise equal (is_exact) and gradients close."""
    coefficients = coefficients or {}
    traced = trace(step, currents=currents, states=states, dtype=dtype, coefficients=coefficients)
    program = traced.program
    assert_well_formed(program)
    tolerance = tolerance or TOLERANCES[dtype]
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(batch, NEURONS, generator=generator, dtype=dtype) * scale

    rows = [draw() for _ in range(currents + states)]
    rows.append((draw() > 0).to(dtype))
    given = {name: x.detach().clone().requires_grad_(x.dtype.is_floating_point)
             if isinstance(x, Tensor) else x for name, x in coefficients.items()}
    leaves = [x.requires_grad_() for x in rows]
    d_results = [draw() for _ in range(states + 1)]
    results = step(*(x.clone() for x in leaves), **given)
    results = [results] if isinstance(results, Tensor) else results
    results = [x.expand(batch, NEURONS) for x in results]
    wanted = [*leaves, *(x for x in given.values() if isinstance(x, Tensor) and x.requires_grad)]
    needed = [(x, d) for x, d in zip(results, d_results, strict=True) if x.requires_grad]
    expected = iter(torch.autograd.grad([x for x, _ in needed], wanted, [d for _, d in needed],
                                        allow_unused=True) if needed else [None] * len(wanted))
    coefficient_rows = traced.prologue(list(given.values()), torch.device("cpu"))
    assert all(x.dtype == dtype and x.shape in ((), (NEURONS,)) and not x.requires_grad
               for x in coefficient_rows)
    rows = [x.detach() for x in rows]

    def run(d_z: Tensor) -> Evaluated:
        return evaluate(program, rows[:currents], rows[currents:-1], rows[-1], coefficient_rows,
                        d_results[:-1], d_z)

    got = run(d_results[-1])
    for i, (a, b) in enumerate(zip([*got.new_states, got.z], results, strict=True)):
        if is_exact:
            assert torch.equal(a.nan_to_num(nan=12345.0), b.detach().nan_to_num(nan=12345.0)), i
        else:
            _assert_close(f"result {i}", a, b.detach(), tolerance)
    names = [*(f"current {i}" for i in range(currents)), *(f"state {i}" for i in range(states)),
             "z"]
    for name, a in zip(names, [*got.d_currents, *got.d_states, got.d_z], strict=True):
        b = next(expected)
        _assert_close(name, a, b, tolerance)
        if is_exact and a is not None and b is not None:  # the same operators in the same order
            assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)), name
    for (name, x), a in zip(given.items(), got.gradients, strict=True):
        if isinstance(x, Tensor) and x.requires_grad:
            a = None if a is None else (a.sum(0) if x.dim() else a.sum())
            b = next(expected)
            _assert_close(name, a, b, 20 * max(tolerance, TOLERANCES.get(x.dtype, 0)))
        else:
            assert a is None
    if program.is_spike:
        assert ((got.z == 0) | (got.z == 1)).all()
    if got.slopes is not None:  # where all are 0, dL/dz has no effect
        inactive = torch.ones(batch, NEURONS, dtype=torch.bool)
        for slope in got.slopes:
            inactive &= slope == 0
        other = run(torch.where(inactive, draw(), d_results[-1]))
        for a, b in zip([*got.d_currents, *got.d_states, got.d_z, *got.gradients],
                        [*other.d_currents, *other.d_states, other.d_z, *other.gradients],
                        strict=True):
            assert a is None or torch.equal(a.nan_to_num(), b.nan_to_num())
    return traced
