// The row functions of a step that is bytecode, for processors without a compiler at hand:
// lsnn_ext/fuse/encode.py writes it. Each instruction is a loop over the vectors of a block of
// neurons, whose values stay in the first-level cache. Operators and row functions are those of
// generated code, so that results are bitwise identical.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "../../lsnn_ext/fuse/rows.h"
#include "../platform.h"

namespace lsnn::neuron {
namespace {

constexpr int bytecode_version = 1;
constexpr int max_values = 512, max_constants = 256;  // as in encode.py
constexpr int block_bytes = 512;  // of a value

enum Opcode : int32_t {
#define LSNN_OPCODE(name, count, Result, parameters, expression) op_##name,
  LSNN_STEP_OPERATORS(LSNN_OPCODE)
#undef LSNN_OPCODE
  op_copy, n_opcodes
};
constexpr int n_arguments[] = {
#define LSNN_COUNT(name, count, Result, parameters, expression) count,
    LSNN_STEP_OPERATORS(LSNN_COUNT)
#undef LSNN_COUNT
    1};

// Arguments: places of values, or -1 - the place of a constant.
struct Instruction { int32_t opcode, result, arguments[3]; };

enum BytecodeFunction { in_forward, in_advance, in_replay, in_adjoint, in_adjoint_alone,
                        n_bytecode_functions };

// A program that was checked: no instruction leads out of the values.
struct Bytecode {
  int currents, states, coefficients, gradients;
  bool is_spike, has_slopes, has_product;
  uint32_t carried;
  int n_values;
  std::vector<double> constants;
  std::vector<Instruction> functions[n_bytecode_functions];
};

LSNN_LOCAL void expect_in_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw std::runtime_error(std::string("bytecode: ") + name + ": expected " +
                             std::to_string(least) + " to " + std::to_string(most) + ", got " +
                             std::to_string(value) + ". Clear the cache of compiled neurons.");
}

LSNN_LOCAL Bytecode decode(const std::vector<int64_t>& code, const std::vector<double>& constants) {
  size_t at = 0;
  auto next = [&](const char* name, int64_t least, int64_t most) {
    if (at == code.size())
      throw std::runtime_error(std::string("bytecode: ") + name + ": expected a number, got the " +
                               "end. Clear the cache of compiled neurons.");
    expect_in_range(name, code[at], least, most);
    return code[at++];
  };
  Bytecode out = {};
  next("version", bytecode_version, bytecode_version);
  out.currents = (int)next("currents", 1, max_currents);
  out.states = (int)next("states", 0, max_states);
  out.coefficients = (int)next("coefficients", 0, max_coefficients);
  out.gradients = (int)next("gradients", 0, max_gradients);
  const int64_t flags = next("flags", 0, 7);
  out.is_spike = flags & 1;
  out.has_slopes = flags >> 1 & 1;
  out.has_product = flags >> 2 & 1;
  out.carried = (uint32_t)next("carried", 0, (int64_t(1) << out.states) - 1);
  const int n_inputs = out.currents + 2 * out.states + out.coefficients + 3;
  const int least = n_inputs + out.currents + out.states + 1 + out.gradients;
  out.n_values = (int)next("values", least, max_values);
  expect_in_range("constants", (int64_t)constants.size(), 0, max_constants);
  out.constants = constants;
  for (std::vector<Instruction>& function : out.functions) {
    const int64_t n = next("instructions", 0, (int64_t)(code.size() - at) / 5);
    for (int64_t i = 0; i < n; i++) {
      Instruction x = {};
      x.opcode = (int32_t)next("opcode", 0, n_opcodes - 1);
      x.result = (int32_t)next("result", n_inputs, out.n_values - 1);
      for (int a = 0; a < 3; a++) {
        const bool is_read = a < n_arguments[x.opcode];
        x.arguments[a] = (int32_t)next("argument", is_read ? -(int64_t)constants.size() : 0,
                                       is_read ? out.n_values - 1 : 0);
      }
      function.push_back(x);
    }
  }
  expect_in_range("length", (int64_t)code.size(), (int64_t)at, (int64_t)at);
  return out;
}

// A vector that an operator reads as a number or as a truth value.
template <class T> struct Argument {
  Vector<T> v;
  LSNN_FUSE_METHOD operator Vector<T>() const { return v; }
  LSNN_FUSE_METHOD operator Mask<T>() const { return Operators<T>::is_true(v); }
};
template <class T> LSNN_FUSE_INLINE Vector<T> to_number(Vector<T> v) { return v; }
template <class T> LSNN_FUSE_INLINE Vector<T> to_number(Mask<T> m) {
  return Operators<T>::number(m);
}

// constants: a vector each.
template <class T>
LSNN_LOCAL void interpret(const std::vector<Instruction>& function, const Vector<T>* constants,
                          Vector<T>* values, int count) {
  using O = Operators<T>;
  constexpr int vectors = block_bytes / vector_bytes;
  for (const Instruction& x : function) {
    Vector<T>* out = values + x.result * vectors;
    const Vector<T>* from[3];
    int stride[3];
    for (int a = 0; a < 3; a++) {
      const bool is_constant = x.arguments[a] < 0;
      from[a] = is_constant ? constants + (-1 - x.arguments[a]) : values + x.arguments[a] * vectors;
      stride[a] = !is_constant;
    }
    auto argument = [&](int a, int v) LSNN_FUSE_LAMBDA {
      return Argument<T>{from[a][v * stride[a]]};
    };
    switch (x.opcode) {
#define LSNN_ARGUMENTS_1 argument(0, v)
#define LSNN_ARGUMENTS_2 argument(0, v), argument(1, v)
#define LSNN_ARGUMENTS_3 argument(0, v), argument(1, v), argument(2, v)
#define LSNN_CASE(name, count_of_arguments, Result, parameters, expression)                      \
  case op_##name:                                                                                \
    for (int v = 0; v < count; v++)                                                              \
      out[v] = to_number<T>(O::name##_(LSNN_ARGUMENTS_##count_of_arguments));                    \
    break;
      LSNN_STEP_OPERATORS(LSNN_CASE)
#undef LSNN_CASE
#undef LSNN_ARGUMENTS_1
#undef LSNN_ARGUMENTS_2
#undef LSNN_ARGUMENTS_3
      default:
        for (int v = 0; v < count; v++) out[v] = argument(0, v).v;
    }
  }
}

// The step of rows.h that runs bytecode.
template <class T> struct InterpretedStep : Operators<T> {
  using V = Vector<T>;
  static constexpr int vectors = block_bytes / vector_bytes, n_values = max_values,
                       n_sums = max_gradients;
  const Bytecode& code;
  const int currents, states, coefficients, gradients;
  const bool is_spike, has_slopes, has_product;
  const uint32_t carried;
  V constants[max_constants];

  explicit InterpretedStep(const void* settings)
      : code(*(const Bytecode*)settings), currents(code.currents), states(code.states),
        coefficients(code.coefficients), gradients(code.gradients), is_spike(code.is_spike),
        has_slopes(code.has_slopes), has_product(code.has_product), carried(code.carried) {
    for (size_t i = 0; i < code.constants.size(); i++)
      constants[i] = broadcast((T)code.constants[i]);
  }
  void run(BytecodeFunction f, V* x, int count) const {
    interpret<T>(code.functions[f], constants, x, count);
  }
  void forward(V* x, int count) const { run(in_forward, x, count); }
  void advance(V* x, int count) const { run(in_advance, x, count); }
  void replay(V* x, int count) const { run(in_replay, x, count); }
  void adjoint(V* x, int count) const { run(in_adjoint, x, count); }
  void adjoint_alone(V* x, int count) const { run(in_adjoint_alone, x, count); }
};

// The table keeps a pointer to the code, which has to outlive it.
template <class T> LSNN_LOCAL NeuronTable<T> interpreter_table(const Bytecode& code) {
  return table_of(InterpretedStep<T>(&code), &code);
}

}  // namespace
}  // namespace lsnn::neuron
