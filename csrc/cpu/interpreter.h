// The row functions of a step in bytecode, which lsnn_ext/codegen/encode.py writes where no
// compiler is available. Each instruction is a loop over the vectors of a block of neurons, whose
// values stay in the L1 cache. Operators and row functions are those of generated code, so that
// results are bitwise identical.
#pragma once
#include "../../lsnn_ext/codegen/rows.h"
#include "../platform.h"
#include "bytecode.h"

namespace lsnn::neuron {
namespace {

constexpr int block_bytes = 512;  // of a value

enum Opcode : int32_t {
#define LSNN_OPCODE(name, count, Result, parameters, expression) op_##name,
  LSNN_STEP_OPERATORS(LSNN_OPCODE)
#undef LSNN_OPCODE
};

// A vector of numbers or of truth values.
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
LSNN_LOCAL void interpret(const Bytecode::Function& function, const Vector<T>* constants,
                          Vector<T>* values, int count) {
  using O = Operators<T>;
  constexpr int vectors = block_bytes / vector_bytes;
  struct Reader {  // of an argument, vector by vector; stride 0 for a constant
    const Vector<T>* from;
    int64_t stride;
    LSNN_FUSE_METHOD Argument<T> operator()(int64_t v) const { return {from[v * stride]}; }
  };
  auto reader = [&](int32_t place) LSNN_FUSE_LAMBDA {
    return place < 0 ? Reader{constants + (-1 - place), 0} : Reader{values + place * vectors, 1};
  };
  for (const Instruction* at = function.begin; at < function.end; at++) {
    const Instruction x = *at;
    Vector<T>* out = values + x.result * vectors;
    const Reader a = reader(x.arguments[0]), b = reader(x.arguments[1]), c = reader(x.arguments[2]);
    switch (x.opcode) {
#define LSNN_ARGUMENTS_1 a(v)
#define LSNN_ARGUMENTS_2 a(v), b(v)
#define LSNN_ARGUMENTS_3 a(v), b(v), c(v)
#define LSNN_CASE(name, count_of_arguments, Result, parameters, expression)   \
  case op_##name:                                                             \
    for (int v = 0; v < count; v++)                                           \
      out[v] = to_number<T>(O::name##_(LSNN_ARGUMENTS_##count_of_arguments)); \
    break;
      LSNN_STEP_OPERATORS(LSNN_CASE)
#undef LSNN_CASE
#undef LSNN_ARGUMENTS_1
#undef LSNN_ARGUMENTS_2
#undef LSNN_ARGUMENTS_3
      default:
        for (int v = 0; v < count; v++) out[v] = a(v).v;
    }
  }
}

// The step of rows.h that runs bytecode.
template <class T> struct InterpretedStep : Operators<T> {
  using V = Vector<T>;
  static constexpr int vectors = block_bytes / vector_bytes, n_values = max_values,
                       n_sums = max_gradients;
  static constexpr bool is_generated = false;
  const Bytecode& code;
  const int currents, states, coefficients, gradients, means, forward_means;
  const bool is_spike, has_slopes, has_product;
  const uint32_t carried;
  V constants[max_constants];

  explicit InterpretedStep(const void* settings)
      : code(*(const Bytecode*)settings),
        currents(code.currents),
        states(code.states),
        coefficients(code.coefficients),
        gradients(code.gradients),
        means(code.means),
        forward_means(code.forward_means),
        is_spike(code.is_spike),
        has_slopes(code.has_slopes),
        has_product(code.has_product),
        carried(code.carried) {
    for (int i = 0; i < code.n_constants; i++) constants[i] = broadcast((T)code.constants[i]);
  }
  void run(int f, V* x, int count) const { interpret<T>(code.functions[f], constants, x, count); }
  void forward(V* x, int count) const { run(in_forward, x, count); }
  void advance(V* x, int count) const { run(in_advance, x, count); }
  void replay(V* x, int count) const { run(in_replay, x, count); }
  void adjoint(V* x, int count) const { run(in_adjoint, x, count); }
  void adjoint_alone(V* x, int count) const { run(in_adjoint_alone, x, count); }
  void mean(int m, V* x, int count) const { run(n_bytecode_functions + m, x, count); }
};

// The table keeps a pointer to the code, which outlives it.
template <class T> LSNN_LOCAL NeuronTable<T> interpreter_table(const Bytecode& code) {
  return table_of(InterpretedStep<T>(&code), &code);
}

}  // namespace
}  // namespace lsnn::neuron
