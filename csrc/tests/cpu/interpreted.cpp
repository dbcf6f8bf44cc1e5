// The interpreter as a shared object, for python_tests/codegen/test_generate.py.
#include "../../cpu/bytecode.cpp"  // the whole library is this file
#include "../../cpu/interpreter.h"

using namespace lsnn::neuron;

namespace {
template <class T> const void* table_for(const Bytecode& code) {
  return new NeuronTable<T>(interpreter_table<T>(code));  // never freed
}
std::string message;
}  // namespace

extern "C" {
__attribute__((visibility("default"))) const void* interpreted_neuron(
    bool wide, const int64_t* code, int64_t length, const double* constants, int64_t n_constants) {
  try {
    const Bytecode& decoded = decode({code, code + length}, {constants, constants + n_constants});
    return wide ? table_for<double>(decoded) : table_for<float>(decoded);
  } catch (const std::runtime_error& error) {
    message = error.what();
    return nullptr;
  }
}
__attribute__((visibility("default"))) const char* interpreter_error() { return message.c_str(); }

// Sizes of the structs of neuron.h, which the tests declare again.
__attribute__((visibility("default"))) extern const int64_t struct_sizes[5] = {
    sizeof(NeuronTable<float>), sizeof(StepRow<float>), sizeof(ReplaySteps<float>),
    sizeof(ReplayRow<float>), sizeof(AdjointRows<float>)};

// The names of the operators by opcode.
#define LSNN_NAME(name, count, Result, parameters, expression) #name " "
__attribute__((visibility("default"))) const char* operator_names() {
  return LSNN_STEP_OPERATORS(LSNN_NAME);
}
}
