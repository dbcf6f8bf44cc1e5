#include "neurons.h"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

#include "../cpu/dispatch.h"  // and the boundary of lsnn_ext/codegen/neuron.h
#include "../cuda/neuron.h"
#include "devices.h"

namespace lsnn::binding {
namespace {

// Entries are never removed, as calls and graphs may hold their keys.
std::mutex lock;
std::map<int64_t, std::unique_ptr<const RegisteredNeuron>>& neurons() {
  static auto* const all = new std::map<int64_t, std::unique_ptr<const RegisteredNeuron>>;
  return *all;
}

static_assert(neuron::most_states == neuron::max_states);  // NVRTC does not read neuron.h

// The limits of the boundary.
void check_sizes(int64_t states, int64_t currents, int64_t coefficients, int64_t gradients) {
  auto is_below = [](int64_t n, int64_t least, int64_t most) { return n >= least && n <= most; };
  LSNN_EXPECT(is_below(states, 0, neuron::max_states) &&
                  is_below(currents, 1, neuron::max_currents) &&
                  is_below(coefficients, 0, neuron::max_coefficients) &&
                  is_below(gradients, 0, neuron::max_gradients),
              "neuron: expected at most ", neuron::max_states, " states, ", neuron::max_currents,
              " currents, ", neuron::max_coefficients, " coefficients and ", neuron::max_gradients,
              " gradients, got ", states, ", ", currents, ", ", coefficients, " and ", gradients);
}

template <class T> RegisteredNeuron checked(const neuron::NeuronTable<T>& t) {
  const int64_t lanes = cpu::chosen_kernels<T>().lanes;
  LSNN_EXPECT(t.lanes == lanes, "neuron: expected vectors of ", lanes, " lanes, got ", t.lanes);
  check_sizes(t.states, t.currents, t.packed, t.gradients);
  LSNN_EXPECT(t.traces == t.states && t.saved == t.currents && t.saves_currents && t.replays,
              "neuron: expected a table of a generated step, got another one");
  return {.wide = sizeof(T) == 8,
          .on_cpu = true,
          .table = &t,
          .sizes = {.states = t.states,
                    .traces = t.traces,
                    .currents = t.currents,
                    .saved = t.saved,
                    .gradients = t.gradients,
                    .whole_rows = t.whole_rows},
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
  LSNN_EXPECT(has_cpu_kernels(x) == found->on_cpu, name, ": expected a ",
              found->on_cpu ? "CPU" : "CUDA", " tensor, for which the neuron is registered, got ",
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

void register_cuda_neuron(int64_t key, const std::string& path, bool wide, const Ints& sizes,
                          bool has_number_spikes, bool has_product) {
  LSNN_EXPECT(sizes.size() == 4, "sizes: expected four numbers, got ", sizes.size());
  check_sizes(sizes[0], sizes[1], sizes[2], sizes[3]);
  keep(key, {.wide = wide,
             .on_cpu = false,
             .table = new cuda::NeuronModule(cuda::load_neuron(path, has_product)),
             .sizes = {.states = sizes[0],
                       .traces = sizes[0],
                       .currents = sizes[1],
                       .saved = sizes[1],
                       .gradients = sizes[3]},
             .coefficients = sizes[2],
             .has_number_spikes = has_number_spikes});
}

}  // namespace lsnn::binding
