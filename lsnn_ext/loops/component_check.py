"""check_component: a kernel against the recorded calls in its place."""
from functools import partial

import torch
from torch import Tensor

from .. import functional
from ..codegen.state import NeuronState
from .component import Component
from .expected import Expected
from .ir import Before, Call, Loop, Now, find_initial
from .rounding import compare_gradients, run_perturbed_call

LARGEST = 1 << 24  # numbers of a state in one call of a kernel


def check_component(expected: Expected, loop: Loop, component: Component) -> float:
    """Returns the largest relative difference of a gradient. Raises VerificationError."""
    with torch.no_grad():
        _check_steps(expected, loop, component)
    if not component.found.reader.has_grad:
        return 0.0
    return _check_gradients(expected, loop, component)


def _check_steps(expected: Expected, loop: Loop, component: Component) -> None:
    """Compares the results of each step, from recorded numbers, in batches."""
    found, retiming, ahead = component.found, component.found.retiming, component.found.ahead
    given = component.find_inputs(expected.frame(loop, found.reader.inside))
    x, weights, delay, state, coefficients, *_ = component.make_arguments(given, False)
    constants = component.make_constants(given)

    past = expected.numbers, [{(q, k): expected.numbers[value] for q, values in enumerate(made)
                               for k, value in enumerate(values)} for made in loop.made]

    def calls(position: int, t: int) -> list[Call]:
        """Returns the calls of the steps that make a result of an iteration."""
        lags = {q: ahead.get(q, 0) - ahead.get(position, 0) for q in found.positions}
        steps = sorted((t + lag // retiming.groups, q) for q, lag in lags.items()
                       if not lag % retiming.groups)
        return [expected.makers[loop.made[s][q][0]] for s, q in steps if 0 <= s < loop.iterations]

    rows, groups = retiming.count_rows(found.rows), retiming.groups
    last = loop.iterations * groups - max(ahead.values(), default=0)
    chunk = max(1, LARGEST // (found.rows * sum(found.sizes))) * groups
    for start in range(0, last, chunk):
        # results of whole iterations: of calls that run ahead, those that start in these steps
        steps = range(start, min(start + chunk + groups - 1, last))
        states = found.join_states({
            **{name: torch.cat([component.read_state(one, step, *past) for step in steps])
               for one, name in found.registers.items()},
            **{name: one.repeat(len(steps), 1) for name, one in constants.items()}})
        z = torch.stack([torch.cat([component.read_z(step - 1 - d, *past) for step in steps])
                         for d in range(len(state.z))])
        inner = x[start : steps.stop].reshape(1, len(steps) * rows, *x.shape[2:])
        spikes, _, traces = functional.recurrent(  # type: ignore[misc]
            inner, weights, component.neuron, delay=delay, state=NeuronState(states, z),
            trace=True, **coefficients)  # type: ignore[arg-type]
        for (q, k), name in found.values.items():
            if name.startswith("z") and (q, k) not in found.places:
                continue  # a flip of these may have no explanation in the calls of its step alone
            one = found.take((q, k), name, spikes, traces)
            one = one.reshape(len(steps), rows, *one.shape[2:])
            first = -(-(start + ahead.get(q, 0)) // groups)  # the first whole iteration
            one = one[first * groups - start - ahead.get(q, 0):][:chunk]
            one = retiming.join(one[:len(one) // groups * groups], found.rows)
            expected.compare(loop, (q, k), component.restore(one, (q, k)), first,
                             partial(calls, q))


def _check_gradients(expected: Expected, loop: Loop, component: Component) -> float:
    """Compares gradients of the component, from its recorded inputs, with those of its calls at the
    numbers of the component, as spikes that flip by rounding change all that follows."""
    found, kinds = component.found, expected.recording.kinds
    frame = expected.frame(loop, found.reader.inside)
    frame.inputs = {}
    frame.values.tensors = values = dict(expected.numbers)
    leaves: list[Tensor] = []

    def add_leaf(one: Tensor) -> Tensor:
        leaves.append(one.detach().requires_grad_())
        return leaves[-1]

    # those of an argument are one leaf: nothing may read what the last iteration makes of its own
    outside = [[*find_initial(slot)] for slot in component.outside]
    for each in (*outside, *([value] for value in component.initial)):
        new = [value for value in dict.fromkeys(each)
               if kinds[value].requires_grad and values[value] is expected.numbers[value]]
        if new:
            values.update(zip(new, add_leaf(torch.stack([values[value] for value in new])),
                              strict=True))
    for place in dict.fromkeys(slot[:2] for slot in component.outside
                               if isinstance(slot, Now | Before)):
        made = [one[place[0]][place[1]] for one in loop.made]
        if not any(kinds[value].requires_grad for value in made):
            continue
        if place in frame.invariant:
            frame.invariant[place] = add_leaf(frame.invariant[place])
            values.update(dict.fromkeys(made, leaves[-1]))
        else:
            frame.sequences[place] = add_leaf(frame.sequences[place])
            values.update(zip(made, leaves[-1].unbind(0), strict=True))
    sequences = component.make_sequences(frame)
    calls = [expected.makers[made[q][0]] for made in loop.made for q in found.positions]
    traced = component.trace(frame.inputs[component])
    numbers = {made[q][k]: number for (q, k), one in traced.items()
               for made, number in zip(loop.made, one, strict=True)}

    def run_calls(random: torch.Generator | None) -> tuple[list[Tensor], list[Tensor]]:
        again = dict(values)
        for call in calls:
            run_perturbed_call(call, again, numbers, random)
        return [torch.stack([again[made[q][k]] for made in loop.made])
                for q, k in found.places], leaves

    return compare_gradients([sequences[place] for place in found.places], run_calls(None)[0],
                             leaves, leaves, [found.line(found.z[0])] * len(leaves), run_calls)
