"""Writes a program as bytecode for the interpreter of the kernels (csrc/cpu/interpreter.h)."""
from .lower import Function, count_inputs, lower
from .program import OPERATORS, Program

VERSION = 2
# Opcodes are places in OPERATORS; the one behind them copies a value.
OPCODES = {name: code for code, name in enumerate((*OPERATORS, "copy"))}
MAX_VALUES, MAX_CONSTANTS = 512, 512  # as in interpreter.h


def _encode_function(program: Program, function: Function,
                     constants: dict[str, int]) -> tuple[list[int], int]:
    """Returns the instructions of a function, and the number of its values; constants: their
    places, by float.hex(), which tells -0.0 from 0.0.

    An instruction is opcode, result and three arguments. The first values are the inputs, then come
    the results, then temporary values. An argument below 0 is a constant: -1 - its place.
    """
    n_inputs = count_inputs(program)
    first_free = n_inputs + program.currents + program.states + 1 + len(program.gradients)
    n_values, place = first_free, {i: i for i in range(n_inputs)}
    free: list[int] = []
    code: list[int] = []
    last_use = {a: i for i, node in enumerate(function.nodes) for a in node.arguments}
    target: dict[int, int] = {}
    for at, i in enumerate(function.results, n_inputs):
        if function.nodes[i].operator not in ("input", "constant"):
            target.setdefault(i, at)

    def emit(operator: str, result: int, arguments: list[int]) -> None:
        code.extend((OPCODES[operator], result, *arguments, *[0] * (3 - len(arguments))))

    for i, node in enumerate(function.nodes[n_inputs:], n_inputs):
        if node.operator == "constant":
            place[i] = -1 - constants.setdefault(float(node.value).hex(), len(constants))
            continue
        arguments = [place[a] for a in node.arguments]
        # Vector by vector a result may take the place of an argument.
        free += [place[a] for a in dict.fromkeys(node.arguments)
                 if last_use[a] == i and place[a] >= first_free]
        if i in target:
            place[i] = target[i]
        elif free:
            place[i] = free.pop()
        else:
            place[i], n_values = n_values, n_values + 1
        emit(node.operator, place[i], arguments)
    for at, i in enumerate(function.results, n_inputs):
        if place[i] != at:
            emit("copy", at, [place[i]])
    return code, n_values


def encode(program: Program) -> tuple[list[int], list[float]]:
    """Returns the bytecode of a program and its constants. Raises ValueError for a program that is
    larger than the interpreter allows.

    The code is a header (version, currents, states, coefficients, gradients, means, those of the
    forward pass, flags, carried states, number of values), then for each function the number of
    its instructions and the instructions.
    """
    lowered = lower(program)
    constants: dict[str, int] = {}
    encoded = [_encode_function(program, function, constants)
               for function in (*lowered.functions, *lowered.means)]
    n_values = max(n for _, n in encoded)
    if n_values > MAX_VALUES or len(constants) > MAX_CONSTANTS:
        raise ValueError(f"step: expected at most {MAX_VALUES} values at once and {MAX_CONSTANTS} "
                         f"constants, got {n_values} and {len(constants)}. Install a compiler, or "
                         f"split the step.")
    flags = program.is_spike | lowered.has_slopes << 1 | lowered.has_product << 2
    code = [VERSION, program.currents, program.states, program.coefficients,
            len(program.gradients), len(lowered.means), lowered.forward_means, flags,
            lowered.carried, n_values]
    for instructions, _ in encoded:
        code += [len(instructions) // 5, *instructions]
    return code, [float.fromhex(text) for text in constants]
