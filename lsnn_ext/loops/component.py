"""A recurrent component of a loop as one fused run: elementwise calls, and products of its own past
values by invariant matrices.

The calls become the step of a lsnn_ext.Neuron. One value z is what the products read; a step of the
kernels ends with z. Where products read the z of their own iteration, the calls that z depends on
move to the end of the step before (retiming), and run once before the first step. What enters only
a sum with a product is added to the current outside. Each value that is read outside is z or a
state.
"""
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..fuse.neuron import Neuron
from ..fuse.state import NeuronState
from .calls import SLOTS, Product, Read, Reader, Term, execute, name_of, run_calls
from .ir import Before, Call, Kind, Loop, Now, Numbers, Slot, Varying
from .record import Apply
from .refused import Refused

Place = tuple[int, int]  # position and output


class Inputs(NamedTuple):
    """What a component takes from outside."""

    sequences: tuple[Slot, ...]  # Now, Before and Varying: (n, ...) each
    fixed: tuple[Slot, ...]  # Fixed, and Now of invariant calls
    initial: tuple[int, ...]  # values from before the loop


class Node(NamedTuple):
    """A call of the step: a sum with a product, or any other."""

    position: int
    terms: tuple[Term, ...] | None


class Current(NamedTuple):
    """A current of the step."""

    products: tuple[Product, ...]
    others: tuple[Any, ...]  # slots, numbers, and products of sequences from outside
    shape: tuple[int, ...]  # to which they are broadcast
    shift: int  # 1: read by the calls that run one iteration ahead


class Register(NamedTuple):
    """A value of `lag` steps of the kernels before."""

    place: Place
    lag: int  # >= 1
    initial: tuple[int, ...]  # the value of each iteration before the loop, oldest first

    def after(self) -> "Register":
        """What this one holds a step later than."""
        return Register(self.place, self.lag - 1, self.initial[1:])


class Given(NamedTuple):
    """The arguments of a run."""

    iterations: int
    outside: Mapping[Slot, Tensor]
    initial: Mapping[int, Tensor]


class Name(NamedTuple):
    """An argument of a call of the step."""

    name: str
    dtype: torch.dtype


class StepCall(NamedTuple):
    """A call of the step."""

    call: Call
    leaves: tuple[Any, ...]  # as of the call, with a Name for each tensor
    results: tuple[str, ...]
    is_copy: bool = False
    is_sum: bool = False  # of the leaves


