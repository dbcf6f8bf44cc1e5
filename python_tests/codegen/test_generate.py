"""The row functions of random programs, generated and interpreted, against torch; bytecode that the
interpreter refuses."""
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lsnn_ext.codegen.encode import OPCODES, encode
from lsnn_ext.codegen.generate import generate
from lsnn_ext.codegen.program import OPERATORS, Node, Program
from neuron_rows import (
    MAX_ITEMS,
    PADDING,
    ROOT,
    AdjointRows,
    Interpreter,
    Neuron,
    ReplayRow,
    ReplaySteps,
    StepRow,
    load_generated,
    load_interpreter,
    pad,
    pointers,
    rows,
    targets,
    to_bits,
)
from program import Evaluated, evaluate
from random_program import EXACT, random_program

# A run under sanitizers repeats these tests in a process of its own.
SANITIZED = os.environ.get("LSNN_TEST_SANITIZED") == "1"
MORE = ("-O1", "-g", "-fsanitize=address,undefined") if SANITIZED else ("-O3",)
SIZES = (31, 33) if SANITIZED else (1, 31, 33, 220)


class Case(NamedTuple):
    program: Program
    neurons: list[Neuron]  # generated and interpreted


@pytest.fixture(scope="module")
def interpreters() -> dict[str, Interpreter]:
    return {target.name: load_interpreter(target, MORE) for target in _used_targets()}


def _used_targets() -> list:
    return targets()[-1:] if SANITIZED else targets()


# currents, states, coefficients, float64, is_spike, has_slopes
SHAPES = ((1, 2, 3, False, True, True), (2, 0, 0, False, True, False), (3, 5, 4, True, False, True),
          (2, 3, 1, False, False, False), (1, 1, 2, True, True, True))


@pytest.fixture(scope="module", params=[(shape, target) for i, shape in enumerate(SHAPES)
                                        for target in _used_targets()[:1 if i % 2 else None]],
                ids=lambda p: f"{p[1].name}-{'-'.join(str(int(x)) for x in p[0])}")
