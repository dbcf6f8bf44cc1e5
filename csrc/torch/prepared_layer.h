// _C.PreparedLayer: a layer prepared for short calls on the CPU, as control loops make them, past
// the dispatcher.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../alif.h"
#include "../cpu/block_cache.h"
#include "../cpu/layout.h"
#include "../cpu/one_step.h"

namespace lsnn::binding {

using Address = std::uintptr_t;  // of a tensor's memory, from Tensor.data_ptr()

inline constexpr const char* prepared_layer_text =
    "Keeps coefficients (11,N), weights w (N,N) from neuron to neuron and delays (N,N) of a layer\n"
    "(addresses; w 0 and no delays: none), and the bytes of the tensors that they were computed\n"
    "from (sources: address and bytes of each). stored: w transposed, as the caller has it, or 0;\n"
    "its diagonal counts as 0 without autapses. recorded: whether steps will be recorded.";
inline constexpr const char* run_text =
    "T steps of B items from the addresses of contiguous tensors: current (T,B,N), the five of\n"
    "the state and where the five after the last step go, (B,N) and (D,B,N), and the spikes\n"
    "(T,B,N). False, and the results are void, where the sources do not hold the bytes any more\n"
    "from which the layer was prepared, or stored has other weights of a neuron that spiked:\n"
    "those of the others were not read.";

inline constexpr const char* is_current_text =
    "Whether the sources and all stored weights are those from which the layer was prepared.";
inline constexpr const char* record_text =
    "One step that a backward pass will follow, from addresses as of run; y (B,N) and bits\n"
    "(B,ceil(N/32)) of 32 bits each are what it needs beside the state. Nothing is compared: ask\n"
    "is_current() before.";
inline constexpr const char* adjoint_text =
    "The backward pass of such a step. want: bits of the coefficients whose gradient is asked "
    "for.\n"
    "g: addresses of the gradients of spikes, v, a, i, z, or 0 for none; to: where those of\n"
    "current, v, a, i, z go; sums: what those of w (S,N,row) of each delay, of the current over\n"
    "the batch (N) and of the coefficients (11,N) are added to; 0 for none, but for current.";

class PreparedLayer {
 public:
  // constants, numbers: as the operators take them, see boundary.h.
  PreparedLayer(bool wide, int64_t N, const std::vector<int64_t>& constants,
                const std::vector<double>& numbers, std::vector<int64_t> delays,
                Address coefficients, Address w, Address delay, Address stored, bool autapses,
                std::vector<std::pair<Address, int64_t>> sources, bool recorded);
  bool run(int64_t T, int64_t B, Address current, const std::vector<Address>& first,
           const std::vector<Address>& last, Address spikes) const;
  bool is_current() const;
  void record(int64_t B, Address current, const std::vector<Address>& first,
              const std::vector<Address>& last, Address spikes, Address y, Address bits) const;
  void adjoint(int64_t B, int64_t want, const std::vector<Address>& first, Address y, Address bits,
               const std::vector<Address>& g, const std::vector<Address>& to,
               const std::vector<Address>& sums) const;
  int64_t row() const { return cpu::padded(layer.N); }  // numbers of a row of the sums of w

 private:
  struct Free {
    void operator()(void* block) const { cpu::give_block(block); }
  };
  using Memory = std::unique_ptr<void, Free>;
  static Memory copy(Address from, int64_t bytes);
  template <class Bits> bool weights_hold(int64_t B, int64_t items, const void* before,
                                          const void* spikes) const;
  bool sources_hold() const;
  ForwardArgs forward_args(int64_t T, int64_t B, Address current, const std::vector<Address>& first,
                           const std::vector<Address>& last, Address spikes) const;

  bool wide;  // float64
  Address stored;
  bool autapses;
  std::vector<int64_t> delays;
  Memory coefficients, w, as_stored, delay, bytes;  // bytes: of all sources, one after the other
  std::vector<std::pair<Address, int64_t>> sources;
  Layer layer;
  std::unique_ptr<cpu::OneStep> one_step;  // of steps that are recorded, or null
};

}  // namespace lsnn::binding
