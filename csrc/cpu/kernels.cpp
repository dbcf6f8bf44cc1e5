// One instruction set: compiled once for each with its own flags, LSNN_ISA (512, 256, 0) and LSNN_ISA_NAME.
#include "backward.h"
#include "linear.h"

namespace lsnn::cpu {
namespace {

template <class T> LSNN_LOCAL int64_t forward_scratch(const Layer& l) {
  Arena count;
  ForwardScratch<T> s(count, l);
  return count.used;
}
template <class T> LSNN_LOCAL int64_t backward_scratch(const Layer& l) {
  Arena count;
  BackwardScratch<T> s(count, l);
  return count.used;
}

template <class T> LSNN_LOCAL int64_t linear_scratch(const Linear& l) {
  Arena count;
  LinearScratch<T> s(count, l);
  return count.used;
}

template <class T> LSNN_LOCAL void forward_any(const ForwardArgs& f, const Packed<T>& p, int64_t tile, void* scratch) {
  if (PaperModel::fits(p.model)) forward_tile(f, p, PaperModel{p.model.refractory}, tile, scratch);
  else forward_tile(f, p, p.model, tile, scratch);
}
template <class T>
LSNN_LOCAL void backward_any(const BackwardArgs& f, const Packed<T>& p, int64_t tile, void* scratch, T* gw, T* gk) {
  if (PaperModel::fits(p.model)) backward_tile(f, p, PaperModel{p.model.refractory}, tile, scratch, gw, gk);
  else backward_tile(f, p, p.model, tile, scratch, gw, gk);
}

template <class T> constexpr Kernels<T> table = {panel<T>,        forward_scratch<T>, backward_scratch<T>,    forward_any<T>,
                                                 backward_any<T>, linear_scratch<T>,  linear_forward_rows<T>, linear_gradient_rows<T>};

}  // namespace

#define LSNN_JOIN(a, b) a##b
#define LSNN_KERNELS(type, name) LSNN_JOIN(kernels_##type##_, name)
extern const Kernels<float> LSNN_KERNELS(f32, LSNN_ISA_NAME) = table<float>;
extern const Kernels<double> LSNN_KERNELS(f64, LSNN_ISA_NAME) = table<double>;

}  // namespace lsnn::cpu
