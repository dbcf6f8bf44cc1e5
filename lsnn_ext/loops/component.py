"""Component: a recurrent component of a loop as a neuron that runs in the kernels."""
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor

from .._core.bits import find_attached
from .._core.decisions import listening
from ..codegen.call import RepeatedCall
from ..codegen.gradients import differentiate
from ..codegen.neuron import Neuron
from ..codegen.plain import draw_normal
from ..codegen.state import NeuronState
from ..codegen.trace import StepError
from .currents import Currents, RunInputs, make_coefficient
from .functions import is_elementwise
from .ir import Before, Fixed, Kind, Now, Numbers, Refused, Slot
from .products import Operands
from .recurrence import Recurrence, Register
from .rounding import DRAWS, PERTURBED_ULPS, find_distance, perturb
from .step import Step
from .values import Frame, Place

LEAST_CLOSE = 0.99  # share of numbers that agree: at a threshold rounding may decide
# By what their steps do: equal layers, and recordings of another batch, share the kernels.
_neurons: WeakValueDictionary[Any, Neuron] = WeakValueDictionary()


class Component:
    """Calls of a loop as one fused run for all iterations. Raises Refused."""

    def __init__(self, found: Recurrence, last: Collection[Place] = ()) -> None:
        """last: results of which only the last iteration is read."""
        self.found, self.last = found, last
        self.options = found.options
        step = Step(found)
        self.neuron = _neurons.setdefault(step.key, Neuron(step, step.axes))
        self.call, self.bounded = RepeatedCall(self.neuron), step.bounded
        slots = dict.fromkeys(slot for position in found.positions
                              for slot in found.loop.body[position].slots
                              if isinstance(slot, Slot) and not isinstance(slot, Numbers))
        inner = [slot for slot in slots if isinstance(slot, Now | Before)
                 and slot.position in found.reader.inside]
        self.outside = [slot for slot in slots if slot not in inner]
        self.initial = list(dict.fromkeys(value for slot in inner if isinstance(slot, Before)
                                          for value in slot.initial))
        self.currents = Currents(found)
        self.unused: set[Slot | int] = set()  # slots and values that get no gradient
        # those with a gradient, by result; empty: all results reach the same
        self.reached: dict[Place, set[Slot | int]] = {}
        self._check()

    def __call__(self, frame: Frame) -> None:
        """Sets frame.sequences and frame.last of what is read."""
        made = self.make_sequences(frame, self.last)
        frame.values.packed += [ref(one) for one in map(find_attached, made.values())
                                if one is not None]
        frame.last.update((place, made.pop(place)[-1]) for place in self.last)
        frame.sequences.update(made)

    def make_sequences(self, frame: Frame, last: Collection[Place] = ()) -> dict[Place, Tensor]:
        """Returns the results, (iterations, ...); of those in `last` at least the last one."""
        with torch.set_grad_enabled(self.found.reader.has_grad):
            given = self.find_inputs(frame)
            if frame.inputs is not None:
                frame.inputs[self] = given
            if not self.reached:
                return self._run(given, last)
            used: dict[int, set[Place]] = {}
            tensors = dict(given.tensors)
            keys = [key for key, one in tensors.items() if one.requires_grad]
            tensors.update(zip(keys, _DropUnreached.apply(
                used, self.reached, keys, *(tensors[key] for key in keys)), strict=True))
            made = self._run(given._replace(tensors=tensors), last)
            for place in self.reached:
                made[place].register_hook(partial(_note_used, used, place))
            return made

    def find_inputs(self, frame: Frame) -> RunInputs:
        tensors: dict[Slot | int, Any] = {slot: self._find_outside(slot, frame)
                                          for slot in self.outside}
        tensors |= {value: frame.values.get(value) for value in self.initial}
        return RunInputs(frame.iterations, {key: one.detach() if key in self.unused else one
                                            for key, one in tensors.items()})

    def _find_outside(self, slot: Slot, frame: Frame) -> Tensor | Operands:
        reader = self.found.reader
        fixed = frame.fixed(slot) if reader.is_invariant(slot) else None
        if fixed is not None:
            return fixed
        if self.currents.may_project(slot) and not self.reached:
            product = frame.find_product(slot)
            if product is not None and product.has_grad == reader.has_grad:
                return product
        return frame.sequence(slot)

    def make_arguments(self, given: RunInputs, is_projecting: bool = True) -> tuple[Any, ...]:
        """Returns x, w_rec, delay, state and coefficients of functional.recurrent, the results of
        the first iteration of calls that run ahead, and w_in and bias by name, empty if x is
        projected; is_projecting: as of Currents.make."""
        first = {}
        if self.found.ahead:
            ahead = {q for one in self.found.ahead for q in self.found.before(one, True)}
            first = self._run_calls(ahead, 1, given)[0]
        x, projection = self.currents.make(given, is_projecting)
        weights, delays = self.currents.make_weights(given)
        steps = range(max(delays, default=0) + 1)
        past = given.tensors, [first]
        states = {name: self.read_state(one, 0, *past)
                  for one, name in self.found.registers.items()}
        states = self.found.join_states(states | self.make_constants(given))
        coefficients = {name: self.found.populations.join_coefficient(make_coefficient(
            self.found, given.tensors[slot], shape), population)
            for (slot, shape, population), name in self.found.coefficients.items()}
        if self.found.copies > 1:
            coefficients["copy"] = torch.cat([torch.full((size,), k, **self.options)
                                              for k, size in enumerate(self.found.sizes)])
        return (x, weights, delays[0] if len(delays) == 1 else delays or 0,
                NeuronState(states, torch.stack([self.read_z(-1 - d, *past) for d in steps])),
                coefficients, first, projection)

    def make_constants(self, given: RunInputs) -> dict[str, Tensor]:
        """Returns states (B, N) that stay, by name."""
        return {name: self.found.turn(given.tensors[slot].expand(1, *shape)).reshape(
            self.found.rows, -1).to(**self.options, copy=True)
            for (slot, shape, _), name in self.found.constants.items()}

    def trace(self, given: RunInputs) -> dict[Place, Tensor]:
        """Returns the results and all that a later step reads, (iterations, ...)."""
        with torch.set_grad_enabled(self.found.reader.has_grad):  # which decides how it runs
            made = self._run(given, (), self.found.values)
        return {place: one.detach() for place, one in made.items()}

    def _run(self, given: RunInputs, last: Collection[Place] = (),
             places: Mapping[Place, str] | None = None) -> dict[Place, Tensor]:
        """Returns the values at places, by default the results."""
        x, weights, delay, state, coefficients, first, projection = self.make_arguments(given)
        places, retiming = places or self.found.places, self.found.retiming
        traced = {place for place, name in places.items() if not name.startswith("z") and (
            place not in last or place[0] in self.found.ahead or retiming.groups > 1)}
        spikes, after, traces = self.call(  # a trace has all states of all steps
            x, weights, delay, state, coefficients, bool(traced), **projection)
        found = {}
        for place, name in places.items():
            kind = self.found.reader.kind(*place)
            states = traces if place in traced else {
                name: one[None] for name, one in after.states.items()}
            one = self.found.take(place, name, spikes, states)
            if steps := self.found.ahead.get(place[0], 0):
                head = retiming.split(self.flatten(first[place], place)[None])
                one = torch.cat([head[:steps], one[:-steps]])
            one = self.restore(retiming.join(one, self.found.rows), place)
            found[place] = one.detach() if one.requires_grad > kind.requires_grad else one
        return found

    def _run_calls(self, positions: Collection[int], iterations: int,
                   given: RunInputs) -> list[dict[Place, Tensor]]:
        """Runs some calls one by one, and returns their results by iteration."""
        made: list[dict[Place, Tensor]] = [{} for _ in range(iterations)]

        def argument(slot: Any, t: int) -> Any:
            if not isinstance(slot, Slot):
                return slot
            if isinstance(slot, Numbers):
                return slot.values[t]
            if isinstance(slot, Now | Before) and slot.position in self.found.reader.inside:
                old = slot.initial if isinstance(slot, Before) else ()
                return given.tensors[old[t]] if t < len(old) else made[t - len(old)][slot[:2]]
            one = given.tensors[slot]
            if isinstance(one, Operands):
                return one._replace(source=one.source[t : t + 1]).compute()[0]
            return one if self.found.reader.is_invariant(slot) else one[t]

        for t in range(iterations):
            for position in sorted(positions):
                call, slots = self.found.loop.body[position]
                results = call.run([argument(slot, t) for slot in slots])
                made[t] |= {(position, k): one for k, one in enumerate(results)}
        return made

    def read_state(self, register: Register, step: int, initial: Mapping[Any, Tensor],
                   made: Sequence[Mapping[Place, Tensor]]) -> Tensor:
        """Returns what a register has before a step; initial: values from before the loop; made:
        results by iteration."""
        value = register.initial[step] if step < len(register.initial) else None
        return self._read(register.place, step - register.lag, value, initial, made)

    def read_z(self, step: int, initial: Mapping[Any, Tensor],
               made: Sequence[Mapping[Place, Tensor]]) -> Tensor:
        """Returns what a step emits; initial, made: as of read_state."""
        locate, history = self.found.retiming.locate, self.found.history
        return torch.cat([
            self._read(place, step, history.get((place, locate(place[0], step)[0])), initial, made)
            for place in self.found.emitted], 1)

    def _read(self, place: Place, step: int, value: int | None, initial: Mapping[Any, Tensor],
              made: Sequence[Mapping[Place, Tensor]]) -> Tensor:
        """Returns what a place has in a step; value: before the loop, None: 0."""
        iteration, group = self.found.retiming.locate(place[0], step)
        if iteration >= 0:
            one = self.flatten(made[iteration][place], place)
        elif value is None:
            one = torch.zeros(self.found.step_shape(place), **self.options)
        else:
            one = self.flatten(initial[value], place)
        return self.found.retiming.split(one[None])[group]

    def restore(self, values: Tensor, place: Place) -> Tensor:
        """Returns values (n, B, N) or (n, B, N, K) of the step as those of the loop."""
        kind = self.found.reader.kind(*place)
        if values.dim() == 4:
            values = self.found.put_axis_back(values)
        elif self.found.is_turned(kind.shape):
            values = values.transpose(1, 2)
            values = values.contiguous() if kind.is_contiguous else values
        return values.reshape(len(values), *kind.shape).to(kind.dtype)

    def flatten(self, tensor: Tensor, place: Place) -> Tensor:
        """Returns a value of the loop as one of the step, (B, N) or (B, N, K)."""
        shape = self.found.step_shape(place)
        if tensor.numel() != prod(shape):
            tensor = tensor.expand(self.found.reader.kind(*place).shape)
        # the caller may write to it before the backward pass, which reads it
        tensor = self.found.turn(tensor[None])[0].to(**self.options, copy=True)
        return tensor.reshape(shape) if len(shape) == 2 else self.found.put_axis_last(
            tensor.reshape(self.found.rows, -1), shape[2])

    # --------------------------------------------------------------------------- check
    def _check(self) -> None:
        """Compares results and gradients of a few iterations on random numbers with those of the
        calls themselves, which also traces and compiles the step; notes what has no gradient.
        Raises Refused."""
        found = self.found
        lags = [slot.lag for position in found.positions
                for slot in found.loop.body[position].slots if isinstance(slot, Before)]
        # within these iterations each value reaches each other one
        n = min(found.loop.iterations, max(lags, default=0) + 2 + len(found.registers))
        given = self._draw(n)
        inputs = [*given.tensors.values()]
        reasons: list[str] = []  # why a loop over time runs in the place of a kernel

        def note(kind: str, *facts: Any) -> None:
            if kind == "loop":
                reasons.append(facts[-1])

        def run_original(given: RunInputs) -> dict[Place, Tensor]:
            rows = self._run_calls(found.positions, n, given)
            return {place: torch.stack([row[place].expand(one.shape[1:]) for row in rows])
                    for place, one in made.items()}

        try:
            with listening(note):
                made = self._run(given)
            wanted = run_original(given)
            # each row up to a flip of a spike
            keep = torch.ones(n, found.rows, dtype=torch.bool, device=found.device)
            for place, result in made.items():
                close = found.turn(_find_close(result, wanted[place]))
                keep &= close.reshape(n, found.rows, -1).all(-1)
            keep = keep.cumprod(0).bool()
            got, want = (self._gradients(each, inputs, keep) for each in (made, wanted))
        except Exception as error:  # of any operator on random numbers
            text = re.sub(r" in (step|ir)\.py line .*", "", str(error))
            line: str = self.neuron.step.line  # type: ignore[attr-defined]
            if not isinstance(error, StepError):
                others = (one.call for one in found.calls if not (
                    one.is_copy or one.is_sum or one.parts or is_elementwise(one.call)))
                if (named := next(others, None)) is not None:
                    text, line = named.name, named.line
                text = f"expected calls that act on each neuron by itself, got {text}"
            raise Refused(text, line) from error
        last_line = found.line(max(found.nodes))
        if reasons:
            raise Refused(reasons[0], last_line)
        if any(one.requires_grad != wanted[place].requires_grad for place, one in made.items()):
            raise Refused("expected the requires_grad of the results of the original", last_line)

        def run_moved(seed: int) -> list[Tensor | None]:
            """Returns results and gradients of the calls from inputs that are moved by an ulp."""
            random = torch.Generator().manual_seed(seed)
            moved = _move_by_ulp(given.tensors, random)
            results = run_original(given._replace(tensors=moved))
            return [*results.values(), *self._gradients(results, [*moved.values()], keep)]

        pairs = [*zip([*made.values(), *got], [*wanted.values(), *want], strict=True)]
        if not all(_is_close(one, other) for one, other in pairs):
            runs = zip(*map(run_moved, range(DRAWS)), strict=True)
            if not all(_is_close(one, other, moved) for (one, other), moved in zip(
                    pairs, runs, strict=True)):
                raise Refused("expected elementwise calls, got other results from random inputs",
                              last_line)
        self.unused = {key for (key, one), gradient in zip(
            given.tensors.items(), want, strict=True) if one.requires_grad and gradient is None}
        try:
            reached = {place: {key for key, gradient in zip(given.tensors, self._gradients(
                {place: one}, inputs, keep), strict=True) if gradient is not None}
                for place, one in wanted.items() if one.requires_grad}
        except RuntimeError as error:
            raise Refused("expected a backward that can run again", last_line) from error
        self.reached = reached if len({*map(frozenset, reached.values())}) > 1 else {}
        if any(one.requires_grad for one in wanted.values()) and all(one is None for one in want):
            raise Refused("expected a surrogate with a gradient, got None", last_line)

    def _draw(self, n: int) -> RunInputs:
        random = torch.Generator().manual_seed(0)
        reader = self.found.reader
        matrices = {matrix for one in self.found.currents for product in one.products
                    for matrix, _ in (product[1:3], *product.then)}
        indices = {product.positions: product.inputs for one in self.found.currents
                   for product in one.products if product.positions is not None}

        def draw(kind: Kind, *sizes: int, is_matrix: bool = False) -> Tensor:
            one = draw_normal((*sizes, *kind.shape), random, torch.float64)
            if is_matrix:
                one = one / sum(self.found.sizes)**0.5  # values do not grow from step to step
            elif kind.dtype == torch.bool or not sizes:
                one = one > 0 if kind.dtype == torch.bool else one.abs()
            one = one.to(kind.device, kind.dtype)
            return one.requires_grad_(kind.requires_grad and reader.has_grad)

        def draw_slot(slot: Slot) -> Tensor:
            if slot in indices:
                return torch.arange(*reader.kind_of(slot).shape) % indices[slot]
            if slot in self.found.integers:
                kind = reader.kind_of(slot)
                return torch.full(kind.shape, self.found.integers[slot], dtype=kind.dtype,
                                  device=kind.device)
            known = reader.recording.read.get(slot.value) if isinstance(slot, Fixed) else None
            return draw(reader.kind_of(slot), *() if reader.is_invariant(slot) else (n,),
                        is_matrix=slot in matrices) if known is None else known

        tensors: dict[Slot | int, Tensor] = {slot: draw_slot(slot) for slot in self.outside}
        for value in self.initial:
            one = draw(reader.kinds[value])
            tensors[value] = torch.zeros_like(one) if value in self.found.zeros else one
        return RunInputs(n, tensors)

    def _gradients(self, made: Mapping[Place, Tensor], inputs: Sequence[Tensor],
                   keep: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of a sum with random factors, of iterations and rows to keep."""
        random = torch.Generator().manual_seed(1)
        terms = [(self.found.turn(one * draw_normal(one.shape, random).to(one)).reshape(
            *keep.shape, -1) * keep[..., None]).sum()
            for _, one in sorted(made.items()) if one.requires_grad]
        return differentiate(terms, inputs, list(map(torch.ones_like, terms)))


class _DropUnreached(torch.autograd.Function):
    """Identity whose gradient is None for inputs that no used result depends on; used: by backward
    pass, since several may run at a time; a pass that raises leaves its entry."""

    @staticmethod
    def forward(ctx: Any, used: dict[int, set[Place]], reached: Mapping[Place, set[Slot | int]],
                keys: Sequence[Slot | int], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.used, ctx.reached, ctx.keys = used, reached, keys
        ctx.set_materialize_grads(False)
        return tuple(one.view_as(one) for one in inputs)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> tuple[Tensor | None, ...]:
        places = ctx.used.pop(torch._C._current_graph_task_id(), ())
        found = {key for place in places for key in ctx.reached[place]}
        return None, None, None, *(one if key in found else None
                                   for key, one in zip(ctx.keys, g, strict=True))


def _note_used(used: dict[int, set[Place]], place: Place, gradient: Tensor | None) -> None:
    if gradient is not None:
        used.setdefault(torch._C._current_graph_task_id(), set()).add(place)


def _find_close(got: Tensor, want: Tensor) -> Tensor:
    """Returns where numbers agree, relative to the largest number."""
    got, want = got.detach().double(), want.detach().double()
    largest = want.abs().nan_to_num(0.0, 0.0).max().item() if want.numel() else 0.0
    return torch.isclose(got, want, 1e-3, 1e-3 * largest, equal_nan=True)


def _is_close(got: Tensor | None, want: Tensor | None, moved: Sequence[Tensor | None] = ()) -> bool:
    """Whether LEAST_CLOSE of the numbers agree, or they differ little more than those of moved
    inputs."""
    if got is None or want is None:
        return want is None
    if bool(_find_close(got, want).double().mean() > LEAST_CLOSE) or not want.numel():
        return want.numel() > 0
    spread = [float(find_distance(one, want).max()) for one in moved if one is not None]
    return float(find_distance(got, want).max()) <= PERTURBED_ULPS * max(spread, default=0.0)


def _move_by_ulp(tensors: Mapping[Any, Tensor], random: torch.Generator) -> dict[Any, Tensor]:
    return {key: perturb(one.detach(), torch.finfo(one.dtype).eps * one.detach().abs(), 0, random)
            .requires_grad_(one.requires_grad) if one.is_floating_point() else one
            for key, one in tensors.items()}
