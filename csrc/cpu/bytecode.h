// A step as bytecode: lsnn_ext/codegen/encode.py writes it, and interpreter.h runs it.
#pragma once
#include <stdint.h>

#include <vector>

namespace lsnn::neuron {

// Arguments: places of values, or -1 - the place of a constant.
struct Instruction { int32_t opcode, result, arguments[3]; };

enum BytecodeFunction {
  in_forward,
  in_advance,
  in_replay,
  in_adjoint,
  in_adjoint_alone,
  n_bytecode_functions
};

// A program that was checked: no instruction leads out of the values. Plain pointers, as a
// container of the C++ library would leave code of one instruction set to all others.
struct Bytecode {
  int currents, states, coefficients, gradients;
  bool is_spike, has_slopes, has_product;
  uint32_t carried;
  int n_values, n_constants;
  const double* constants;
  struct Function { const Instruction *begin, *end; } functions[n_bytecode_functions];
};

inline constexpr int max_values = 512, max_constants = 512;  // as in encode.py

// Stays for the life of the process. Throws std::runtime_error where the code is not valid.
const Bytecode& decode(const std::vector<int64_t>& code, const std::vector<double>& constants);

}  // namespace lsnn::neuron
