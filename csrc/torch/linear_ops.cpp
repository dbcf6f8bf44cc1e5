// Operators around the recurrence: products of spikes with weights, and matrices in reused memory.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cpu/run.h"
#include "arguments.h"
#include "devices.h"

namespace lsnn::binding {
namespace {

void check_numbers(int64_t I, int64_t N) {
  LSNN_EXPECT(I < offsets && N < offsets && is_below(offsets, {I + 1, N + 64}),
              "weight: expected less than 2^32 numbers, got ", I, " inputs and ", N, " outputs");
}

// An uninitialised (rows, columns) matrix in reused memory, of the dtype of `like`.
Tensor buffer(Tensor like, int64_t rows, int64_t columns) {
  check_real(like, "like");
  LSNN_EXPECT(rows >= 0 && columns >= 0, "rows, columns: expected numbers >= 0, got ", rows,
              " and ", columns);
  return empty(like, {rows, columns}, like.scalar_type());
}

void set_sizes(const Tensor& x, Linear& l) {
  check_real(x, "x");
  LSNN_EXPECT(x.dim() == 2, "x: expected shape (rows, inputs), got ", shape_text(x));
  l.R = x.size(0);
  l.I = x.size(1);
}

// Sets the inputs of a linear map: numbers x (R,I), or bits (1,R,words(I)), with which x gives only
// the shape. Returns the tensor that must outlive l.
std::optional<Tensor> set_inputs(const Tensor& x, const std::optional<Tensor>& bits, Linear& l) {
  if (bits) {
    check_input_bits(*bits, "bits", x, 1, l.R, l.I);
    l.bits = (const uint32_t*)data(*bits);
    return std::nullopt;
  }
  const Tensor numbers = dense(x);
  l.x = data(numbers);
  return numbers;
}

// x (R,I), weight (N,I), bias (N) or none -> x weight^T + bias (R,N); fast for sparse x.
Tensor linear_events(Tensor x, Tensor weight, std::optional<Tensor> bias,
                     std::optional<Tensor> bits) {
  Linear l{};
  set_sizes(x, l);
  check_like(weight, "weight", x, "x");
  LSNN_EXPECT(weight.dim() == 2 && weight.size(1) == x.size(1), "weight: expected shape (outputs, ",
              x.size(1), "), got ", shape_text(weight));
  const int64_t N = weight.size(0);
  check_numbers(l.I, N);
  if (bias) {
    check_like(*bias, "bias", x, "x");
    check_shape(*bias, "bias", {N});
  }
  const std::optional<Tensor> inputs = set_inputs(x, bits, l);
  const Tensor y = empty(x, {l.R, N}, x.scalar_type());
  const std::optional<Tensor> b = bias ? std::optional<Tensor>(dense(*bias)) : std::nullopt;
  l.N = N;
  l.bias = data(b);
  l.y = y.mutable_data_ptr();
  l.w = data(weight);
  l.w_stride_n = weight.stride(0);
  l.w_stride_i = weight.stride(1);
  run_linear(l, false, x, bits.has_value());
  return y;
}

// g (R,N) = dL/dy, x (R,I) -> dL/dweight (N,I), dL/dbias (N), or (0) without `bias`. Fewer rows of
// g repeat.
std::tuple<Tensor, Tensor> linear_events_backward(Tensor g, Tensor x, std::optional<Tensor> bits,
                                                  bool bias) {
  Linear l{};
  set_sizes(x, l);
  check_like(g, "gradient", x, "x");
  LSNN_EXPECT(
      g.dim() == 2 && (g.size(0) == x.size(0) || (g.size(0) > 0 && x.size(0) % g.size(0) == 0)),
      "gradient: expected ", x.size(0), " rows or a divisor of it, got shape ", shape_text(g));
  const int64_t N = g.size(1);
  check_numbers(l.I, N);
  const std::optional<Tensor> inputs = set_inputs(x, bits, l);
  const bool sums = bias && multiplies_on_cpu(x, bits.has_value());  // in the kernels
  const Tensor g_dense = dense(g), gw = empty(x, {N, l.I}, x.scalar_type()),
               gbias = bias && !sums ? torch::stable::sum(g_dense, Ints{0})
                                     : empty(x, {bias ? N : 0}, x.scalar_type());
  l.N = N;
  l.g = data(g_dense);
  l.g_rows = g.size(0);
  l.gw = gw.mutable_data_ptr();
  l.gbias = pointer_if(sums, gbias);
  run_linear(l, true, x, bits.has_value());
  return {gw, gbias};
}

// Bits (T,B,words(I)) of spikes x (T,B,I), real numbers, bool or uint8; (0,B,words(I)) if any
// number is not 0 or 1.
Tensor spike_bits(Tensor x) {
  const ScalarType dtype = x.scalar_type();
  LSNN_EXPECT(x.dim() == 3, "x: expected shape (T, B, inputs), got ", shape_text(x));
  const bool bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte;
  if (!bytes) check_real(x, "x");
  const Tensor from = x.stride(2) == 1 ? x : dense(x);
  const cpu::SpikeRows rows{x.size(0), x.size(1), x.size(2), from.stride(0), from.stride(1)};
  const Tensor bits = empty(x, {rows.T, rows.B, words(rows.I)}, ScalarType::Int);
  uint32_t* to = (uint32_t*)bits.mutable_data_ptr();
  const bool spikes = bytes ? cpu::spike_bits((const uint8_t*)data(from), rows, to, parallel())
                      : dtype == ScalarType::Double
                          ? cpu::spike_bits((const double*)data(from), rows, to, parallel())
                          : cpu::spike_bits((const float*)data(from), rows, to, parallel());
  return spikes ? bits : empty(x, {0, rows.B, words(rows.I)}, ScalarType::Int);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lsnn, m) {
  m.def("buffer(Tensor like, int rows, int columns) -> Tensor");
  m.def("linear_events(Tensor x, Tensor weight, Tensor? bias, Tensor? bits=None) -> Tensor");
  m.def(
      "linear_events_backward(Tensor g, Tensor x, Tensor? bits=None, bool bias=True) -> "
      "(Tensor weight, Tensor bias)");
  m.def("spike_bits(Tensor x) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lsnn, CPU, m) {
  m.impl("buffer", TORCH_BOX(&buffer));
  m.impl("linear_events", TORCH_BOX(&linear_events));
  m.impl("linear_events_backward", TORCH_BOX(&linear_events_backward));
  m.impl("spike_bits", TORCH_BOX(&spike_bits));
}
STABLE_TORCH_LIBRARY_IMPL(lsnn, CUDA, m) {
  m.impl("linear_events", TORCH_BOX(&linear_events));
  m.impl("linear_events_backward", TORCH_BOX(&linear_events_backward));
}

}  // namespace lsnn::binding
