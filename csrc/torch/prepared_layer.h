// _C.PreparedLayer: a layer prepared for short calls on the CPU, as in control loops, without the
// dispatcher.
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
    "Copies coefficients (11,N), weights w (N,N) from neuron to neuron and delays (N,N) of a\n"
    "layer (addresses; w 0 and no delays: none), and the bytes of the tensors that they were\n"
    "computed from (sources: address and bytes of each). stored: w transposed, as the caller "
    "stores\n"
    "it, or 0; its diagonal counts as 0 without autapses. recorded: whether steps will be "
    "recorded.";
inline constexpr const char* run_text =
    "Runs T steps of B items on addresses of contiguous tensors: current (T,B,N), the five "
    "tensors\n"
    "of the first and of the last state, (B,N) and (D,B,N), and the spikes (T,B,N). False if the\n"
    "bytes of the sources have changed, or the stored weights of a neuron that spiked; the "
    "results\n"
    "are void then. Weights of other neurons are not compared.";

inline constexpr const char* is_current_text =
    "Whether the sources and all stored weights are unchanged since the layer was prepared.";
inline constexpr const char* record_text =
    "Runs a step for a later backward pass, from addresses as in run. Saves y (B,N) and bits\n"
    "(B,ceil(N/32)) of 32 bits each. Compares nothing: call is_current() before.";
inline constexpr const char* adjoint_text =
    "The backward pass of a recorded step. want: a bit for each coefficient with a gradient.\n"
    "g: addresses of the gradients of spikes, v, a, i, z, or 0 for none; to: addresses for those "
    "of\n"
    "current, v, a, i, z, or 0 for none except current; sums: those of w (S,N,row) of each delay,\n"
    "of the current summed over the batch (N) and of the coefficients (11,N), added in place.";

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
  int64_t row() const { return cpu::padded(layer.N); }  // numbers of a row of the gradient of w

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
  Memory coefficients, w, as_stored, delay, bytes;  // bytes: of all sources, concatenated
  std::vector<std::pair<Address, int64_t>> sources;
  Layer layer;
  std::unique_ptr<cpu::OneStep> one_step;  // for recorded steps, or null
};

}  // namespace lsnn::binding
