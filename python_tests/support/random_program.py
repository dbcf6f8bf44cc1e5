"""Programs of random operators, as lsnn_ext/codegen/trace.py might make them."""
import random

import torch

from lsnn_ext.codegen.program import OPERATORS, Node, Program

# Those that round once: programs of these are bitwise equal to torch.
EXACT = ("add", "sub", "mul", "fma", "neg", "abs", "sign", "maximum", "minimum", "gt", "ge", "lt",
         "le", "ne", "and", "or", "not", "select")


def random_program(seed: int, dtype: torch.dtype, currents: int, states: int, coefficients: int,
                   operators: tuple[str, ...], is_spike: bool, has_slopes: bool) -> Program:
    """A step of random operators, and an adjoint that is no derivative of it."""
    choose = random.Random(seed)
    n_inputs = currents + 2 * states + coefficients + 2
    nodes = [Node("input")] * n_inputs

    def add(operator: str, *arguments: int, value: float = 0.0) -> int:
        nodes.append(Node(operator, arguments, value))
        return len(nodes) - 1

    constants = [add("constant", value=value) for value in (0.0, 1.0, -0.7)]

    def grow(readable: list[int], count: int) -> list[int]:
        """Adds nodes that keep numbers near 1, and returns them."""
        made = []
        for _ in range(count):
            operator = choose.choice(operators)
            arguments = [choose.choice(readable) for _ in range(OPERATORS[operator])]
            if operator in ("div", "pow", "log", "sqrt"):  # not where the sign of 0 shows
                arguments[-1] = add("add", add("abs", arguments[-1]), constants[1])
            i = add(operator, *arguments)
            made.append(i)
            readable.append(i)
        return made

    of_step = [*range(currents + states + 1 + coefficients), *constants]
    made = grow(list(of_step), 14)
    condition = add("gt", choose.choice(made), constants[0])
    z = add("select", condition, constants[1], constants[0]) if is_spike else made[-1]
    made += grow([*of_step, *made, condition, z], 8)
    new_states = tuple(choose.choice(made) for _ in range(states))
    slopes = tuple(add("select", choose.choice([condition, made[0]]), choose.choice(made),
                       constants[0]) for _ in range(2)) if has_slopes else None
    ahead = grow([*range(n_inputs), *constants, *made, z, condition], 14)

    def result() -> int | None:
        return choose.choice([*ahead, *ahead, z, 0, constants[2], None])

    return Program(dtype, currents, states, coefficients, tuple(nodes), new_states, z, is_spike,
                   slopes, tuple(result() for _ in range(currents)),
                   tuple(result() for _ in range(states)), result(),
                   tuple(result() for _ in range(min(coefficients, 3))))
