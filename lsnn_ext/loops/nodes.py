"""Nodes: the calls of a recurrent component that its outputs depend on, with sums joined.

A sum with the products of z that only a sum of a later iteration reads becomes a part of that one.
"""
from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

from .functions import Apply
from .integers import find_number
from .ir import Before, Fixed, Now, Refused, Varying
from .reader import FirstTerms, LaterTerm, Product, Read, Reader, Term
from .values import Place

MOST_EMITTED = 4  # values of a neuron that products read


class Node(NamedTuple):
    """A call of the step: a sum with a product, or any other."""

    position: int
    terms: tuple[Term, ...] | None


class Nodes:
    """The calls of a component, by their positions. Raises Refused."""

    def __init__(self, reader: Reader, outputs: Sequence[Place]) -> None:
        self.reader, self.outputs = reader, outputs
        self.by_position = self._find_nodes()
        self.emitted = self._find_emitted()  # what the products read
        self.zeros: set[int] = set()  # values from before the loop that must be 0
        self.history: dict[tuple[Place, int], int | None] = {}  # as of find_history
        self.by_position = self._join_sums()

    def reads(self, node: Node) -> list[Read]:
        """Returns the results of the component that a call reads."""
        products = [one.source for one in node.terms or () if isinstance(one, Product)]
        return [*self.list_operands(node), *(one for one in products if isinstance(one, Read))]

    def list_operands(self, node: Node) -> list[Read]:
        """Returns those that no product reads."""
        found = node.terms if node.terms is not None else map(
            self.reader.read, self.reader.loop.body[node.position].slots)
        return [one for one in found if isinstance(one, Read)]

    def _find_nodes(self, joined: Mapping[int, Node] | None = None) -> dict[int, Node]:
        """Returns the calls on which the outputs depend."""
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

    def list_products(self) -> list[tuple[Node, Product, Read]]:
        return [(node, term, term.source) for node in self.by_position.values()
                for term in node.terms or ()
                if isinstance(term, Product) and isinstance(term.source, Read)]

    def _find_emitted(self) -> tuple[Place, ...]:
        """Returns the places that the products read; without products an output, a spike if any."""
        products = self.list_products()
        found = {(source.position, source.output): node for node, _, source in products}
        if len(found) > MOST_EMITTED:
            lines = ", ".join(sorted({self.line(one) for one, _ in found}))
            raise Refused(f"expected recurrent products of up to {MOST_EMITTED} values, got those "
                          f"of {len(found)}, from {lines}",
                          self.line(max(node.position for node in found.values())))
        if found:
            return tuple(sorted(found))
        spikes = [place for place in self.outputs
                  if isinstance(self.reader.loop.body[place[0]].call.function, Apply)]
        return (spikes or self.outputs)[-1],

    def _join_sums(self) -> dict[int, Node]:
        """Merges sums of sums that contain a product."""
        uses = [one.position for node in self.by_position.values() for one in self.reads(node)]
        uses += [position for position, _ in self.outputs]

        def fits(terms: Sequence[Term], inner: Node, node: Node) -> bool:
            shapes = [self.reader.kind(one.position, 0).shape for one in (inner, node)]
            if shapes[0] == shapes[1]:
                return True
            sizes = {prod(shape) for shape in (*shapes, self.reader.kind(*self.emitted[0]).shape)}
            slots = [one.term if isinstance(one, LaterTerm) else one for one in terms]
            given = [prod(self.reader.kind_of(one).shape) for one in slots
                     if isinstance(one, Fixed | Now | Before | Varying)]
            return len(sizes) == 1 and sizes.issuperset(given)  # nothing is broadcast

        def join(node: Node) -> tuple[Term, ...]:
            return tuple(one for term in node.terms or () for one in expand(node, term))

        def expand(node: Node, term: Term) -> tuple[Term, ...]:
            inner = self.by_position.get(term.position) if isinstance(term, Read) else None
            if (inner is None or inner.terms is None or not isinstance(term, Read)
                    or uses.count(term.position) > 1):
                return (term,)
            terms = join(inner)
            if not fits(terms, inner, node):
                return (term,)
            return self._turn(terms, term) if term.lag else terms

        joined = {}
        for position, node in self.by_position.items():
            terms = join(node)
            has_product = any(isinstance(one, Product) for one in terms)
            joined[position] = Node(position, terms if has_product else None)
        return self._find_nodes(joined)

    def _turn(self, terms: Sequence[Term], read: Read) -> tuple[Term, ...]:
        """Returns a sum of the end of an iteration as terms of a later one: the products of z of
        the iterations before, which is 0 before the loop; else how the sum is read."""
        turned = [one._replace(source=one.source._replace(lag=read.lag)) for one in terms
                  if isinstance(one, Product) and isinstance(one.source, Read)
                  and not one.source.lag]
        others = [one for one in terms if not isinstance(one, Product)]
        if not turned or len(turned) < len(self.list_products()) or len(turned) + len(others) < len(
                terms) or not all(
                isinstance(one, int | float) or self.reader.is_invariant(one) for one in others):
            return (read,)
        self.history.update(((place, -1), None) for place in self.emitted)
        if not others and all(find_number(self.reader.recording, one) == 0
                              for one in read.initial):
            self.zeros.update(read.initial)
            return tuple(turned)
        return (*turned, FirstTerms(read.initial), *map(LaterTerm, others))

    def find_history(self) -> dict[tuple[Place, int], int | None]:
        """Returns the emitted values before the loop by iteration, -1 and so on; None: 0."""
        for node, _, source in self.list_products():
            for t, value in enumerate(source.initial, -source.lag):
                if self.history.setdefault((source[:2], t), value) != value:
                    raise Refused("expected one value before the loop for all recurrent products",
                                  self.line(node.position))
        return self.history

    def line(self, position: int) -> str:
        return self.reader.loop.body[position].call.line
