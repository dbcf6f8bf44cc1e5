// One instruction set: compiled once for each with its own flags, LSNN_ISA (512, 256, 0) and LSNN_ISA_NAME.
#include "backward.h"
#include "forward.h"
#include "linear.h"

namespace lsnn::cpu {
namespace {

// Bytes of scratch memory.
template <class Scratch, class... Args> LSNN_LOCAL int64_t bytes_of(Args... args) {
  Arena count;
  Scratch s(count, args...);
  return count.used;
}

template <class T> LSNN_LOCAL void forward_any(const ForwardArgs& f, const Packed<T>& p, int64_t tile, void* scratch) {
  if (PaperModel::fits(p.model)) forward_tile(f, p, PaperModel{p.model.refractory}, tile, scratch);
  else forward_tile(f, p, p.model, tile, scratch);
}
template <class T>
LSNN_LOCAL void backward_any(const BackwardArgs& f, const Packed<T>& p, int64_t tile, void* scratch, const Sums<T>& sums) {
  if (PaperModel::fits(p.model)) backward_tile(f, p, PaperModel{p.model.refractory}, tile, scratch, sums);
  else backward_tile(f, p, p.model, tile, scratch, sums);
}

#if LSNN_ISA == 512
template <class T> constexpr auto bf16_of = nullptr;
template <> constexpr auto bf16_of<float> = to_bf16;
#else
template <class T> constexpr auto bf16_of = nullptr;
#endif

template <class T>
constexpr Kernels<T> table = {Vec<T>::lanes,
                              panel<T>,
                              bytes_of<ForwardScratch<T>, const ForwardArgs&>,
                              bytes_of<BackwardScratch<T>, const BackwardArgs&, bool, bool>,
                              forward_any<T>,
                              backward_any<T>,
                              bf16_of<T>,
                              trial_product<T>,
                              bytes_of<LinearScratch<T>, const Linear&>,
                              linear_forward_rows<T>,
                              linear_gradient_rows<T>};

}  // namespace

#define LSNN_JOIN(a, b) a##b
#define LSNN_KERNELS(type, name) LSNN_JOIN(kernels_##type##_, name)
extern const Kernels<float> LSNN_KERNELS(f32, LSNN_ISA_NAME) = table<float>;
extern const Kernels<double> LSNN_KERNELS(f64, LSNN_ISA_NAME) = table<double>;

}  // namespace lsnn::cpu
