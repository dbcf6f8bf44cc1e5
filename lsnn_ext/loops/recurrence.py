"""Recurrence: the calls of a recurrent component as steps of the kernels.

Calls that run ahead (retiming) run for the first iteration before the first step. What enters only
a sum with a product is added to the current outside. Each value that is read outside is z or a
state. A value of `width` times as many numbers as z has an axis of this size in the step, behind
that of the neurons. In the loop it is behind, too, or in front of them where calls such as chunk
take it apart, as the gates of an LSTM.
"""
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..codegen.form import MAX_AXIS, Form
from ..codegen.program import find_reachable
from .costs import DENSE, MULTIPLICATION, estimate_call
from .functions import is_operator
from .integers import find_number
from .ir import Before, Call, Fixed, Loop, Now, Numbers, Recording, Refused, Slot, Varying
from .nodes import Node, Nodes
from .populations import Populations
from .reader import Current, FirstTerms, LaterTerm, Name, Product, Read, Reader, StepCall
from .retiming import find_retiming
from .values import Place

LEAST_NEURONS = 64  # of a feature map


class Register(NamedTuple):
    """A value of `lag` steps of the kernels before."""

    place: Place
    lag: int  # >= 1
    initial: tuple[int, ...]  # the value of each step before the loop, oldest first

    def after(self) -> "Register":
        """Returns the register whose value this one has a step later."""
        return Register(self.place, self.lag - 1, self.initial[1:])