class Component:
    """Calls of a loop as one fused run."""

    def __init__(self, loop: Loop, positions: Sequence[int], read: set[Place],
                 kinds: Mapping[int, Kind]) -> None:
        self.loop, self.reader = loop, Reader(loop, positions, kinds)
        self.outputs = sorted(read)
        self.nodes = self._find_nodes()
        self.z = self._find_z()
        self.prefix = self._find_prefix()
        self.nodes = self._join_sums()
        self.dtype = self._find_dtype()
        self.rows, self.neurons = self._find_sizes()
        self.currents: dict[Current, str] = {}
        self.coefficients: dict[tuple[Slot, tuple[int, ...]], str] = {}
        self.registers: dict[Register, str] = {}
        self.history = self._find_history()
        self.calls = tuple(self._translate(node) for node in self._order())
        self.places = {place: self._name_of_output(place) for place in self.outputs}
        self.step = Step(self)
        self.neuron = Neuron(self.step)
        self.inputs = self._find_inputs()
        self._check()

    # --------------------------------------------------------------------------- analysis
    def reads(self, node: Node) -> list[Read]:
        """What a call reads inside."""
        if node.terms is None:
            found = map(self.reader.read, self.loop.body[node.position].slots)
            return [one for one in found if isinstance(one, Read)]
        terms = [one.source if isinstance(one, Product) else one for one in node.terms]
        return [one for one in terms if isinstance(one, Read)]

    def _find_nodes(self, joined: Mapping[int, Node] | None = None) -> dict[int, Node]:
        """The calls that what is read outside depends on."""
        found: dict[int, Node] = {}
        left = [position for position, _ in self.outputs]
        while left:
            position = left.pop()
            if position not in found:
                node = (joined or {}).get(position) or Node(position, self.reader.terms(position))
                found[position] = node
                left += [one.position for one in self.reads(node)]
        if not found:
            raise Refused("expected a component that is read, got none")
        return found

    def _products(self) -> list[tuple[Node, Product, Read]]:
        return [(node, term, term.source) for node in self.nodes.values()
                for term in node.terms or ()
                if isinstance(term, Product) and isinstance(term.source, Read)]

    def _find_z(self) -> Place:
        """What the products read; without products an output, a spike where there is one."""
        found = {(source.position, source.output): node for node, _, source in self._products()}
        if len(found) > 1:
            raise Refused("expected recurrent products of one value, got those of "
                          f"{len(found)}", self.line(max(node.position for node in
                                                         found.values())))
        if found:
            return next(iter(found))
        spikes = [place for place in self.outputs
                  if isinstance(self.loop.body[place[0]].call.function, Apply)]
        return (spikes or self.outputs)[-1]

    def _find_prefix(self) -> frozenset[int]:
        """The calls that run one iteration ahead: z, and what it depends on in its iteration."""
        if all(source.lag for _, _, source in self._products()):
            return frozenset()
        found: set[int] = set()
        left = [self.z[0]]
        while left:
            position = left.pop()
            if position not in found:
                found.add(position)
                left += [one.position for one in self.reads(self.nodes[position]) if not one.lag]
        return frozenset(found)

    def _join_sums(self) -> dict[int, Node]:
        """Sums of sums as one, if a product is among them."""
        uses = [one.position for node in self.nodes.values() for one in self.reads(node)]
        uses += [position for position, _ in self.outputs]

        def join(node: Node) -> tuple[Term, ...]:
            terms: list[Term] = []
            for term in node.terms or ():
                inner = self.nodes.get(term.position) if isinstance(term, Read) else None
                is_inner = (inner is not None and inner.terms is not None and isinstance(term, Read)
                            and not term.lag and uses.count(term.position) == 1
                            and (term.position in self.prefix) == (node.position in self.prefix))
                terms += join(inner) if inner is not None and is_inner else [term]
            return tuple(terms)

        joined = {}
        for position, node in self.nodes.items():
            terms = join(node)
            has_product = any(isinstance(one, Product) for one in terms)
            joined[position] = Node(position, terms if has_product else None)
        return self._find_nodes(joined)

    def _find_dtype(self) -> torch.dtype:
        calls = [self.loop.body[position].call for position in self.nodes]
        for call in calls:
            if call.is_random:
                raise Refused("expected no random numbers in a recurrent component", call.line)
            if any(call.mode.autocast):
                raise Refused("expected no autocast", call.line)
            if name_of(call) in ("__set__", "requires_grad_"):
                raise Refused("expected no change of requires_grad", call.line)
        kinds = [self.reader.kind(position, k) for position in self.nodes
                 for k in range(len(self.loop.body[position].call.outputs))]
        dtypes = {kind.dtype for kind in kinds}
        if not all(kind.device.type == "cpu" for kind in kinds):
            raise Refused("expected tensors on the CPU", calls[0].line)
        if not dtypes <= {torch.float32, torch.float64, torch.bool} or dtypes == {torch.bool}:
            raise Refused("expected float32 or float64, got "
                          f"{', '.join(sorted(map(str, dtypes)))}", calls[0].line)
        return torch.float64 if torch.float64 in dtypes else torch.float32

    def _find_sizes(self) -> tuple[int, int]:
        """B and N, whose product is the size of each value."""
        shape = self.reader.kind(*self.z).shape
        products = self._products()
        if products:
            neurons = products[0][1].last - products[0][1].first
        else:
            neurons = prod(shape[1:]) if len(shape) > 1 else prod(shape)
        rows = prod(shape) // max(neurons, 1)
        places = {(one.position, one.output) for node in self.nodes.values()
                  for one in self.reads(node)}
        for place in places.union(self.outputs):
            kind = self.reader.kind(*place)
            if prod(kind.shape) != rows * neurons or not prod(shape):
                raise Refused(f"expected values of as many numbers as shape {tuple(shape)} has, "
                              f"got {tuple(kind.shape)}", self.line(place[0]))
        for place in self.outputs:
            kinds = {self.reader.kinds[made[place[0]][place[1]]][:2] for made in self.loop.made}
            if len(kinds) > 1:
                raise Refused("expected results of one shape and dtype in all iterations",
                              self.line(place[0]))
        for node, product, _ in products:
            shape = self.reader.kind_of(product.matrix).shape
            if product.last - product.first != neurons or (
                    shape[0 if product.is_transposed else 1] != neurons):
                raise Refused(f"expected a recurrent matrix of shape {(neurons, neurons)}, got "
                              f"{tuple(shape)}", self.line(node.position))
        return rows, neurons

    def _order(self) -> list[Node]:
        """Those ahead run last."""
        return sorted(self.nodes.values(), key=lambda one: (one.position in self.prefix,
                                                            one.position))

    # --------------------------------------------------------------------------- the step
    def _translate(self, node: Node) -> "StepCall":
        """A call with names for its arguments."""
        position, call = node.position, self.loop.body[node.position].call
        kind = self.reader.kind(position, 0)
        ahead = int(position in self.prefix)
        names = tuple(f"v{position}_{k}" for k in range(len(call.outputs)))
        if node.terms is None:
            leaves = tuple(
                self._name_of(slot, call, kind.shape, ahead) if isinstance(slot, SLOTS) else slot
                for slot in self.loop.body[position].slots)
            is_copy = self.reader.source(position) is not None
            return StepCall(call, leaves, names, is_copy)
        if kind.dtype != self.dtype:
            raise Refused(f"expected a product in {self.dtype}, got {kind.dtype}", call.line)
        products, others, inner = [], [], []
        for term in node.terms:
            if isinstance(term, Read):
                inner.append(self._name_of_read(term, ahead))
            elif isinstance(term, Product) and isinstance(term.source, Read):
                products.append(self._with_steps(term, ahead))
            else:
                others.append(term)
        for slot in others:
            self._check_outside(slot.source if isinstance(slot, Product) else slot, call, True)
        varies = any(not self.reader.is_invariant(one) and not isinstance(one, int | float)
                     for one in others)
        current = Current(tuple(products), tuple(others), kind.shape, ahead if varies else 0)
        return StepCall(call, (*inner, Name(self._name_of_current(current), self.dtype)), names,
                        is_sum=True)

    def _find_history(self) -> dict[int, int]:
        """The value of z of each iteration before the loop, -1 and so on."""
        found: dict[int, int] = {}
        for node, _, source in self._products():
            for t, value in enumerate(source.initial, -source.lag):
                if found.setdefault(t, value) != value:
                    raise Refused("expected one value before the loop for all recurrent products",
                                  self.line(node.position))
        return found

    def _with_steps(self, product: Product, ahead: int) -> Product:
        """With steps of the kernels as lag of its source."""
        source = product.source
        assert isinstance(source, Read)
        lag = source.lag + int(bool(self.prefix)) - ahead
        return product._replace(source=source._replace(lag=lag, initial=()))

    def _name_of_current(self, current: Current) -> str:
        return self.currents.setdefault(current, f"c{len(self.currents)}")

    def _name_of(self, slot: Slot, call: Call, shape: tuple[int, ...], ahead: int) -> "Name":
        read = self.reader.read(slot)
        if isinstance(read, Read):
            return self._name_of_read(read, ahead)
        dtype = self._check_outside(slot, call, False)
        if self.reader.is_invariant(slot):
            if self._is_per_neuron(self.reader.kind_of(slot).shape, shape, call):
                name = f"k{len(self.coefficients)}"
                return Name(self.coefficients.setdefault((slot, shape), name), dtype)
            ahead = 0
        return Name(self._name_of_current(Current((), (slot,), shape, ahead)), dtype)

    def _check_outside(self, slot: Any, call: Call, is_added: bool) -> torch.dtype:
        """The dtype in which the step reads an argument."""
        if isinstance(slot, int | float):
            return self.dtype
        if isinstance(slot, Numbers):
            if not all(type(one) in (int, float) for one in slot.values):
                raise Refused("expected numbers as constants that change", call.line)
            return self.dtype
        kind = self.reader.kind_of(slot)
        if kind.device.type != "cpu":
            raise Refused("expected tensors on the CPU", call.line)
        if isinstance(slot, Varying) and len({self.reader.kinds[one][:2]
                                              for one in slot.values}) > 1:
            raise Refused("expected arguments of one shape and dtype in all iterations", call.line)
        if kind.dtype == self.dtype or (kind.dtype == torch.float32 and not is_added):
            return kind.dtype
        if kind.dtype == torch.bool and not is_added:
            return torch.bool
        if not kind.shape and not kind.dtype.is_complex:  # decides no dtype
            return self.dtype
        raise Refused(f"expected arguments of {self.dtype}, got {kind.dtype}", call.line)

    def _split(self, shape: tuple[int, ...], line: str) -> int:
        """How many axes are those of the batch."""
        for axes in range(len(shape) + 1):
            if prod(shape[:axes]) == self.rows and prod(shape[axes:]) == self.neurons:
                return axes
        raise Refused(f"expected a shape of {self.rows} times {self.neurons} numbers, got "
                      f"{tuple(shape)}", line)

    def _is_per_neuron(self, shape: tuple[int, ...], result: tuple[int, ...], call: Call) -> bool:
        batch = self._split(result, call.line)
        aligned = (1,) * (len(result) - len(shape)) + tuple(shape)
        return prod(shape) == 1 or all(size == 1 for size in aligned[:batch])

    def _name_of_read(self, read: Read, ahead: int) -> "Name":
        place = read.position, read.output
        dtype = self.reader.kind(*place).dtype
        first = int(read.position in self.prefix)
        lag = read.lag + first - ahead
        if not lag:
            return Name(f"v{read.position}_{read.output}", dtype)
        return Name(self._name_of_register(Register(place, lag, read.initial[ahead:])), dtype)

    def _name_of_register(self, register: Register) -> str:
        if register.lag > 1:
            self._name_of_register(register.after())
        if self._is_z(register):
            return "z"
        return self.registers.setdefault(register, f"s{len(self.registers)}")

    def _is_z(self, register: Register) -> bool:
        """Whether the spike of the step before is this value."""
        if register.place != self.z or register.lag > 1:
            return False
        if not register.initial:
            return True
        return self.history.setdefault(-1, register.initial[0]) == register.initial[0]

    def _name_of_output(self, place: Place) -> str:
        """The state after each step, or z, that is the value."""
        if place == self.z:
            return "z"
        found = (name for one, name in self.registers.items() if one.place == place
                 and one.lag == 1)
        return next(found, "") or self._name_of_register(Register(place, 1, ()))

    def line(self, position: int) -> str:
        """Of the user's file."""
        return self.loop.body[position].call.line

    # --------------------------------------------------------------------------- inputs
    def _before(self, position: int, is_now: bool) -> list[int]:
        """The calls that one depends on, with it; is_now: in the same iteration."""
        found: set[int] = set()
        left = [position]
        kinds = (Now,) if is_now else (Now, Before)
        while left:
            position = left.pop()
            if position not in found:
                found.add(position)
                left += [slot.position for slot in self.loop.body[position].slots
                         if isinstance(slot, kinds) and slot.position in self.reader.inside]
        return sorted(found)

    def _find_inputs(self) -> Inputs:
        positions = {one for place in self.outputs for one in self._before(place[0], False)}
        self.positions = sorted(positions)
        slots = [slot for position in self.positions for slot in self.loop.body[position].slots
                 if isinstance(slot, SLOTS)]
        inner = [isinstance(slot, Now | Before) and slot.position in self.reader.inside
                 for slot in slots]
        outer = dict.fromkeys(slot for slot, is_inner in zip(slots, inner, strict=True)
                              if not is_inner and not isinstance(slot, Numbers))
        initial = dict.fromkeys(value for slot, is_inner in zip(slots, inner, strict=True)
                                if is_inner and isinstance(slot, Before)
                                for value in slot.initial)
        is_fixed = self.reader.is_invariant
        return Inputs(tuple(slot for slot in outer if not is_fixed(slot)),
                      tuple(slot for slot in outer if is_fixed(slot)), tuple(initial))

    # --------------------------------------------------------------------------- run
    def __call__(self, sequences: Sequence[Tensor], fixed: Sequence[Tensor],
                 initial: Sequence[Tensor], iterations: int | None = None) -> dict[Place, Tensor]:
        """The sequences (n, ...) of what is read outside.

        Args:
            sequences: (n, ...) of each of inputs.sequences.
            fixed: the values of inputs.fixed.
            initial: the values of inputs.initial.
            iterations: n. Default: those of the loop.
        """
        n = self.loop.iterations if iterations is None else iterations
        given = Given(n, {**dict(zip(self.inputs.sequences, sequences, strict=True)),
                          **dict(zip(self.inputs.fixed, fixed, strict=True))},
                      dict(zip(self.inputs.initial, initial, strict=True)))
        with torch.set_grad_enabled(self.reader.has_grad):
            return self._run(given)

    def _run(self, given: "Given") -> dict[Place, Tensor]:
        first = {}
        if self.prefix:
            first = run_calls(self.loop, self._before(self.z[0], True), 1,
                              self._outside(given), given.initial)[0]
        currents = [self._current(one, given) for one in self.currents]
        x = currents[0] if len(currents) == 1 else torch.stack(currents, 2)
        weights, delays = self._weights(given)
        steps = range(max(delays, default=0) + 1)
        past = [self._past_z(int(bool(self.prefix)) - 1 - d, first, given) for d in steps]
        states = {name: self._initial(one, first, given) for one, name in self.registers.items()}
        coefficients = {name: self._coefficient(given.outside[slot], shape)
                        for (slot, shape), name in self.coefficients.items()}
        has_trace = any(name != "z" for name in self.places.values())
        spikes, _, *traces = functional.recurrent(
            x, weights, self.neuron, delay=delays[0] if len(delays) == 1 else delays or 0,
            state=NeuronState(states, torch.stack(past)), trace=has_trace, **coefficients)
        found = {}
        for place, name in self.places.items():
            kind = self.reader.kind(*place)
            one = spikes if name == "z" else traces[0][name]
            one = one.reshape(given.iterations, *kind.shape).to(kind.dtype)
            if place[0] in self.prefix:
                one = torch.cat([first[place].expand(kind.shape)[None], one[:-1]])
            found[place] = one
        return found

    def _outside(self, given: "Given") -> Any:
        def find(slot: Any, t: int) -> Any:
            if isinstance(slot, Numbers):
                return slot.values[t]
            if isinstance(slot, Before) and slot.position in self.reader.inside:
                return given.initial[slot.initial[t]]
            one = given.outside[slot]
            return one if self.reader.is_invariant(slot) else one[t]

        return find

    def _current(self, current: Current, given: "Given") -> Tensor:
        """(n, B, N)."""
        parts = [self._part(one, current.shape, given) for one in current.others]
        x = reduce(torch.add, parts) if parts else torch.zeros((), dtype=self.dtype)
        if current.shift and x.dim() and len(x) > 1:
            x = torch.cat([x[1:], x[-1:]])  # the last step ahead has no input, and no reader
        return x.expand(given.iterations, self.rows, self.neurons)

    def _part(self, one: Any, shape: tuple[int, ...], given: "Given") -> Tensor:
        """(n, B, N), or (1, B, N) of what is the same in each iteration."""
        if isinstance(one, int | float):
            return torch.full((1, 1, 1), one, dtype=self.dtype)
        if isinstance(one, Numbers):
            values = torch.tensor(one.values[:given.iterations], dtype=self.dtype)
            return values.view(-1, 1, 1).expand(-1, self.rows, self.neurons)
        slot = one.source if isinstance(one, Product) else one
        tensor = given.outside[slot]
        tensor = tensor[None] if self.reader.is_invariant(slot) else tensor
        if isinstance(one, Product):
            tensor = torch.nn.functional.linear(tensor, _part_of(one, given.outside))
        tensor = tensor.to(self.dtype)
        missing = (1,) * (len(shape) + 1 - tensor.dim())
        tensor = tensor.reshape(len(tensor), *missing, *tensor.shape[1:])
        return tensor.expand(-1, *shape).reshape(len(tensor), self.rows, self.neurons)

    def _weights(self, given: "Given") -> tuple[Tensor | None, tuple[int, ...]]:
        """w_rec for each delay, and the delays in steps."""
        blocks: dict[tuple[int, int], Tensor] = {}
        for k, current in enumerate(self.currents):
            for product in current.products:
                assert isinstance(product.source, Read)
                key, one = (product.source.lag - 1, k), _part_of(product, given.outside).t()
                blocks[key] = blocks[key] + one if key in blocks else one
        if not blocks:
            return None, ()
        delays = tuple(sorted({delay for delay, _ in blocks}))
        zeros = torch.zeros(self.neurons, self.neurons, dtype=self.dtype)
        rows = [[blocks.get((delay, k), zeros) for k in range(len(self.currents))]
                for delay in delays]
        each = [row[0] if len(row) == 1 else torch.stack(row) for row in rows]
        return each[0] if len(each) == 1 else torch.stack(each), delays

    def _past_z(self, t: int, first: Mapping[Place, Tensor], given: "Given") -> Tensor:
        if t == 0:
            return self._flat(first[self.z], self.z)
        if t not in self.history:
            return torch.zeros(self.rows, self.neurons, dtype=self.dtype)
        return self._flat(given.initial[self.history[t]], self.z)

    def _initial(self, register: Register, first: Mapping[Place, Tensor],
                 given: "Given") -> Tensor:
        if register.initial:
            return self._flat(given.initial[register.initial[0]], register.place)
        if register.place[0] in self.prefix:
            return self._flat(first[register.place], register.place)
        return torch.zeros(self.rows, self.neurons, dtype=self.dtype)

    def _flat(self, tensor: Tensor, place: Place) -> Tensor:
        """A value from before the loop as (B, N)."""
        if tensor.numel() != self.rows * self.neurons:
            tensor = tensor.expand(self.reader.kind(*place).shape)
        return tensor.to(self.dtype).reshape(self.rows, self.neurons)

    def _coefficient(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """() or (N,)."""
        tensor = tensor.to(self.dtype)
        if tensor.numel() == 1:
            return tensor.reshape(())
        batch = self._split(shape, "")
        behind = shape[batch:]
        tensor = tensor.reshape(tensor.shape[max(tensor.dim() - len(behind), 0):])
        return tensor.expand(behind).reshape(self.neurons)

    # --------------------------------------------------------------------------- check
    def _check(self) -> None:
        """Compares a few iterations on random numbers with the calls themselves, which also traces
        and compiles the step. Raises Refused."""
        lags = [slot.lag for position in self.positions
                for slot in self.loop.body[position].slots if isinstance(slot, Before)]
        n = min(self.loop.iterations, max(lags, default=0) + 2)
        random = torch.Generator().manual_seed(0)

        def draw(kind: Kind, *sizes: int) -> Tensor:
            one = torch.randn((*sizes, *kind.shape), generator=random, dtype=torch.float64)
            return (one > 0).to(kind.dtype) if kind.dtype == torch.bool else one.to(kind.dtype)

        reader, inputs = self.reader, self.inputs
        for place in {one.place for one in self.registers} | {self.z}:
            for values in (one.initial for one in self.registers if one.place == place):
                if any(reader.kinds[value].dtype != reader.kind(*place).dtype
                       for value in values):
                    raise Refused("expected one dtype before the loop and in it",
                                  self.line(place[0]))
        sequences = [draw(reader.kind_of(slot), n) for slot in inputs.sequences]
        fixed = [draw(reader.kind_of(slot)).abs() for slot in inputs.fixed]
        initial = [draw(reader.kinds[value]) for value in inputs.initial]
        given = Given(n, {**dict(zip(inputs.sequences, sequences, strict=True)),
                          **dict(zip(inputs.fixed, fixed, strict=True))},
                      dict(zip(inputs.initial, initial, strict=True)))
        try:
            made = self(sequences, fixed, initial, n)
        except (RuntimeError, TypeError, ValueError) as error:
            text = re.sub(r" in (calls|component|step)\.py line .*", "", str(error))
            raise Refused(text, self.step.line) from error
        with torch.no_grad():
            wanted = run_calls(self.loop, self.positions, n, self._outside(given), given.initial)
        for place, got in made.items():
            want = torch.stack([one[place].expand(got.shape[1:]) for one in wanted])
            is_close = torch.isclose(got.double(), want.double(), 1e-3, 1e-3, equal_nan=True)
            if is_close.double().mean() < 0.99:
                raise Refused("expected calls that act on each number by itself, got other results "
                              "from a run of random numbers", self.line(place[0]))


class Step:
    """The step of a component as functional.recurrent calls it."""

    def __init__(self, component: Component) -> None:
        registers = component.registers
        self.calls, self.dtype, self.line = component.calls, component.dtype, ""
        self.inputs = (*component.currents.values(), *registers.values(), "z")
        self.results = (
            *(f"v{one.place[0]}_{one.place[1]}" if one.lag == 1
              else component._name_of_register(one.after()) for one in registers),
            f"v{component.z[0]}_{component.z[1]}")
        kind = inspect.Parameter
        self.__signature__ = inspect.Signature([
            *(kind(name, kind.POSITIONAL_OR_KEYWORD) for name in self.inputs),
            *(kind(name, kind.KEYWORD_ONLY) for name in component.coefficients.values())])

    def __call__(self, *values: Tensor, **coefficients: Tensor) -> tuple[Tensor, ...]:
        found: dict[str, Tensor] = dict(zip(self.inputs, values, strict=True)) | coefficients

        def read(leaf: Any) -> Any:
            if not isinstance(leaf, Name):
                return leaf
            one = found[leaf.name]
            if one.dtype == leaf.dtype:
                return one
            return one != 0 if leaf.dtype == torch.bool else one.to(leaf.dtype)

        for call, leaves, results, is_copy, is_sum in self.calls:
            self.line = call.line
            given = [read(leaf) for leaf in leaves]
            if is_sum:
                made: Sequence[Tensor] = [reduce(torch.add, given)]
            elif is_copy:
                with torch.set_grad_enabled(call.mode.grad):
                    made = [next(one for one in given if isinstance(one, Tensor)).clone()]
            else:
                made = execute(call, given)
            found.update(zip(results, made, strict=True))
        return tuple(found[name].to(self.dtype) for name in self.results)


def fuse_component(loop: Loop, positions: Sequence[int], read: set[Place],
                   kinds: dict[int, Kind]) -> Component:
    """A component of a loop as one fused run.

    Args:
        loop: the loop.
        positions: a strongly connected set of calls of its body, and elementwise ones that follow.
        read: the results of these calls whose sequences are needed outside.
        kinds: those of the recording.

    Raises:
        Refused: the calls cannot be fused.
    """
    return Component(loop, positions, read, kinds)


def _part_of(product: Product, outside: Mapping[Slot, Tensor]) -> Tensor:
    """(outputs, inputs) of the matrix."""
    matrix = outside[product.matrix]
    matrix = matrix if product.is_transposed else matrix.t()
    return matrix[:, product.first : product.last]
