"""Writes a program as C++: a step for rows.h, or for the CUDA kernels of cuda_threads.h."""
import math

import torch

from .lower import TRUTH_ARGUMENTS, Function, count_inputs, lower
from .program import TRUTHS, Program


def _literal(value: float, dtype: torch.dtype) -> str:
    """Returns the C++ number that is the value rounded to the type."""
    suffix = "f" if dtype == torch.float32 else ""
    if math.isnan(value):
        return f'__builtin_nan{suffix}("")'
    if dtype == torch.float32:
        value = torch.tensor(value, dtype=torch.float64, device="cpu").float().item()
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}__builtin_inf{suffix}()"
    return value.hex() + suffix


def _write_function(program: Program, function: Function) -> list[str]:
    """Returns the lines of a function; x: its values."""
    names = [*(f"c{k}" for k in range(program.currents)),
             *(f"s{s}" for s in range(program.states)), "z_before",
             *(f"k{c}" for c in range(program.coefficients)),
             *(f"ds{s}" for s in range(program.states)), "dz", "z",
             *(f"m{m}" for m in range(len(program.means)))]
    n_inputs = count_inputs(program)
    read = {a for node in function.nodes for a in node.arguments} | set(function.results)
    lines = [f"const V {names[i]} = x[{i} * vectors];" for i in range(n_inputs) if i in read]
    nodes = function.nodes

    def is_truth(i: int) -> bool:
        return nodes[i].operator in TRUTHS

    def number(i: int) -> str:
        return f"number({names[i]})" if is_truth(i) else names[i]

    def truth(i: int) -> str:
        """Returns a mask, without a conversion to numbers where possible."""
        return names[i] if is_truth(i) else f"is_true({names[i]})"

    for i, node in enumerate(nodes[n_inputs:], n_inputs):
        names.append(f"n{i}")
        if node.operator == "constant":
            lines.append(f"const V n{i} = constant({_literal(node.value, program.dtype)});")
            continue
        truths = TRUTH_ARGUMENTS.get(node.operator, ())
        arguments = ", ".join(truth(a) if at in truths else number(a)
                              for at, a in enumerate(node.arguments))
        lines.append(f"const {'M' if is_truth(i) else 'V'} n{i} = {node.operator}_({arguments});")
    for at, i in enumerate(function.results):
        lines.append(f"x[{n_inputs + at} * vectors] = {number(i)};")
    return [f"  LSNN_FUSE_INLINE void {function.name}(V* x) {{",
            *(f"    {line}" for line in lines), "  }"]


def generate(program: Program, is_cuda: bool = False) -> str:
    """Returns the C++ source of a program: row functions of a shared object with the symbol
    lsnn_neuron, or with is_cuda CUDA kernels.

    The source includes only rows.h, or cuda_threads.h, and contains no names from the program.
    """
    lowered = lower(program)
    gradients = len(program.gradients)
    n_values = count_inputs(program) + program.currents + program.states + 1 + gradients
    number = "float" if program.dtype == torch.float32 else "double"
    functions = [line for function in (*lowered.functions, *lowered.means)
                 for line in ("", *_write_function(program, function))]
    means = len(lowered.means)
    lines = [
        "// Written by lsnn_ext/codegen/generate.py.",
        f"#include <{'cuda_threads' if is_cuda else 'rows'}.h>",
        "",
        "namespace {",
        "using namespace lsnn::neuron;",
        "",
        f"struct Step : Operators<{number}> {{",
        f"  static constexpr Fixed<{program.currents}> currents{{}};",
        f"  static constexpr Fixed<{program.states}> states{{}};",
        f"  static constexpr Fixed<{program.coefficients}> coefficients{{}};",
        f"  static constexpr Fixed<{gradients}> gradients{{}};",
        f"  static constexpr Fixed<{means}> means{{}};",
        f"  static constexpr Fixed<{lowered.forward_means}> forward_means{{}};",
        f"  static constexpr int n_values = {n_values}, n_sums = {gradients + 1};",
        f"  static constexpr int vectors = {1 if is_cuda else 'generated_vectors'};",
        "  static constexpr bool is_generated = true;",
        f"  static constexpr bool is_spike = {str(program.is_spike).lower()};",
        f"  static constexpr bool has_slopes = {str(lowered.has_slopes).lower()};",
        f"  static constexpr bool has_product = {str(lowered.has_product).lower()};",
        f"  static constexpr uint32_t carried = {lowered.carried:#x};",
        *([] if is_cuda else ["  constexpr explicit Step(const void*) {}"]),
        *functions,
        *([] if is_cuda else [
            "", "  LSNN_FUSE_INLINE void mean(int m, V* x) {",
            *(f"    if (m == {m}) mean_{m}(x);" for m in range(means)), "  }"]),
        "};",
        "",
        "}  // namespace",
        "",
        "LSNN_NEURON_KERNELS(LSNN_DEFINE_KERNEL)" if is_cuda else "LSNN_DEFINE_NEURON(Step)",
        ""]
    return "\n".join(lines)
