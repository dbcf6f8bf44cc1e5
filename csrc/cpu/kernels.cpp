// One instruction set: compiled once for each line of the table in instruction_sets.h, with its own
// flags, LSNN_TARGET, LSNN_VECTOR_BITS and LSNN_TARGET_NAME.
#include "backward.h"
#include "forward.h"
#include "interpreter.h"
#include "linear.h"

namespace lsnn::cpu {
namespace {

// Scratch memory of a tile, in whole pages, so that threads share no page.
template <class Scratch, class... Args> LSNN_LOCAL ScratchBytes bytes_of(Args... args) {
  Arena shared, own;
  Scratch s(shared, own, args...);
  auto whole_pages = [](int64_t bytes) LSNN_LAMBDA { return (bytes + 4095) / 4096 * 4096; };
  return {whole_pages(shared.used), whole_pages(own.used)};
}
template <class T> LSNN_LOCAL int64_t linear_bytes(const Linear& l) {
  Arena count;
  LinearScratch<T> s(count, l);
  return count.used;
}

#if LSNN_TARGET == LSNN_TARGET_AVX512
template <class T> constexpr auto bf16_of = nullptr;
template <> constexpr auto bf16_of<float> = to_bf16;
#else
template <class T> constexpr auto bf16_of = nullptr;
#endif

template <class T>
constexpr Kernels<T> table = {
    Vec<T>::lanes,
    panel<T>,
    bytes_of<ForwardScratch<T>, const ForwardArgs&, int64_t>,
    bytes_of<BackwardScratch<T>, const BackwardArgs&, int64_t, bool, int64_t>,
    forward_tile<T>,
    backward_tile<T>,
    bf16_of<T>,
    trial_product<T>,
    linear_bytes<T>,
    linear_forward_rows<T>,
    linear_gradient_rows<T>,
    spike_counts_of_columns<T>,
    spike_bits_of_rows<T>,
    leaky_forward_columns<T>,
    leaky_backward_columns<T>,
    neuron::interpreter_table<T>};

}  // namespace

#define LSNN_JOIN(a, b) a##b
#define LSNN_KERNELS(type, name) LSNN_JOIN(kernels_##type##_, name)
extern const Kernels<float> LSNN_KERNELS(f32, LSNN_TARGET_NAME) = table<float>;
extern const Kernels<double> LSNN_KERNELS(f64, LSNN_TARGET_NAME) = table<double>;

}  // namespace lsnn::cpu
