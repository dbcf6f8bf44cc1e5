"""Writes a program as bytecode for the interpreter of the kernels (csrc/cpu/interpreter.h)."""
from .lower import Function, count_inputs, lower
from .program import OPERATORS, Program

VERSION = 1
# Opcodes are places in OPERATORS; the one behind them copies a value.
OPCODES = {name: code for code, name in enumerate((*OPERATORS, "copy"))}
MAX_VALUES, MAX_CONSTANTS = 512, 512  # as in interpreter.h


class _Encoder:
    """The instructions of one function: opcode, result and three arguments each.

    The first values are the inputs, then come the results, then temporary values. An argument
    below 0 is a constant: -1 - its place.
    """

    def __init__(self, program: Program, function: Function, constants: dict[str, int],
                 numbers: list[float]) -> None:
        self.n_inputs = count_inputs(program)
        self.first_free = (self.n_inputs + program.currents + program.states + 1
                           + len(program.gradients))
        self.n_values = self.first_free
        self.code: list[int] = []
        self._free: list[int] = []
        self._place = dict(zip(range(self.n_inputs), range(self.n_inputs), strict=True))
        self._constants, self._numbers = constants, numbers
        self._encode(function)

    def _constant(self, value: float) -> int:
        key = float(value).hex()  # tells -0.0 from 0.0, and is equal for NaN
        if key not in self._constants:
            self._constants[key] = len(self._numbers)
            self._numbers.append(float(value))
        return -1 - self._constants[key]

    def _emit(self, operator: str, result: int, arguments: list[int]) -> None:
        self.code += [OPCODES[operator], result, *arguments, *[0] * (3 - len(arguments))]

    def _reserve(self) -> int:
        if self._free:
            return self._free.pop()
        self.n_values += 1
        return self.n_values - 1

    def _encode(self, function: Function) -> None:
        last_use = {a: i for i, node in enumerate(function.nodes) for a in node.arguments}
        target: dict[int, int] = {}
        for at, i in enumerate(function.results):
            is_computed = function.nodes[i].operator not in ("input", "constant")
            if is_computed:
                target.setdefault(i, self.n_inputs + at)
        for i, node in enumerate(function.nodes[self.n_inputs:], self.n_inputs):
            if node.operator == "constant":
                self._place[i] = self._constant(node.value)
                continue
            arguments = [self._place[a] for a in node.arguments]
            # Vector by vector a result may take the place of an argument.
            for a in dict.fromkeys(node.arguments):
                if last_use[a] == i and self._place[a] >= self.first_free:
                    self._free.append(self._place[a])
            self._place[i] = target[i] if i in target else self._reserve()
            self._emit(node.operator, self._place[i], arguments)
        for at, i in enumerate(function.results):
            if self._place[i] != self.n_inputs + at:
                self._emit("copy", self.n_inputs + at, [self._place[i]])


def encode(program: Program) -> tuple[list[int], list[float]]:
    """Returns the bytecode of a program and its constants. Raises ValueError for a program that is
    larger than the interpreter allows.

    The code is a header (version, currents, states, coefficients, gradients, flags, carried
    states, number of values), then for each function the number of its instructions and the
    instructions.
    """
    lowered = lower(program)
    constants: dict[str, int] = {}
    numbers: list[float] = []
    encoders = [_Encoder(program, function, constants, numbers) for function in lowered.functions]
    n_values = max(encoder.n_values for encoder in encoders)
    if n_values > MAX_VALUES or len(numbers) > MAX_CONSTANTS:
        raise ValueError(f"step: expected at most {MAX_VALUES} values at once and {MAX_CONSTANTS} "
                         f"constants, got {n_values} and {len(numbers)}. Install a compiler, or "
                         f"split the step.")
    flags = program.is_spike | lowered.has_slopes << 1 | lowered.has_product << 2
    code = [VERSION, program.currents, program.states, program.coefficients,
            len(program.gradients), flags, lowered.carried, n_values]
    for encoder in encoders:
        code += [len(encoder.code) // 5, *encoder.code]
    return code, numbers