def case(request: pytest.FixtureRequest, interpreters: dict[str, Interpreter],
         tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    (K, S, C, wide, is_spike, has_slopes), target = request.param
    dtype = torch.float64 if wide else torch.float32
    program = random_program(K + 7 * S, dtype, K, S, C, EXACT, is_spike, has_slopes)
    folder = tmp_path_factory.mktemp("generated")
    yield Case(program, [load_generated(program, folder, target, MORE),
                         interpreters[target.name].load(program)])


def _equal(a: Tensor, b: Tensor) -> bool:
    """NaN equals NaN."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


class Given(NamedTuple):
    """Random inputs of some items: (items, rows, N)."""

    c: Tensor
    states: Tensor
    before: Tensor  # (items, N)
    coefficients: Tensor  # (C, N)
    d_states: Tensor
    dz: Tensor


def _draw(program: Program, items: int, N: int, number_spikes: bool) -> Given:
    generator = torch.Generator().manual_seed(N + items)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=program.dtype)

    before = numbers(items, N)
    if not number_spikes:
        before = (before > 0).to(program.dtype)
    K, S = program.currents, program.states
    return Given(numbers(items, K, N), numbers(items, S, N), before,
                 numbers(program.coefficients, N), numbers(items, S, N), numbers(items, N))


def _evaluate(program: Program, given: Given, gradients: tuple[Tensor, Tensor] | None = None
              ) -> Evaluated:
    d_states, dz = gradients or (given.d_states, given.dz)
    return evaluate(program, given.c.unbind(1), given.states.unbind(1), given.before,
                    given.coefficients.unbind(0), d_states.unbind(1), dz)


def _point_to(spikes: ctypes.Structure, z: Tensor, as_numbers: bool) -> Tensor:
    """Sets the fields of Spikes to (N) spikes; returns bits, which must stay alive, as must z."""
    bits = to_bits(z)
    spikes.bits = bits.data_ptr()
    if as_numbers:
        spikes.numbers, spikes.numbers_end = z.data_ptr(), z.numel()
    return bits


def _run_step(neuron: Neuron, given: Given, as_numbers: bool, **pointers: int) -> Tensor:
    """The states (S, NP) after a step; pointers: further fields of StepRow."""
    N = given.before.shape[1]
    before, c = given.before[0].contiguous(), pad(given.c[0], torch.nan)
    states = pad(given.states[0], torch.nan)
    packed = neuron.pack(pad(given.coefficients, torch.nan))
    row = StepRow(coefficients=packed.data_ptr(), n0=0, n1=N, N=N, c=rows(c), states=rows(states),
                  is_last=True, **pointers)
    bits = _point_to(row.before, before, as_numbers)
    neuron.call("step", row)
    del bits
    return states


@pytest.mark.parametrize("written", (True, False), ids=("all", "least"))
@pytest.mark.parametrize("number_spikes", (False, True), ids=("bits", "numbers"))
@pytest.mark.parametrize("N", SIZES)
def test_a_step_is_that_of_torch(case: Case, N: int, number_spikes: bool, written: bool) -> None:
    program = case.program
    given = _draw(program, 1, N, number_spikes)
    expected = _evaluate(program, given)
    for neuron in case.neurons:
        z = torch.full((N + -N % PADDING,), 7.0, dtype=program.dtype)
        z_numbers, bits = z.clone(), torch.full((len(z) // 32,), -1, dtype=torch.int32)
        traces = [torch.zeros(N, dtype=program.dtype) if s % 2 == 0 else None
                  for s in range(program.states)]
        to, fields = pointers(traces), {}
        if not program.is_spike:
            fields["z_numbers"] = z_numbers.data_ptr()
        if written:
            fields |= {"bits": bits.data_ptr(), "z": z.data_ptr(), "traces": ctypes.addressof(to)}
        states = _run_step(neuron, given, number_spikes, **fields)
        for s, new in enumerate(expected.new_states):
            assert _equal(states[s, :N], new[0])
            trace = traces[s]
            assert trace is None or _equal(trace, new[0] if written else torch.zeros_like(trace))
        if written:
            assert _equal(z[:N], expected.z[0])
            assert torch.equal(bits, to_bits(expected.z[0]))
        if not program.is_spike:
            assert _equal(z_numbers[:N], expected.z[0])


def _carried(neuron: Neuron, S: int) -> list[int]:
    return [s for s in range(S) if neuron.table.carried >> s & 1]


@pytest.mark.parametrize("number_spikes", (False, True), ids=("bits", "numbers"))
@pytest.mark.parametrize("N", SIZES)
def test_a_replay_is_the_step_again(case: Case, N: int, number_spikes: bool) -> None:
    """Three steps at once, then the last of them again alone."""
    program, steps = case.program, 3
    S = program.states
    given = _draw(program, steps, N, number_spikes)
    states, before = given.states[:1], given.before[:1]
    z, read, expected = [], [], None
    for t in range(steps):
        read.append(states[0])
        expected = _evaluate(program, given._replace(c=given.c[t:t + 1], states=states,
                                                     before=before))
        z.append(expected.z[0])
        states = torch.stack(expected.new_states, 1) if S else states
        before = expected.z
    saved, after = given.c.contiguous(), torch.stack(z).contiguous()
    after_bits = to_bits(after)
    NP = N + -N % PADDING
    for neuron in case.neurons:
        packed = neuron.pack(pad(given.coefficients, torch.nan))
        first = pad(read[0], torch.nan)
        left = torch.full((S, NP), 7.0, dtype=program.dtype)
        call = ReplaySteps(coefficients=packed.data_ptr(), n0=0, n1=N, N=N, steps=steps,
                           saved=rows(saved[0]), saved_stride=saved.stride(0), read=rows(first),
                           left=rows(left), bits_stride=after_bits.stride(0), numbers_stride=N)
        first_before = given.before[0].contiguous()
        first_bits = _point_to(call.before, first_before, number_spikes)
        call.after.bits = after_bits.data_ptr()
        if not program.is_spike:
            call.after.numbers, call.after.numbers_end = after.data_ptr(), N
        neuron.call("replay_steps", call)
        for s in _carried(neuron, S):
            assert _equal(left[s, :N], expected.new_states[s][0])

        last = pad(read[-1], torch.nan)
        left.fill_(7.0)
        active = torch.zeros(NP // 16, MAX_ITEMS, dtype=torch.int16)
        row = ReplayRow(coefficients=packed.data_ptr(), n0=0, n1=N, N=N, saved=rows(saved[-1]),
                        read=rows(last), left=rows(left), active=active.data_ptr())
        bits = [_point_to(side, spikes, not program.is_spike)
                for side, spikes in ((row.before, after[-2]), (row.after, after[-1]))]
        count = neuron.call("replay", row)
        for s in _carried(neuron, S):
            assert _equal(left[s, :N], expected.new_states[s][0])
        assert neuron.table.has_inactive == (expected.slopes is not None)
        if expected.slopes is not None:
            is_active = (torch.stack(expected.slopes) != 0).any(0)[0]
            halves = active[:, 0].to(torch.int64) & 0xffff
            found = (halves[:, None] >> torch.arange(16) & 1).flatten()
            assert torch.equal(found[:N].bool(), is_active) and not found[N:].any()
            assert count == int(is_active.sum())
        del first_bits, bits


@pytest.mark.parametrize("outside", ("nothing", "all", "scalar"))
@pytest.mark.parametrize("want", (0, 0b101, 0b111))
@pytest.mark.parametrize("N", SIZES)
def test_an_adjoint_is_that_of_torch(case: Case, N: int, want: int, outside: str) -> None:
    """outside: which gradients of spikes and traces the caller gives."""
    program, items = case.program, 3
    K, S, G = program.currents, program.states, len(program.gradients)
    want &= (1 << G) - 1
    number_spikes = not program.is_spike
    given = _draw(program, items, N, number_spikes)
    gz = torch.ones(items, 1 if outside == "scalar" else N, dtype=program.dtype)
    g_traces = [torch.full((items, N), 0.5, dtype=program.dtype) if s % 2 == 0 else None
                for s in range(S)]
    d_states, dz = given.d_states, given.dz
    if outside != "nothing":
        dz = dz + gz
    if outside == "all" and S:
        d_states = d_states + torch.stack([torch.zeros_like(dz) if g is None else g
                                           for g in g_traces], 1)
    expected = _evaluate(program, given, (d_states, dz))
    NP = N + -N % PADDING
    zero = torch.zeros(items, N, dtype=program.dtype)
    saved, before = given.c.contiguous(), given.before.contiguous()
    before_bits, after_bits = to_bits(before), to_bits(expected.z)
    for neuron in case.neurons:
        packed = neuron.pack(pad(given.coefficients, torch.nan))
        read = pad(given.states.transpose(0, 1), torch.nan)
        d_rows, dz_rows = pad(given.d_states.transpose(0, 1), torch.nan), pad(given.dz, torch.nan)
        dc = pad(torch.full((K, items, N), 7.0, dtype=program.dtype))
        gx = torch.full((items, K, N), 7.0, dtype=program.dtype)
        sums = torch.ones(max(G, 1), NP, dtype=program.dtype)
        call = AdjointRows(coefficients=packed.data_ptr(), items=items, n0=0, n1=N, N=N, NP=NP,
                           saved=rows(saved[0]), saved_items=saved.stride(0),
                           read=rows(read), d_states=rows(d_rows), dz=dz_rows.data_ptr(),
                           dz_stride=NP, dc=rows(dc), sums=sums.data_ptr() if G else None,
                           want=want)
        call.before.first.bits, call.before.bits_stride = before_bits.data_ptr(), NP // 32
        call.after.first.bits, call.after.bits_stride = after_bits.data_ptr(), NP // 32
        if number_spikes:
            for side, numbers in ((call.before, before), (call.after, expected.z)):
                side.first.numbers, side.first.numbers_end = numbers.data_ptr(), N
                side.numbers_stride = N
        to = pointers(g_traces)
        if outside != "nothing":
            call.gz, call.gz_stride_b = gz.data_ptr(), gz.stride(0)
            call.gz_next = gz.data_ptr()
            call.gz_stride_n = int(outside != "scalar")
            call.gx, call.gx_items = rows(gx[0]), gx.stride(0)
        if outside == "all":
            call.g_traces = ctypes.addressof(to)
        neuron.call("adjoint", call)
        for k, d in enumerate(expected.d_currents):
            d = zero if d is None else d
            assert _equal(dc[k, :, :N], d) and not dc[k, :, N:].any()
            assert outside == "nothing" or _equal(gx[:, k], d)
        for s, d in enumerate(expected.d_states):
            assert _equal(d_rows[s, :, :N], zero if d is None else d)
        assert _equal(dz_rows[:, :N], zero if expected.d_z is None else expected.d_z)
        for g, d in enumerate(expected.gradients):
            total = torch.zeros(N, dtype=program.dtype)
            for item in zero if d is None else d:
                total = total + item
            assert _equal(sums[g, :N], 1 + total if want >> g & 1 else torch.ones_like(total))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
def test_generated_code_and_the_interpreter_have_the_same_bits(
        dtype: torch.dtype, interpreters: dict[str, Interpreter], tmp_path: Path) -> None:
    """All operators, those that round more than once too."""
    target = _used_targets()[0]
    program = random_program(3, dtype, 2, 3, 2, tuple(OPERATORS), False, True)
    used = {node.operator for node in program.nodes}
    nodes, new = list(program.nodes), []
    for name, count in OPERATORS.items():  # each at least once
        if name not in used:
            nodes.append(Node(name, tuple(range(count))))
            new.append(len(nodes) - 1)
    for i in new:
        nodes.append(Node("add", (program.z if i == new[0] else len(nodes) - 1, i)))
    program = program._replace(nodes=tuple(nodes), z=len(nodes) - 1)
    given = _draw(program, 1, 220, True)
    results = []
    for neuron in (load_generated(program, tmp_path, target, MORE),
                   interpreters[target.name].load(program)):
        z = torch.zeros(224, dtype=dtype)
        states = _run_step(neuron, given, True, z_numbers=z.data_ptr())
        results.append((states, z))
    integers = torch.int32 if dtype == torch.float32 else torch.int64
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.view(integers)[..., :220], b.view(integers)[..., :220])


@pytest.mark.slow
def test_sanitizers_find_nothing() -> None:
    """Rows of the caller have their exact sizes, so that a number read beyond them is an error."""
    found = [subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True,
                            text=True).stdout.strip() for name in ("asan", "ubsan")]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip("g++ has no sanitizers")
    environment = {**os.environ, "LD_PRELOAD": ":".join(found), "LSNN_TEST_SANITIZED": "1",
                   "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(ROOT),
                   "UBSAN_OPTIONS": "halt_on_error=1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "torch or again", __file__],
                          env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


# ----------------------------------------------------------------------------------- bytecode
PROGRAM = random_program(1, torch.float32, 1, 1, 0, EXACT, True, False)


def test_the_source_has_one_statement_a_line_and_no_dead_nodes() -> None:
    dead = PROGRAM._replace(nodes=(*PROGRAM.nodes, Node("exp", (0,))))
    source = generate(PROGRAM)
    assert generate(dead) == source
    assert max(line.count(";") for line in source.splitlines()) == 1


@pytest.mark.parametrize("at, value, message", (
    (0, 99, "version"), (1, 9, "currents"), (2, -1, "states"), (5, 17, "means"),
    (6, 1, "forward means"), (8, 1 << 20, "carried"), (9, 10**9, "values"),
    (10, 10**9, "instructions"), (11, len(OPCODES), "opcode"), (12, 0, "result"),
    (13, 600, "argument"), (13, -300, "argument")))
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
