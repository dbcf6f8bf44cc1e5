// The leaky integrator of the readout as an operator, for a given product.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"

namespace lsnn::binding {
namespace {

void check_rows(const Tensor& t, const char* name) {
  check_real(t, name);
  LSNN_EXPECT(t.dim() == 3, name, ": expected shape (T, B, O), got ", shape_text(t));
}
// Expects a number for each item and output of x, the argument named `of`.
void check_row(const Tensor& t, const char* name, const Tensor& x, const char* of) {
  check_like(t, name, x, of);
  const int64_t wanted[] = {x.size(1), x.size(2)};
  const bool fits = t.dim() == 2 && t.size(0) == wanted[0] && t.size(1) == wanted[1];
  LSNN_EXPECT(fits, name, ": expected shape ", shape_text(wanted, 2), ", got ", shape_text(t));
}
void check_decay(double k) {
  LSNN_EXPECT(k >= 0 && k <= 1, "k: expected a number from 0 to 1, got ", k);
}

// x (T,B,O), p (B,O) or none -> p_t = k p_{t-1} + (1 - k) x_t of all steps, and of the last one.
std::tuple<Tensor, Tensor> leaky_readout(Tensor x, std::optional<Tensor> p, double k) {
  check_rows(x, "x");
  if (p) check_row(*p, "p", x, "x");
  check_decay(k);
  const int64_t T = x.size(0), B = x.size(1), O = x.size(2);
  const Tensor from = dense(x), all = empty(x, {T, B, O}, x.scalar_type()),
               last = empty(x, {B, O}, x.scalar_type());
  const std::optional<Tensor> first = dense(p);
  LeakyForward f{};
  f.T = T;
  f.n = B * O;
  f.k = k;
  f.x = data(from);
  f.first = data(first);
  f.p = all.mutable_data_ptr();
  f.last = last.mutable_data_ptr();
  run(f, x);
  return {all, last};
}

// g_p (T,B,O), g_last (B,O) or none for zeros: gradients of both results -> those of x and p.
std::tuple<Tensor, Tensor> leaky_readout_backward(Tensor g_p, std::optional<Tensor> g_last,
                                                  double k) {
  check_rows(g_p, "g_p");
  if (g_last) check_row(*g_last, "g_last", g_p, "g_p");
  check_decay(k);
  const int64_t T = g_p.size(0), B = g_p.size(1), O = g_p.size(2);
  const Tensor from = dense(g_p), gx = empty(g_p, {T, B, O}, g_p.scalar_type()),
               g_first = empty(g_p, {B, O}, g_p.scalar_type());
  std::optional<Tensor> of_last = dense(g_last);
  if (!of_last && has_cpu_kernels(g_p)) of_last = zeros(g_p, {B, O});
  LeakyBackward f{};
  f.T = T;
  f.n = B * O;
  f.k = k;
  f.gp = data(from);
  f.gp_last = data(of_last);
  f.gx = gx.mutable_data_ptr();
  f.gp_first = g_first.mutable_data_ptr();
  run(f, g_p);
  return {gx, g_first};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lsnn, m) {
  m.def("leaky_readout(Tensor x, Tensor? p, float k) -> (Tensor p, Tensor last)");
  m.def("leaky_readout_backward(Tensor g_p, Tensor? g_last, float k) -> (Tensor x, Tensor p)");
}
STABLE_TORCH_LIBRARY_IMPL(lsnn, CPU, m) {
  m.impl("leaky_readout", TORCH_BOX(&leaky_readout));
  m.impl("leaky_readout_backward", TORCH_BOX(&leaky_readout_backward));
}
STABLE_TORCH_LIBRARY_IMPL(lsnn, CUDA, m) {
  m.impl("leaky_readout", TORCH_BOX(&leaky_readout));
  m.impl("leaky_readout_backward", TORCH_BOX(&leaky_readout_backward));
}

}  // namespace lsnn::binding
