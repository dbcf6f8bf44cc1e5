"""Every operator of a step against torch, for each instruction set of this processor."""
import ctypes
import ctypes.util

import numpy as np
import pytest
import torch
from torch import Tensor

from lsnn_ext.codegen.program import OPERATORS, Node, Program
from neuron_rows import STRUCTS, Interpreter, StepRow, load_interpreter, pad, rows, targets
from program import evaluate_nodes

ULPS = {name: 2 for name in ("exp", "log", "tanh", "sigmoid", "sin", "cos", "atan", "erf", "pow")}
NUMBERS = 100_000


@pytest.fixture(scope="module", params=targets(), ids=lambda target: target.name)
def interpreter(request: pytest.FixtureRequest) -> Interpreter:
    return load_interpreter(request.param)


def test_the_interpreter_lists_the_operators_of_a_program(interpreter: Interpreter) -> None:
    assert interpreter.library.operator_names().decode().split() == list(OPERATORS)


def test_structs_have_the_sizes_of_the_header(interpreter: Interpreter) -> None:
    sizes = (ctypes.c_int64 * len(STRUCTS)).in_dll(interpreter.library, "struct_sizes")
    assert list(sizes) == [ctypes.sizeof(struct) for struct in STRUCTS]


def _numbers(dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of all sizes, those around 1 above all, and the special ones."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.finfo(dtype)
    span = 10.0 if dtype == torch.float32 else 12.0
    around = torch.randn(NUMBERS // 2, generator=generator, dtype=dtype) * 4
    sizes = torch.empty(NUMBERS // 4, dtype=dtype).uniform_(-span, span, generator=generator)
    wide = 2.0 ** sizes * torch.randn(NUMBERS // 4, generator=generator, dtype=dtype).sign()
    integers = torch.int32 if dtype == torch.float32 else torch.int64
    low, high = torch.iinfo(integers).min, torch.iinfo(integers).max
    bits = torch.randint(low, high, (NUMBERS // 4 - 256,), generator=generator, dtype=integers)
    special = torch.tensor(
        [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, torch.inf, -torch.inf, torch.nan, limits.max, limits.min,
         limits.tiny, -limits.tiny, limits.smallest_normal / 2, limits.eps, 88.72283, 88.72284,
         -87.33655, -103.97, -104.0, 709.7827, 709.79, -708.4, -745.13, -745.14], dtype=dtype)
    special = special.repeat(11)[torch.randperm(25 * 11, generator=generator)][:256]
    return torch.cat([around, wide, bits.view(dtype), special])


def _ulps(a: Tensor, b: Tensor) -> Tensor:
    """How many numbers of the type lie between a and b; NaN equals NaN."""
    integers = torch.int32 if a.dtype == torch.float32 else torch.int64

    def order(x: Tensor) -> Tensor:
        whole = x.contiguous().view(integers).to(torch.int64)
        return torch.where(whole < 0, torch.iinfo(integers).min - whole, whole)

    distance = (order(a) - order(b)).abs()
    distance = torch.where(a.isnan() & b.isnan(), 0, distance)
    return torch.where(a.isnan() != b.isnan(), torch.iinfo(torch.int64).max, distance)


EXTENDED = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
            "atan": np.arctan, "pow": np.power, "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
            "fmod": np.fmod}  # torch's is NaN where a / b overflows


def _fma(arguments: list[Tensor]) -> Tensor:
    """That of the C library, which rounds once."""
    wide = arguments[0].dtype == torch.float64
    kind = ctypes.c_double if wide else ctypes.c_float
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    function = library.fma if wide else library.fmaf
    function.restype, function.argtypes = kind, [kind] * 3
    results = [function(*x) for x in zip(*(a.tolist() for a in arguments), strict=True)]
    return torch.tensor(results, dtype=arguments[0].dtype)


def _expected(name: str, arguments: list[Tensor]) -> Tensor:
    """With more digits where the operator does not round exactly."""
    dtype = arguments[0].dtype
    if name in EXTENDED:
        with np.errstate(all="ignore"):  # invalid arguments are part of the test
            result = EXTENDED[name](*(x.numpy().astype(np.longdouble) for x in arguments))
            return torch.from_numpy(result.astype(arguments[0].numpy().dtype))
    if name == "sqrt":  # torch's may come from MKL, which does not round it correctly
        with np.errstate(invalid="ignore"):
            return torch.from_numpy(np.sqrt(arguments[0].numpy()))
    if name == "fma":
        return _fma(arguments)
    if name == "float32" and dtype == torch.float32:
        return arguments[0]
    if name == "erf":
        return torch.erf(arguments[0].double()).to(dtype)
    count = len(arguments)
    nodes = (*[Node("input")] * count, Node(name, tuple(range(count))))
    program = Program(dtype, count, 0, 0, nodes, (), count, False, None, (None,) * count, (), None,
                      ())
    return evaluate_nodes(program, arguments)[-1]


def _apply(interpreter: Interpreter, name: str, arguments: list[Tensor]) -> Tensor:
    """Runs the operator as a step without states, whose output is a number."""
    dtype, count = arguments[0].dtype, len(arguments)
    nodes = (*[Node("input")] * (count + 2), Node(name, tuple(range(count))))
    program = Program(dtype, count, 0, 0, nodes, (), count + 2, False, None, (None,) * count, (),
                      None, ())
    neuron = interpreter.load(program)
    N = arguments[0].numel()
    c = pad(torch.stack(arguments))
    z = torch.full((c.shape[1],), 7.0, dtype=dtype)
    before = torch.zeros_like(z)
    row = StepRow(n0=0, n1=N, N=N, c=rows(c), z_numbers=z.data_ptr())
    row.before.numbers, row.before.numbers_end = before.data_ptr(), before.numel()
    neuron.call("step", row)
    return z[:N]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_rounds_as_torch_does(interpreter: Interpreter, name: str,
                                          dtype: torch.dtype) -> None:
    arguments = [_numbers(dtype, seed) for seed in range(OPERATORS[name])]
    if name in ("and", "or", "not", "select"):
        arguments[0] = (arguments[0] > 0).to(dtype)
    result, expected = _apply(interpreter, name, arguments), _expected(name, arguments)
    distance = _ulps(result, expected)
    distance = torch.where(result == expected, 0, distance)  # signs of 0
    worst = int(distance.argmax())
    assert distance[worst] <= ULPS.get(name, 0), (
        name, [x[worst].item() for x in arguments], result[worst].item(), expected[worst].item(),
        int(distance[worst]))
