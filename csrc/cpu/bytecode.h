// A step as bytecode: lsnn_ext/codegen/encode.py writes it, and interpreter.h runs it.
#pragma once
#include <stdint.h>

#include <vector>

#include "../../lsnn_ext/codegen/neuron.h"

namespace lsnn::neuron {

// Arguments: indices of values, or -1 - the index of a constant.
struct Instruction { int32_t opcode, result, arguments[3]; };

enum BytecodeFunction {
  in_forward,
  in_advance,
  in_replay,
  in_adjoint,
  in_adjoint_alone,
  n_bytecode_functions
};

// A checked program: all indices are in range. Plain pointers, as the linker would share the code
// of a C++ container between instruction sets.
struct Bytecode {
  int currents, states, coefficients, gradients, means, forward_means;
  bool is_spike, has_slopes, has_product;
  uint32_t carried;
  int n_values, n_constants;
  const double* constants;
  struct Function { const Instruction *begin, *end; } functions[n_bytecode_functions + max_means];
};

inline constexpr int max_values = 512, max_constants = 512;  // as in encode.py

// Never freed. Throws std::runtime_error for invalid code.
const Bytecode& decode(const std::vector<int64_t>& code, const std::vector<double>& constants);

}  // namespace lsnn::neuron
