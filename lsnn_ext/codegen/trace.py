"""Traces a step that is written in PyTorch, and its gradient, as a program."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .calls import META, Call, Place, Size, as_tensor, find_needed, repeat_calls
from .form import Form, get_form
from .gradients import differentiate
from .graph import Graph
from .integers import Range, check_integers
from .number import NumberArithmetic
from .program import LIMITS, Node, Program, Prologue
from .values import Fixed, Resize, Row, StepError
from .wide import WideTracer

__all__ = ["StepError", "Traced", "trace"]

# Sizes (B, N) of two traces, which must agree: distinct, small and large, larger than any axis.
SIZES = ((19, 23), (1511, 2531))
# Operators of a program that torch has by no such name, for coefficients.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "fma": lambda a, b, c: torch.addcmul(c, a, b), "select": lambda m, a, b: torch.where(
        m != 0, a, b), "float32": lambda a: a.float().double(), "and": torch.logical_and,
    "or": torch.logical_or, "not": torch.logical_not}


class Traced(NamedTuple):
    """A program, and a function that computes its coefficients."""

    program: Program
    prologue: Prologue


class _Joint(NamedTuple):
    """A trace of a step and its gradient for one size."""

    graph: Graph
    tracer: WideTracer
    results: list[int]
    d_inputs: list[int | None]  # of currents, states', z'
    gradients: list[int | None]


def trace(step: Callable[..., Any], *, currents: int, states: int, dtype: torch.dtype,
          coefficients: Mapping[str, Tensor | float],
          forms: Sequence[Form] | None = None, ranges: Sequence[Range] = (),
          steps: int = 1) -> Traced:
    """Returns the program of a step. Raises StepError, which names the line, for what no program
    can express.

    Args:
        step: step(c_1, ..., c_K, s_1, ..., s_S, z, *, coefficients...) -> (s_1, ..., s_S, z), of
            elementwise operators on tensors (B, N).
        currents, states: K and S.
        dtype: of currents, states and spikes: torch.float32 or torch.float64.
        coefficients: numbers, or tensors (), (N,), or (1, K) or (N, K) with an axis. Values are not
            read; only their kinds matter. Each floating-point tensor has a gradient, with one
            row for each row of its form.
        forms: of the states, which the program sees as one state for each row. Default: real, (B,
            N).
        ranges: of the numbers of currents, and of states before the first step, if all are
            integers. Default: unknown.
        steps: how many steps integers count at most.
    """
    if dtype not in (torch.float32, torch.float64):
        raise StepError(f"step: expected float32 or float64, got {dtype}")
    forms = [Form()] * states if forms is None else forms
    neurons = None
    joints: list[_Joint] = []
    while len(joints) < len(SIZES):
        batch, n = SIZES[len(joints)]
        try:
            joints.append(_trace_sizes(step, currents, forms, dtype, coefficients, batch,
                                       neurons or n))
        except Resize as size:
            if neurons is not None:
                raise StepError(f"step: expected closed-over tensors of one size, got "
                                f"({neurons},) and ({size.neurons},)") from None
            neurons = size.neurons
            joints.clear()
    rows = sum(form.rows() for form in forms)
    _check_integers(joints[-1], currents, forms, ranges, steps)
    first, second = (_finish(joint, currents, rows, dtype) for joint in joints)
    if first[:2] != second[:2] or not _are_equal(first[2], second[2]):
        raise StepError("step: expected the same operators for all sizes (B, N) and in each call, "
                        "got others; the size or a counter enters a value")
    program, recipes, calls = second
    return Traced(program, _make_prologue(program, recipes, calls, neurons))


def _are_equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a is b or (isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and _are_equal(tuple(a.items()), tuple(b.items()))
    if isinstance(a, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(_are_equal, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


# ----------------------------------------------------------------------------------------- tracing
def _make_coefficient(tracer: WideTracer, value: Tensor | float, name: str, place: int) -> Tensor:
    """Returns a coefficient without values."""
    call = tracer.call("coefficient", (place,), is_number=not isinstance(value, Tensor))
    if not isinstance(value, Tensor):
        if not isinstance(value, float | int):
            raise StepError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
        return tracer.give(torch.empty((), dtype=torch.float64, device=META), call, True)
    if value.dim() > 2:
        raise StepError(f"{name}: expected a tensor of shape (), (N,), (1, K) or (N, K), got one "
                        f"of shape {tuple(value.shape)}")
    if value.dtype in (torch.float16, torch.bfloat16, torch.complex32):
        raise StepError(f"{name}: expected float32 or float64, got {value.dtype}")
    form, shape = get_form(value), [tracer.neurons] * value.dim()
    if form.axis:
        shape = [1 if value.shape[0] == 1 else tracer.neurons, form.axis]
    made = torch.empty(shape, dtype=value.dtype, device=META)
    if form == Form():
        tracer.give(made, call, is_input=True)
    else:
        tracer.axes.add(form.axis)
        tracer.give_whole(made, form, call)
    return made.requires_grad_(value.dtype.is_floating_point or value.is_complex())


def _make_rows(tracer: WideTracer, forms: Sequence[Form], dtype: torch.dtype,
               first: int) -> list[Tensor]:
    """Returns arguments of these forms, whose rows are the inputs from `first` on."""
    B, N = tracer.batch, tracer.neurons
    made = []
    for form in forms:
        parts = [tracer.give(torch.empty(B, N, dtype=dtype, device=META), Row(first + i))
                 for i in range(form.rows())]
        first += len(parts)
        whole = torch.empty(form.shape(B, N), dtype=form.dtype(dtype), device=META)
        tracer.axes.add(form.axis)
        made.append(parts[0] if form == Form() else tracer.give_rows(whole, form, parts))
    return made


def _trace_sizes(step: Callable[..., Any], currents: int, forms: Sequence[Form], dtype: torch.dtype,
                 coefficients: Mapping[str, Tensor | float], batch: int, neurons: int) -> _Joint:
    rows = sum(form.rows() for form in forms)
    inputs, real = currents + rows + 1, (Form(),)
    graph = Graph(dtype, inputs, rows + 1)
    tracer = WideTracer(graph, batch, neurons)
    # TorchScript runs other operators once it has seen some calls, unless told not to.
    with torch.inference_mode(False), torch.enable_grad(), torch.jit.optimized_execution(
            False), torch.device("cpu"):
        given = {name: _make_coefficient(tracer, value, name, i)
                 for i, (name, value) in enumerate(coefficients.items())}
        before = [x.requires_grad_() for x in _make_rows(
            tracer, (*real * currents, *forms, *real), dtype, 0)]
        after = _make_rows(tracer, (*forms, *real), dtype, inputs)
        # Copies are no leaves of autograd, so that the step can write to them in place.
        copies = tracer.run(lambda: [x.clone() for x in before])
        with NumberArithmetic(tracer):
            results = tracer.run(step, *copies, **given)
        results = _check_results(tracer, results, forms, dtype)
        tracer.is_backward = True
        with NumberArithmetic(tracer):
            gradients = tracer.run(differentiate, results, [*before, *given.values()], after,
                                   has_modes=True)
        nodes = [tracer.read(part, dtype) for x in results for part in tracer.rows_of(x)]
        found = [_find_gradients(tracer, x, form, dtype) for x, form in zip(
            gradients, (*real * currents, *forms, *real), strict=False)]
        of_coefficients = [
            _find_gradients(tracer, x, get_form(value) if isinstance(value, Tensor) else Form(),
                            dtype, name)
            for (name, value), x in zip(coefficients.items(), gradients[len(before):], strict=True)]
    return _Joint(graph, tracer, nodes, sum(found, []), sum(of_coefficients, []))


def _check_results(tracer: WideTracer, results: Any, forms: Sequence[Form],
                   dtype: torch.dtype) -> list[Tensor]:
    states = len(forms)
    results = [results] if isinstance(results, Tensor) and not states else results
    if not isinstance(results, tuple | list) or len(results) != states + 1:
        count = len(results) if isinstance(results, tuple | list) else "one"
        raise StepError(f"step: expected {states + 1} results, got {count}")
    names = [*(f"state {i}" for i in range(states)), "the spike"]
    whole = []
    for name, x, form in zip(names, results, (*forms, Form()), strict=True):
        if not isinstance(x, Tensor):
            raise StepError(f"step: expected tensors as results, got {name} of type "
                            f"{type(x).__name__}")
        wanted = form.dtype(dtype)
        if x.dtype != wanted and not (form.is_complex and x.dtype == dtype):
            raise StepError(f"step: expected results of {wanted}, got {name} of {x.dtype}; cast it "
                            f"with .to(x.dtype)")
        shape = form.shape(tracer.batch, tracer.neurons)
        if (tracer.form_of(x).axis > 0) != (form.axis > 0) or x.dim() > len(shape):
            axis = f", {form.axis}" if form.axis else ""
            raise StepError(f"step: expected {name} of shape (B, N{axis}), got one of shape "
                            f"{tuple(x.shape)}, where (B, N) is {shape[:2]}; axes= declares an "
                            f"axis, and unsqueeze(-1) makes one")
        whole.append((x, shape, wanted))
    return tracer.run(lambda: [x.to(wanted).expand(shape) for x, shape, wanted in whole])


def _find_gradients(tracer: WideTracer, gradient: Tensor | None, form: Form,
                    dtype: torch.dtype, coefficient: str | None = None) -> list[int | None]:
    if gradient is None:
        return [None] * form.rows()
    return [_find_gradient(tracer, part, dtype, coefficient) for part in tracer.rows_of(gradient)]


def _find_gradient(tracer: WideTracer, gradient: Tensor, dtype: torch.dtype,
                   coefficient: str | None = None) -> int | None:
    if tracer.is_zero(gradient):
        return None
    known = tracer.value(gradient)
    if coefficient is None and isinstance(known, Row) and known.is_sum:
        raise StepError("step: expected elementwise operators, got a gradient of a current or a "
                        "state that is a sum over the batch")
    node = tracer.read(gradient, dtype)
    if tracer.graph.value(node) == 0:
        return None
    if coefficient is not None and isinstance(known, Fixed):
        raise StepError(f"step: expected a gradient of {coefficient} that is linear in those of "
                        f"the results, got one that does not depend on them")
    return node


def _check_integers(joint: _Joint, currents: int, forms: Sequence[Form], ranges: Sequence[Range],
                    steps: int) -> None:
    rows = [1] * currents + [form.rows() for form in forms]
    each = [one for one, n in zip(ranges, rows, strict=False) for _ in range(n)]
    results = {currents + k: place for k, place in enumerate(joint.results[:-1])}
    check_integers(joint.graph, dict(enumerate(each)), results, steps)


# -------------------------------------------------------------------------------------- the program
def _finish(joint: _Joint, currents: int, states: int,
            dtype: torch.dtype) -> tuple[Program, list[Any], tuple[Call, ...]]:
    """Returns the program in its final order, its coefficient rows, and the calls for them."""
    graph = joint.graph
    outputs = [*joint.d_inputs, *joint.gradients]
    # by a mean each spike reaches each neuron
    has_means = any(graph.nodes[i].operator == "mean" for i in graph.reachable(outputs))
    slopes = None if has_means else graph.find_slopes(
        graph.forward_inputs + graph.gradient_inputs - 1, outputs)
    live = graph.reachable([*joint.results, *outputs, *(slopes or ())])
    # Rows: what other nodes, or results, read of what depends on coefficients only.
    ends = {*joint.results, *(slopes or ()), *(i for i in outputs if i is not None)}
    read = {i for place in live if place not in graph.fixed for i in graph.nodes[place].arguments}
    rows = sorted(i for i in (read | ends) & graph.fixed if graph.value(i) is None)
    inside = range(graph.forward_inputs)
    after = range(graph.forward_inputs, graph.forward_inputs + graph.gradient_inputs)
    order = [*inside, *rows, *after]
    order += sorted(i for i in live if i not in graph.fixed and i >= after.stop)
    constants = sorted(i for i in (read | ends) & graph.fixed if graph.value(i) is not None)
    head = len(inside) + len(rows) + len(after)
    order[head:head] = constants
    place_of = {old: new for new, old in enumerate(order)}
    nodes = []
    for new, old in enumerate(order):
        node = graph.nodes[old]
        nodes.append(Node("input") if new < head else node._replace(
            arguments=tuple(place_of[i] for i in node.arguments)))

    def move(places: Sequence[int | None]) -> tuple[Any, ...]:
        return tuple(None if i is None else place_of[i] for i in places)

    counts = {"currents": currents, "states": states, "coefficients": len(rows),
              "gradients": len(joint.gradients),
              "means": sum(one.operator == "mean" for one in nodes)}
    for name, limit in LIMITS.items():
        if counts[name] > limit:
            raise StepError(f"step: expected at most {limit} {name}, got {counts[name]}; a complex "
                            f"number counts as 2, an axis of its own as its size")
    d_inputs = move(joint.d_inputs)
    results = move(joint.results)
    program = Program(
        dtype, currents, states, len(rows), tuple(nodes), results[:-1], results[-1],
        joint.results[-1] in graph.zero_or_one, None if slopes is None else move(slopes),
        d_inputs[:currents], d_inputs[currents:-1], d_inputs[-1], move(joint.gradients))
    return program, *_find_recipes(joint, rows)


def _find_recipes(joint: _Joint, rows: Sequence[int]) -> tuple[list[Any], tuple[Call, ...]]:
    """Returns how each row is computed, and the calls for that, renumbered. A recipe is (call,
    dtype), a number, or (operator, recipes): an operator of the program."""
    graph, calls = joint.graph, joint.tracer.calls
    keys: dict[int, Any] = {place: key for key, place in graph._places.items()}
    wanted = [keys[i][1] for i in graph.reachable(rows) if i in graph.coefficients]
    needed = find_needed(calls, wanted)
    new = {old: i for i, old in enumerate(needed)}

    def renumber(value: Any) -> Any:
        if isinstance(value, Place):
            return Place(new[value])
        if isinstance(value, tuple) and not isinstance(value, Size):
            return tuple(map(renumber, value))
        return value

    def recipe(place: int) -> Any:
        node = graph.nodes[place]
        if place in graph.coefficients:
            _, call, dtype = keys[place]
            return (new[call], dtype)
        if node.operator == "constant":
            return node.value
        return (node.operator, tuple(map(recipe, node.arguments)))

    kept = tuple(calls[i]._replace(
        arguments=renumber(calls[i].arguments),
        keywords={key: renumber(x) for key, x in calls[i].keywords.items()}) for i in needed)
    return [recipe(i) for i in rows], kept


def _make_prologue(program: Program, rows: Sequence[Any], calls: Sequence[Call],
                   neurons: int | None) -> Prologue:
    def prologue(coefficients: Sequence[Tensor | float], device: torch.device) -> list[Tensor]:
        sizes = {x.shape[0] for x in coefficients if isinstance(x, Tensor) and x.dim()}
        sizes |= set() if neurons is None else {neurons}
        if len(sizes - {1}) > 1:
            raise StepError(f"coefficients: expected one number of neurons, got {sorted(sizes)}")
        with torch.no_grad():
            results = repeat_calls(calls, range(len(calls)), max(sizes, default=1), coefficients,
                                   device)

            def compute(recipe: Any) -> Tensor:
                if not isinstance(recipe, tuple):
                    return torch.full((), recipe, dtype=program.dtype, device=device)
                first, second = recipe
                if isinstance(first, int):
                    value = as_tensor(results[first], device)
                    value = value if second is None else value.to(second)
                    # a copy: closed-over tensors may change later
                    return value.to(device, program.dtype, copy=True)
                function = _FUNCTIONS.get(first) or getattr(torch, first)
                return function(*map(compute, second)).to(program.dtype)

            found = [compute(x) for x in rows]
        return [x.reshape(()) if x.numel() == 1 else x.reshape(-1) for x in found]

    return prologue
