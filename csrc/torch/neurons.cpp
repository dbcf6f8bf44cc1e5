#include "neurons.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "../cpu/dispatch.h"  // and the boundary of lsnn_ext/codegen/neuron.h
#include "devices.h"

namespace lsnn::binding {
namespace {

// Entries are never removed, as calls and graphs may hold their keys.
std::mutex lock;
std::map<int64_t, std::unique_ptr<const RegisteredNeuron>>& neurons() {
  static auto* const all = new std::map<int64_t, std::unique_ptr<const RegisteredNeuron>>;
  return *all;
}

template <class T> RegisteredNeuron checked(const neuron::NeuronTable<T>& t) {
  const int64_t lanes = cpu::chosen_kernels<T>().lanes;
  LSNN_EXPECT(t.lanes == lanes, "neuron: expected vectors of ", lanes, " lanes, got ", t.lanes);
  auto is_below = [](int64_t n, int64_t least, int64_t most) { return n >= least && n <= most; };
  LSNN_EXPECT(is_below(t.states, 0, neuron::max_states) &&
                  is_below(t.currents, 1, neuron::max_currents) &&
                  is_below(t.packed, 0, neuron::max_coefficients) &&
                  is_below(t.gradients, 0, neuron::max_gradients) && t.traces == t.states &&
                  t.saved == t.currents && t.saves_currents && t.replays,
              "neuron: expected at most ", neuron::max_states, " states, ", neuron::max_currents,
              " currents, ", neuron::max_coefficients, " coefficients and ", neuron::max_gradients,
              " gradients, got ", t.states, ", ", t.currents, ", ", t.packed, " and ", t.gradients);
  return {.wide = sizeof(T) == 8,
          .table = &t,
          .sizes = {.states = t.states,
                    .traces = t.traces,
                    .currents = t.currents,
                    .saved = t.saved,
                    .gradients = t.gradients},
          .coefficients = t.packed,
          .has_number_spikes = t.has_number_spikes};
}

void keep(int64_t key, const RegisteredNeuron& entry) {
  const std::lock_guard<std::mutex> hold(lock);
  neurons().try_emplace(key, std::make_unique<const RegisteredNeuron>(entry));
}

}  // namespace

const RegisteredNeuron* find_neuron(int64_t key, const Tensor& x, const char* name) {
  if (!key) return nullptr;
  const RegisteredNeuron* found = nullptr;
  {
    const std::lock_guard<std::mutex> hold(lock);
    const auto entry = neurons().find(key);
    if (entry != neurons().end()) found = entry->second.get();
  }
  LSNN_EXPECT(found, "neuron: expected a key that is registered in this process, got ", key,
              "; call lsnn_ext.functional.recurrent with the neuron once");
  LSNN_EXPECT(has_cpu_kernels(x), name, ": expected a CPU tensor for a registered neuron, got ",
              device_text(x));
  LSNN_EXPECT(x.scalar_type() == (found->wide ? ScalarType::Double : ScalarType::Float), name,
              ": expected ", found->wide ? "float64" : "float32", " as registered, got ",
              dtype_text(x));
  return found;
}

void register_neuron(int64_t key, const std::string& path) {
  void* const object = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  LSNN_EXPECT(object, "neuron: expected a shared object, got ", dlerror());
  const auto get = (const void* (*)())dlsym(object, "lsnn_neuron");
  LSNN_EXPECT(get, "neuron: expected the symbol lsnn_neuron, got none in ", path);
  const auto* const table = (const neuron::NeuronTable<float>*)get();
  LSNN_EXPECT(table->abi_version == neuron::abi_version, "neuron: expected ABI version ",
              neuron::abi_version, ", got ", table->abi_version);
  LSNN_EXPECT(table->number_bytes == 4 || table->number_bytes == 8,
              "neuron: expected numbers of 4 or 8 bytes, got ", table->number_bytes);
  keep(key, table->number_bytes == 8 ? checked(*(const neuron::NeuronTable<double>*)table)
                                     : checked(*table));
}

namespace {
// Never freed, like its bytecode.
template <class T> const neuron::NeuronTable<T>& interpreter(const neuron::Bytecode& code) {
  return *new auto(cpu::chosen_kernels<T>().interpreter(code));
}
}  // namespace

void register_program(int64_t key, bool wide, const Ints& code,
                      const std::vector<double>& constants) {
  const neuron::Bytecode& decoded = neuron::decode(code, constants);
  keep(key, wide ? checked(interpreter<double>(decoded)) : checked(interpreter<float>(decoded)));
}

}  // namespace lsnn::binding
