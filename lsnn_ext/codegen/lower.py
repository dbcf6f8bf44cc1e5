"""Lowers a program to the functions that the kernels call, each with the nodes that it needs.
generate.py writes them as C++, encode.py as bytecode; rows.h specifies arguments and results."""
from typing import NamedTuple

from .program import Node, Program, find_reachable

# Arguments that are truth values.
TRUTH_ARGUMENTS = {"and": (0, 1), "or": (0, 1), "not": (0,), "select": (0,)}


class Function(NamedTuple):
    """A function of rows.h. The first nodes are the inputs of the program, z and the means."""

    name: str
    nodes: tuple[Node, ...]
    results: tuple[int, ...]


def count_inputs(program: Program) -> int:
    """Returns the number of inputs of a function: those of the program, z and the means."""
    return program.currents + 2 * program.states + program.coefficients + 3 + len(program.means)


def _extract(program: Program, name: str, results: tuple[int | None, ...], replaced: set[int],
             any_of: tuple[int, ...] | None = None) -> Function:
    """Returns the function of these results, without the nodes that they do not need. replaced:
    nodes that are z, and are read as an input; any_of: one more result, whether any is not 0."""
    n_inputs = count_inputs(program)
    z = n_inputs - len(program.means) - 1
    place: dict[int, int] = {i: i for i in range(z)}
    place.update(dict.fromkeys(replaced, z))
    place.update({i: z + 1 + m for m, i in enumerate(program.means)})
    needed = find_reachable((i for i in (*results, *(any_of or ())) if i is not None),
                            lambda i: () if i in place else program.nodes[i].arguments)
    nodes = [Node("input")] * n_inputs

    def add(node: Node) -> int:
        nodes.append(node)
        return len(nodes) - 1

    for i in sorted(needed - place.keys()):
        node = program.nodes[i]
        place[i] = add(node._replace(arguments=tuple(place[a] for a in node.arguments)))
    places = [add(Node("constant", (), 0.0)) if i is None else place[i] for i in results]
    if any_of is not None:
        zero = add(Node("constant", (), 0.0))
        active = zero
        for i in any_of:
            is_active = add(Node("ne", (place[i], zero)))
            active = is_active if active == zero else add(Node("or", (active, is_active)))
        places.append(active)
    return Function(name, tuple(nodes), tuple(places))


def _find_states_read(program: Program, function: Function) -> set[int]:
    read = {a for node in function.nodes for a in node.arguments} | set(function.results)
    return {s for s in range(program.states) if program.currents + s in read}


def _find_carried(program: Program, readers: list[Function], replaced: set[int]) -> set[int]:
    """Returns the states of a replay: those that a reader or a carried state reads."""
    carried: set[int] = set()
    read = set().union(*(_find_states_read(program, reader) for reader in readers))
    while not read <= carried:
        carried |= read
        results = tuple(program.new_states[s] for s in sorted(carried))
        read = _find_states_read(program, _extract(program, "", results, replaced))
    return carried


class Lowered(NamedTuple):
    """The functions of a program, for generate.py and encode.py."""

    functions: tuple[Function, ...]  # forward, advance, replay, adjoint, adjoint_alone
    means: tuple[Function, ...]  # each of what is averaged, in an order in which they can run
    forward_means: int  # how many the others but the adjoints read
    carried: int  # bit s: the functions but the first read state s
    has_slopes: bool
    has_product: bool  # some current has a gradient


def lower(program: Program) -> Lowered:
    # a replay reads the spike instead of computing it
    spikes = {program.z} if program.nodes[program.z].arguments else set()
    d_inputs = (*program.d_currents, *program.d_states, program.d_z)
    adjoint = _extract(program, "adjoint", (*d_inputs, *program.gradients), spikes)
    alone = _extract(program, "adjoint_alone", d_inputs, spikes)
    slopes = _extract(program, "", (), spikes, program.slopes)
    means = [_extract(program, f"mean_{m}", program.nodes[i].arguments, set())
             for m, i in enumerate(program.means)]
    carried = _find_carried(program, [adjoint, slopes, *means], spikes)
    states = tuple(n if s in carried else None for s, n in enumerate(program.new_states))
    forward = _extract(program, "forward", (*program.new_states, program.z), set())
    advance = _extract(program, "advance", states, spikes)
    replay = _extract(program, "replay", states, spikes, program.slopes)
    results = find_reachable((*program.new_states, program.z),
                             lambda i: program.nodes[i].arguments)
    return Lowered((forward, advance, replay, adjoint, alone), tuple(means),
                   sum(i in results for i in program.means), sum(1 << s for s in carried),
                   program.slopes is not None, any(i is not None for i in program.d_currents))
