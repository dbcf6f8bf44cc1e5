"""What generate() and encode() write, and what they and the interpreter refuse."""
import pytest
import torch

from lsnn_ext.codegen.encode import OPCODES, encode
from lsnn_ext.codegen.generate import generate
from lsnn_ext.codegen.program import Node
from neuron_rows import load_interpreter, targets
from random_program import EXACT, random_program

PROGRAM = random_program(1, torch.float32, 1, 1, 0, EXACT, True, False)


def test_the_source_has_one_statement_a_line_and_no_dead_nodes() -> None:
    dead = PROGRAM._replace(nodes=(*PROGRAM.nodes, Node("exp", (0,))))
    source = generate(PROGRAM)
    assert generate(dead) == source
    assert max(line.count(";") for line in source.splitlines()) == 1


@pytest.mark.parametrize("at, value, message", (
    (0, 99, "version"), (1, 9, "currents"), (2, -1, "states"), (6, 1 << 20, "carried"),
    (7, 10**9, "values"), (8, 10**9, "instructions"), (9, len(OPCODES), "opcode"),
    (10, 0, "result"), (11, 600, "argument"), (11, -300, "argument")))
def test_invalid_bytecode_is_refused(at: int, value: int, message: str) -> None:
    interpreter = load_interpreter(targets()[0])
    code, constants = encode(PROGRAM)
    code[at] = value
    with pytest.raises(RuntimeError, match=f"bytecode: {message}: expected"):
        interpreter.load_code(False, code, constants)


def test_bytecode_of_another_length_is_refused() -> None:
    interpreter = load_interpreter(targets()[0])
    code, constants = encode(PROGRAM)
    for length in range(len(code)):
        with pytest.raises(RuntimeError, match="bytecode"):
            interpreter.load_code(False, code[:length], constants)
    with pytest.raises(RuntimeError, match="bytecode: length"):
        interpreter.load_code(False, [*code, 0], constants)
