#include "bytecode.h"

#include <memory>
#include <stdexcept>
#include <string>

#ifndef LSNN_VECTOR_BITS
#define LSNN_VECTOR_BITS 128  // for the table of operators
#endif
#include "../../lsnn_ext/codegen/ops.h"

namespace lsnn::neuron {
namespace {

constexpr int bytecode_version = 2;
constexpr int n_arguments[] = {
#define LSNN_COUNT(name, count, Result, parameters, expression) count,
    LSNN_STEP_OPERATORS(LSNN_COUNT)
#undef LSNN_COUNT
        1};  // copy
constexpr int n_opcodes = sizeof n_arguments / sizeof *n_arguments;

struct Owner {
  Bytecode bytecode;
  std::vector<double> constants;
  std::vector<Instruction> functions[n_bytecode_functions + max_means];
};

void expect_in_range(const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most)
    throw std::runtime_error(std::string("bytecode: ") + name + ": expected " +
                             std::to_string(least) + " to " + std::to_string(most) + ", got " +
                             std::to_string(value));
}

}  // namespace

const Bytecode& decode(const std::vector<int64_t>& code, const std::vector<double>& constants) {
  size_t at = 0;
  auto next = [&](const char* name, int64_t least, int64_t most) {
    if (at == code.size())
      throw std::runtime_error(std::string("bytecode: ") + name +
                               ": expected a number, got the end");
    expect_in_range(name, code[at], least, most);
    return code[at++];
  };
  auto owner = std::make_unique<Owner>();
  Bytecode& out = owner->bytecode;
  next("version", bytecode_version, bytecode_version);
  out.currents = (int)next("currents", 1, max_currents);
  out.states = (int)next("states", 0, max_states);
  out.coefficients = (int)next("coefficients", 0, max_coefficients);
  out.gradients = (int)next("gradients", 0, max_gradients);
  out.means = (int)next("means", 0, max_means);
  out.forward_means = (int)next("forward means", 0, out.means);
  const int64_t flags = next("flags", 0, 7);
  out.is_spike = flags & 1;
  out.has_slopes = flags >> 1 & 1;
  out.has_product = flags >> 2 & 1;
  out.carried = (uint32_t)next("carried", 0, (int64_t(1) << out.states) - 1);
  const int n_inputs = out.currents + 2 * out.states + out.coefficients + 3 + out.means;
  const int least = n_inputs + out.currents + out.states + 1 + out.gradients;
  out.n_values = (int)next("values", least, max_values);
  expect_in_range("constants", (int64_t)constants.size(), 0, max_constants);
  owner->constants = constants;
  out.constants = owner->constants.data();
  out.n_constants = (int)constants.size();
  for (int f = 0; f < n_bytecode_functions + out.means; f++) {
    std::vector<Instruction>& function = owner->functions[f];
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
    out.functions[f] = {function.data(), function.data() + n};
  }
  expect_in_range("length", (int64_t)code.size(), (int64_t)at, (int64_t)at);
  return owner.release()->bytecode;
}

}  // namespace lsnn::neuron
