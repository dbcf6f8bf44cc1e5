// _C.PreparedLayer: a layer prepared for short calls on the CPU, as control loops make them, past
// the dispatcher.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../alif.h"
#include "../cpu/block_cache.h"

namespace lsnn::binding {

using Address = std::uintptr_t;  // of a tensor's memory, from Tensor.data_ptr()

inline constexpr const char* prepared_layer_text =
    "Keeps coefficients (11,N), weights w (N,N) from neuron to neuron and delays (N,N) of a layer\n"
    "(addresses; w 0 and no delays: none), and the bytes of the tensors that they were computed\n"
    "from (sources: address and bytes of each). stored: w transposed, as the caller has it, or 0;\n"
    "its diagonal counts as 0 without autapses.";
inline constexpr const char* run_text =
    "T steps of B items from the addresses of contiguous tensors: current (T,B,N), the five of\n"
    "the state and where the five after the last step go, (B,N) and (D,B,N), and the spikes\n"
    "(T,B,N). False, and the results are void, where the sources do not hold the bytes any more\n"
    "from which the layer was prepared, or stored has other weights of a neuron that spiked:\n"
    "those of the others were not read.";

class PreparedLayer {
 public:
  // constants, numbers: as the operators take them, see boundary.h.
  PreparedLayer(bool wide, int64_t N, const std::vector<int64_t>& constants,
                const std::vector<double>& numbers, std::vector<int64_t> delays,
                Address coefficients, Address w, Address delay, Address stored, bool autapses,
                std::vector<std::pair<Address, int64_t>> sources);
  bool run(int64_t T, int64_t B, Address current, const std::vector<Address>& first,
           const std::vector<Address>& last, Address spikes) const;

 private:
  struct Free {
    void operator()(void* block) const { cpu::give_block(block); }
  };
  using Memory = std::unique_ptr<void, Free>;
  static Memory copy(Address from, int64_t bytes);
  template <class Bits> bool weights_hold(int64_t B, int64_t items, const void* before,
                                          const void* spikes) const;

  bool wide;  // float64
  Address stored;
  bool autapses;
  std::vector<int64_t> delays;
  Memory coefficients, w, as_stored, delay, bytes;  // bytes: of all sources, one after the other
  std::vector<std::pair<Address, int64_t>> sources;
  Layer layer;
};

}  // namespace lsnn::binding