class Recurrence:
    """The calls of a component as steps of the kernels. Raises Refused."""

    def __init__(self, loop: Loop, positions: Sequence[int], read: set[Place],
                 recording: Recording) -> None:
        """positions: a strongly connected set of calls of the body, and elementwise ones that
        follow; read: their results that are needed outside."""
        self.loop, self.reader = loop, Reader(loop, positions, recording)
        self.outputs = sorted(read)
        found = Nodes(self.reader, self.outputs)
        self.nodes, self.emitted, self.zeros, self.line = (
            found.by_position, found.emitted, found.zeros, found.line)
        self.z = self.emitted[0]
        self.retiming, self.history = find_retiming(found), found.find_history()
        self.ahead = self.retiming.ahead  # steps, by position
        self.device = self.reader.find_device(self.nodes)
        self.dtype = self.reader.find_dtype(self.nodes)
        self.options: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        self.rows, sizes = self._find_sizes(found)
        self.populations = Populations(found, sizes)
        self.sizes, self.copies = self.populations.sizes, self.populations.copies
        self.has_axis_first = any(map(self._find_parts, self.nodes))
        self.currents: dict[Current, str] = {}
        # what has no axis of the batch and does not change: slot, shape of the result, population
        self.coefficients: dict[tuple[Slot, tuple[int, ...], int], str] = {}
        self.registers: dict[Register, str] = {}
        # values from outside that differ by row, but not by iteration: states that stay
        self.constants: dict[tuple[Slot, tuple[int, ...], int], str] = {}
        self.integers: dict[Slot, int] = {}  # arguments that are one number in each call
        # the order of the step: calls that run ahead are last
        order = sorted(self.nodes.values(), key=lambda one: (self.ahead.get(one.position, 0),
                                                             one.position))
        self.numbers = {node.position: k for k, node in enumerate(order)}
        self.calls = tuple(map(self._translate, order))
        if not self.currents:  # a step has one
            self._name_current(Current((), (), (), 0, self.populations.of_copy[0]))
        self.places = {place: self._name_output(place) for place in self.outputs}
        # with what later steps read
        self.values = {**{place: self._name_z(place) for place in self.emitted},
                       **{one.place: name for one, name in self.registers.items() if one.lag == 1},
                       **self.places}
        population = self.populations.of_call
        self.shared_currents = self.populations.share(
            (name, one.population, self.width(one.shape)) for one, name in self.currents.items())
        self.shared_states = self.populations.share([
            *((name, population[one.place[0]], self.width(self.reader.kind(*one.place).shape))
              for one, name in self.registers.items()),
            *((name, one[2], 1) for one, name in self.constants.items())])
        self.positions = sorted({one for place in self.outputs
                                 for one in self.before(place[0], False)})

    # --------------------------------------------------------------------------- analysis
    def _find_sizes(self, nodes: Nodes) -> tuple[int, tuple[int, ...]]:
        """Returns B, and N of each copy; B times such an N is the size of each value."""
        shape = self.reader.kind(*self.z).shape
        products = nodes.list_products()
        inputs = {source[:2]: product.inputs for _, product, source in products}
        neurons = inputs[self.z] if products else self._choose_neurons(shape)
        rows = prod(shape) // max(neurons, 1)
        sizes = tuple(inputs.get(one, neurons) for one in self.emitted)
        places = {(one.position, one.output) for node in self.nodes.values()
                  for one in nodes.reads(node)}
        for place in places.union(self.outputs):
            kind = self.reader.kind(*place)
            width, rest = divmod(prod(kind.shape), max(rows * neurons, 1))
            if len({*sizes}) > 1:
                if not rows or prod(kind.shape) not in {rows * size for size in sizes}:
                    counts = " or ".join(map(str, sorted({*sizes})))
                    raise Refused(f"expected values of {counts} numbers a row, as the populations "
                                  f"have, got {tuple(kind.shape)}", self.line(place[0]))
            elif rest or not 1 <= width <= MAX_AXIS:
                raise Refused(f"expected values of as many numbers as shape {tuple(shape)} has, or "
                              f"up to {MAX_AXIS} times as many, got {tuple(kind.shape)}",
                              self.line(place[0]))
        for place in self.outputs:
            kinds = {self.reader.kinds[made[place[0]][place[1]]][:2] for made in self.loop.made}
            if len(kinds) > 1:
                raise Refused("expected results of one shape and dtype in all iterations",
                              self.line(place[0]))
        calls = [self.loop.body[q].call for q in self.reader.inside]
        original = sum(estimate_call(call, self.reader.kinds) for call in calls)
        work = 0  # multiplications of a step beyond those of its matrices
        blocks: set[tuple[int, int]] = set()
        for node, product, source in products:
            matrix, is_transposed = (product[1:3], *product.then)[-1]
            shape = self.reader.kind_of(matrix).shape[-2:]
            outputs = prod(self.reader.kind(node.position, 0).shape) // rows
            numbers = prod(self.reader.kind(*source[:2]).shape)
            if product.inputs * rows != numbers or (
                    shape[0 if is_transposed else 1] != outputs):
                wanted = outputs, numbers // max(rows, 1)
                raise Refused(f"expected a recurrent matrix of shape {wanted}, got "
                              f"{tuple(shape)}", self.line(node.position))
            series = [self.reader.kind_of(one[0]).shape for one in (product[1:3], *product.then)]
            is_first = (block := (node.position, source.lag)) not in blocks
            blocks.add(block)
            work += rows * (is_first * outputs * product.inputs - sum(map(prod, series)))
        if DENSE * MULTIPLICATION * work > original:
            raise Refused(f"expected matrices that are faster as one product, got shapes "
                          f"{', '.join(str(tuple(one)) for one in series)}",
                          self.line(node.position))
        return rows, sizes

    def _choose_neurons(self, shape: tuple[int, ...]) -> int:
        """Returns N of a component without products. Of feature maps each one is an item, so that
        the states of a tile stay in the cache, unless coefficients differ by map."""
        coefficients = [slot for position in self.nodes for slot in self.loop.body[position].slots
                        if isinstance(slot, Slot) and self.reader.is_invariant(slot)]
        sizes = [prod(shape[axes:]) for axes in range(1, len(shape))]
        if all(prod(self.reader.kind_of(slot).shape) == 1 for slot in coefficients):
            return ([N for N in sizes if N >= LEAST_NEURONS] or sizes[:1] or [prod(shape)])[-1]
        return (sizes or [prod(shape)])[0]

    def size(self, shape: Sequence[int]) -> int:
        """Returns N of a value."""
        return self.sizes[0] if len({*self.sizes}) == 1 else prod(shape) // self.rows or 1

    def width(self, shape: tuple[int, ...]) -> int:
        """Returns the size of the own axis of a value in the step; 1: it has none."""
        return prod(shape) // (self.rows * self.size(shape)) or 1

    def is_turned(self, shape: Sequence[int]) -> bool:
        """Whether values of the loop are (N, B)."""
        size = self.size(shape)
        return tuple(shape) == (size, self.rows) != (self.rows, size)

    def turn(self, values: Tensor) -> Tensor:
        """Returns values (n, N, B) as (n, B, N), and others as they are."""
        return values.transpose(1, 2) if self.is_turned(values.shape[1:]) else values

    def step_shape(self, place: Place) -> tuple[int, ...]:
        """Returns (B, N) or (B, N, K)."""
        shape = self.reader.kind(*place).shape
        width = self.width(shape)
        return Form(width if width > 1 else 0).shape(self.rows, self.size(shape))

    def put_axis_last(self, tensor: Tensor, width: int) -> Tensor:
        """Returns values (..., N K) in the order of the loop as (..., N, K)."""
        if not self.has_axis_first:
            return tensor.unflatten(-1, (-1, width))
        return tensor.unflatten(-1, (width, -1)).transpose(-1, -2)

    def put_axis_back(self, tensor: Tensor) -> Tensor:
        """Returns values (..., N, K) as (..., N K) in the order of the loop."""
        return (tensor.transpose(-1, -2) if self.has_axis_first else tensor).flatten(-2)

    def take(self, place: Place, name: str, spikes: Tensor,
             states: Mapping[str, Tensor]) -> Tensor:
        """Returns a result of a run, (..., B, N) or with an axis of its own."""
        if name.startswith("z"):
            return spikes if name == "z" else self.populations.take(
                int(name[1:]), spikes, spikes.dim() - 1)
        values = next(states[one] for one, names in self.shared_states.items()
                      if name in names.values())
        copy = self.populations.of_copy.index(self.populations.of_call[place[0]])
        return self.populations.take(copy, values, spikes.dim() - 1)

    def join_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns states (B, N) or (B, N, K) of populations as those of the kernels."""
        return {one: self.populations.join({key: states[name] for key, name in names.items()}, 1)
                for one, names in self.shared_states.items()}

    # --------------------------------------------------------------------------- the step
    def _translate(self, node: Node) -> "StepCall":
        """Returns a call with names for its arguments."""
        position, call = node.position, self.loop.body[node.position].call
        kind = self.reader.kind(position, 0)
        ahead = self.ahead.get(position, 0)
        places = self.loop.list_places([position])
        names = tuple(map(self.name_result, places))
        widths = tuple(self.width(self.reader.kind(*place).shape) for place in places)
        if parts := self._find_parts(position):
            read = self.reader.read(self.loop.body[position].slots[0])
            return StepCall(call, (self._name_read(read, ahead),), names, widths=widths,
                            parts=parts)
        if call.name == "layer_norm":
            self.reader.check_norm(position, 0 if self.copies > 1 else self.size(kind.shape))
        if node.terms is None:
            is_copy = self.reader.source(position) is not None
            leaves = tuple(
                None if is_copy and isinstance(slot, Fixed) else slot if not isinstance(slot, Slot)
                else self._name_argument(slot, position) for slot in self.loop.body[position].slots)
            return StepCall(call, leaves, names, is_copy, widths=widths)
        if kind.dtype != self.dtype:
            raise Refused(f"expected a product in {self.dtype}, got {kind.dtype}", call.line)
        products, others, inner = [], [], []
        for term in node.terms:
            if isinstance(term, Read):
                shape = self.reader.kind(term.position, term.output).shape
                inner.append(self._name_read(term, ahead)._replace(
                    has_new_axis=self.width(shape) < self.width(kind.shape)))
            elif isinstance(term, Product) and isinstance(term.source, Read):
                lag = self.retiming.find_lag(term.source.position, term.source.lag, ahead)
                products.append(term._replace(source=term.source._replace(lag=lag, initial=())))
            else:
                others.append(term)
        for slot in others:
            slot = slot.term if isinstance(slot, LaterTerm) else slot
            if not isinstance(slot, FirstTerms):
                self._check_outside(slot.source if isinstance(slot, Product) else slot, call, True)
        varies = self.retiming.groups > 1 or any(
            not self.reader.is_invariant(one) and not isinstance(one, int | float)
            for one in others)
        current = Current(tuple(products), tuple(others), kind.shape, ahead if varies else 0,
                          self.populations.of_call[position])
        return StepCall(call, (*inner, Name(self._name_current(current), self.dtype)), names,
                        is_sum=True, widths=widths)

    def _find_parts(self, position: int) -> tuple[slice, ...]:
        """Returns which numbers of an axis in front of the neurons each result of a call has;
        empty: it is another call."""
        if not (found := self.reader.find_parts(position)):
            return ()
        shape = self.reader.kind_of(self.loop.body[position].slots[0]).shape
        N = self.size(shape)
        if shape[-1] != N * self.width(shape) or any(one.start % N or one.stop % N
                                                     for one in found):
            return ()
        return tuple(slice(one.start // N, one.stop // N) for one in found)

    def name_result(self, place: Place) -> str:
        """Returns the name of a result, equal for equal components."""
        return f"v{self.numbers[place[0]]}_{place[1]}"

    def _name_current(self, current: Current) -> str:
        return self.currents.setdefault(current, f"c{len(self.currents)}")

    def _name_argument(self, slot: Slot, position: int) -> "Name":
        call, shape = self.loop.body[position].call, self.reader.kind(position, 0).shape
        ahead, population = self.ahead.get(position, 0), self.populations.of_call[position]
        read = self.reader.read(slot)
        given = () if isinstance(slot, Numbers) else self.reader.kind_of(slot).shape
        is_wide, is_stack = self.width(shape) > 1, call.name == "stack"
        # (B, N, 1) and (N, 1) stand for each number of an axis
        is_one = (is_wide and not is_stack and given[-1:] == (1,)
                  and shape[-1] == self.width(shape))
        # an operator of a package may run over this axis as over time
        has_first = len(given) > 2 and given[0] == 1 and is_operator(call.function)
        if isinstance(read, Read):
            return self._name_read(read, ahead)._replace(has_new_axis=is_one,
                                                         has_first_axis=has_first)
        if not self.reader.kinds[call.outputs[0]].dtype.is_floating_point and (
                number := self.reader.find_integer(slot)) is not None:
            self.integers[slot] = number
            return Name("", self.reader.kind_of(slot).dtype, number=number)
        dtype = self._check_outside(slot, call, False)
        if is_one:
            shape = (*shape[:-1], 1)
        elif is_wide and is_stack:
            shape = given
        if self.reader.is_invariant(slot):
            if self.is_per_neuron(self.reader.kind_of(slot).shape, shape, call.line):
                name = f"k{len(self.coefficients)}"
                name = self.coefficients.setdefault((slot, shape, population), name)
                return Name(name, dtype, is_one)
            if not is_wide and self.retiming.groups == 1:
                name = self.constants.setdefault((slot, shape, population),
                                                 f"b{len(self.constants)}")
                return Name(name, dtype, is_one, has_first)
        is_same = self.retiming.groups == 1 and self.reader.is_invariant(slot)
        name = self._name_current(Current((), (slot,), shape, 0 if is_same else ahead, population))
        return Name(name, dtype, is_one, has_first)

    def _check_outside(self, slot: Any, call: Call, is_added: bool) -> torch.dtype:
        """Returns the dtype in which the step reads an argument."""
        if isinstance(slot, int | float):
            return self.dtype
        if isinstance(slot, Numbers):
            if not all(type(one) in (int, float) for one in slot.values):
                raise Refused("expected numbers as constants that change", call.line)
            return self.dtype
        kind = self.reader.kind_of(slot)
        if kind.device != self.device and kind.shape:
            raise Refused(f"expected arguments on {self.device}, got {kind.device}", call.line)
        if isinstance(slot, Varying) and len({self.reader.kinds[one][:2]
                                              for one in slot.values}) > 1:
            raise Refused("expected arguments of one shape and dtype in all iterations", call.line)
        if kind.dtype == self.dtype or (kind.dtype == torch.float32 and not is_added):
            return kind.dtype
        if kind.dtype == torch.bool and not is_added:
            return torch.bool
        made = self.reader.kinds[call.outputs[0]].dtype
        if made.is_floating_point and not (kind.dtype.is_floating_point or kind.dtype.is_complex):
            return made  # to which torch casts integers
        if not kind.shape and not kind.dtype.is_complex:  # decides no dtype
            return self.dtype
        hint = ("cast all parameters by model.float() or model.double()"
                if kind.dtype.is_floating_point else "a counter may be a tensor of floats")
        raise Refused(f"expected arguments of {self.dtype}, got {kind.dtype}; {hint}", call.line)

    def split(self, shape: tuple[int, ...], line: str) -> int:
        """Returns the number of axes of the batch."""
        for axes in range(len(shape) + 1):
            if prod(shape[:axes]) == self.rows and (
                    prod(shape[axes:]) == self.size(shape) * self.width(shape)):
                return axes
        raise Refused(f"expected a shape of {self.rows} times {self.size(shape)} numbers, got "
                      f"{tuple(shape)}", line)

    def is_per_neuron(self, shape: tuple[int, ...], result: tuple[int, ...], line: str) -> bool:
        """Returns whether an argument of a result has the same numbers in each row."""
        aligned = (1,) * (len(result) - len(shape)) + tuple(shape)
        if self.is_turned(result):
            return prod(shape) == 1 or aligned[1] == 1
        batch = self.split(result, line)
        return prod(shape) == 1 or all(size == 1 for size in aligned[:batch])

    def _name_read(self, read: Read, ahead: int) -> "Name":
        place = read.position, read.output
        dtype = self.reader.kind(*place).dtype
        lag = self.retiming.find_lag(read.position, read.lag, ahead)
        if any(self.reader.kinds[value].dtype != dtype for value in read.initial):
            raise Refused(f"expected {dtype} before the loop as in it", self.line(read.position))
        if not lag:
            return Name(self.name_result(place), dtype)
        initial = tuple(value for value in read.initial for _ in range(self.retiming.groups))
        return Name(self.name_register(Register(place, lag, initial[ahead:])), dtype)

    def name_register(self, register: Register) -> str:
        if register.lag > 1:
            self.name_register(register.after())
        if self._is_z(register):
            return self._name_z(register.place)
        return self.registers.setdefault(register, f"s{len(self.registers)}")

    def _is_z(self, register: Register) -> bool:
        """Whether this value is z of the step before."""
        place = register.place
        if place not in self.emitted or register.lag > 1 or len(
                self.populations.list_copies(self.populations.of_call[place[0]])) > 1:
            return False
        if not register.initial:
            return True
        initial = register.initial[0]
        t, _ = self.retiming.locate(place[0], -1)
        known = self.history.setdefault((place, t), initial)
        if known is None and find_number(self.reader.recording, initial) == 0:
            self.zeros.add(initial)
            return True
        return known == initial

    def _name_z(self, place: Place) -> str:
        return f"z{self.emitted.index(place)}" if self.copies > 1 else "z"

    def _name_output(self, place: Place) -> str:
        """Returns the state after each step, or z, that equals the value."""
        source = place
        if self.copies == 1 and not self.ahead and (
                read := self.reader.read(Now(*place))).lag == 0:
            source = read[:2]
        if source in self.emitted:
            return self._name_z(source)
        found = (name for one, name in self.registers.items() if one.place == place
                 and one.lag == 1)
        return next(found, "") or self.name_register(Register(place, 1, ()))

    def before(self, position: int, is_now: bool) -> list[int]:
        """Returns the calls that one depends on, with it; is_now: in the same iteration."""
        kinds = (Now,) if is_now else (Now, Before)
        return sorted(find_reachable([position], lambda q: [
            slot.position for slot in self.loop.body[q].slots
            if isinstance(slot, kinds) and slot.position in self.reader.inside]))
