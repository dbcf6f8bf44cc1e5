// The operators: schemas, checks, allocation, call. Through the stable ABI one binary serves every torch from 2.11 on.
#include <torch/csrc/stable/library.h>

#include "devices.h"
#include "layer.h"

namespace lsnn::binding {
namespace {

using Maybe = std::optional<Tensor>;

void check_checkpoint(int64_t steps, const Tensor& like) {
  LSNN_EXPECT(steps >= 0 && steps <= most_steps && (!steps || has_cpu_kernels(like)),
              "checkpoint: expected 0, or steps from 1 to 2^48 on the CPU, got ", steps);
}

using Fifteen =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Eleven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// checkpoint: 0, or the steps between two saved states; y is then computed again in the backward pass. x_bits: the inputs as bits
// (T,B,words(I)); then nothing of the current is read but its shape and type. as_bits: return the bits of the spikes though nothing
// else is saved. small_y: y is saved as bfloat16.
Fifteen alif_forward(Tensor current, Tensor w_rec, Tensor coefficients, Maybe delay, Ints delays, Tensor v, Tensor a, Tensor i, Tensor r,
                     Tensor z, Maybe w_in, Maybe bias, Maybe w_out, Maybe p, int64_t dynamics, int64_t surrogate, double dampening,
                     int64_t refractory, bool smooth, bool trace, bool save, int64_t checkpoint, double k_out, bool spikes, Maybe x_bits,
                     bool as_bits, bool small_y) {
  LSNN_EXPECT(current.dim() == 3, "current must have shape (T, B, N), got ", shape_text(current));
  const ScalarType type = current.scalar_type();
  LSNN_EXPECT(is_real(type), "current must be float32 or float64");
  const int64_t T = current.size(0), B = current.size(1);
  const LayerHolder h =
      make_layer(T, B, current, "current", w_rec, coefficients, delay, delays, dynamics, surrogate, dampening, refractory, smooth);
  Layer l = h.layer;
  l.delays = h.delays.data();
  const int64_t N = l.N;
  LSNN_EXPECT(w_in || N == current.size(2), "w_rec must have shape (", current.size(2), ", ", current.size(2), ") for a current of ",
              current.size(2), " neurons, got ", shape_text(w_rec));
  check_checkpoint(checkpoint, current);
  LSNN_EXPECT(spikes || has_cpu_kernels(current), "spikes: expected True, as only the CPU kernels can leave them out");
  LSNN_EXPECT(!as_bits || has_cpu_kernels(current), "as_bits: expected False, as only the CPU kernels return spikes as bits");
  LSNN_EXPECT(!small_y || type == ScalarType::Float, "small_y: expected False for a current of float64");
  const StateHolder s = make_state(current, l, v, a, i, r, z);
  const Maybe c = dense(bias), p0 = dense(p);
  const Projection in = make_projection(current, x_bits, w_in, c, l);
  const Tensor x = x_bits || current.stride(2) == 1 || current.size(2) == 1 ? current : dense(current);
  const Readout readout = make_readout(x, w_out, p0, k_out, B, N);

  auto when = [&](bool wanted, const Ints& sizes) { return empty(current, wanted ? sizes : Ints{0}, type); };
  const int64_t every = checkpoint ? checkpoint : segment, O = readout.O;
  const Tensor out = when(spikes, {T, B, N});
  const Tensor vT = empty(current, {B, N}, type), aT = empty(current, {B, N}, type), iT = empty(current, {B, N}, type),
               rT = empty(current, {B, N}, type), zT = empty(current, {l.D, B, N}, type);
  const Tensor tv = when(trace, {T, B, N}), ta = when(trace, {T, B, N}), tA = when(trace, {T, B, N});
  const Tensor pt = when(O, {T, B, O}), pT = when(O, {B, O});
  const bool save_y = save && !checkpoint;
  const Tensor y = empty(current, save_y ? Ints{T, B, N} : Ints{0}, small_y ? ScalarType::BFloat16 : type);
  const Tensor smooth_z = when(save && smooth, {T, B, N}), carry = when(save, {segments(T, every), 4, B, N});
  const Tensor bits = empty(current, save || as_bits ? Ints{T, B, words(N)} : Ints{0}, ScalarType::Int);
  auto out_ptr = [](const Tensor& t, bool wanted) { return wanted ? t.mutable_data_ptr() : nullptr; };

  ForwardArgs f{};
  f.layer = l;
  f.x = data(x), f.x_stride_t = x.stride(0), f.x_stride_b = x.stride(1);
  f.first = s.state();
  f.last = {vT.mutable_data_ptr(), aT.mutable_data_ptr(), iT.mutable_data_ptr(), rT.mutable_data_ptr(), zT.mutable_data_ptr()};
  f.z = out_ptr(out, spikes);
  f.trace_v = out_ptr(tv, trace), f.trace_a = out_ptr(ta, trace), f.trace_A = out_ptr(tA, trace);
  f.save = save;
  f.saved = {out_ptr(y, save_y),
             (uint32_t*)out_ptr(bits, save || as_bits),
             out_ptr(smooth_z, save && smooth),
             out_ptr(carry, save),
             save_y && small_y,
             every};
  f.projection = in, f.readout = readout;
  f.readout_p = out_ptr(pt, O), f.readout_last = out_ptr(pT, O);
  run(f, current);
  return {out, vT, aT, iT, rT, zT, tv, ta, tA, pt, pT, y, bits, smooth_z, carry};
}

// want: bit k set where the gradient of coefficient k is asked for; wanted: which of current, w_rec, w_in, bias, w_out and z are
// asked for, a bit each in this order; reduced: products may round to bfloat16. The gradient of the current is that of the projected one
// where w_in is given.
Eleven alif_backward(Maybe g_spikes, Maybe g_trace_v, Maybe g_trace_a, Maybe g_trace_threshold, Maybe g_v, Maybe g_a, Maybe g_i, Maybe g_z,
                     Maybe g_p, Maybe g_p_last, Maybe current, Tensor w_rec, Tensor coefficients, Maybe delay, Ints delays, Tensor v,
                     Tensor a, Tensor i, Tensor r, Tensor z, Maybe w_in, Maybe bias, Maybe w_out, Maybe p, Tensor y, Tensor bits,
                     Tensor smooth_z, Tensor carry, int64_t dynamics, int64_t surrogate, double dampening, int64_t refractory, bool smooth,
                     int64_t checkpoint, double k_out, int64_t want, int64_t wanted, bool reduced, Maybe x_bits) {
  LSNN_EXPECT(bits.dim() == 3, "bits must be what alif_forward saved, got shape ", shape_text(bits));
  const ScalarType type = carry.scalar_type();
  LSNN_EXPECT(is_real(type), "carry must be float32 or float64");
  LSNN_EXPECT(want >= 0 && want < 1 << n_coefficients, "want: expected a bit for each of ", +n_coefficients, " coefficients, got ", want);
  LSNN_EXPECT(wanted >= 0 && wanted < 1 << 6, "wanted: expected 6 bits, got ", wanted);
  check_checkpoint(checkpoint, carry);
  const bool small_y = y.scalar_type() == ScalarType::BFloat16 && !checkpoint;
  const int64_t T = bits.size(0), B = bits.size(1), every = checkpoint ? checkpoint : segment;
  const LayerHolder h =
      make_layer(T, B, carry, "carry", w_rec, coefficients, delay, delays, dynamics, surrogate, dampening, refractory, smooth);
  Layer l = h.layer;
  l.delays = h.delays.data(), l.reduced = reduced;
  const int64_t N = l.N;
  LSNN_EXPECT(small_y ? type == ScalarType::Float : checkpoint || y.scalar_type() == type, "y: expected the dtype of carry, or bfloat16");
  check_like_device(y, "y", carry, "carry");
  check_shape(y, "y", checkpoint ? Ints{0} : Ints{T, B, N});
  check_shape(carry, "carry", {segments(T, every), 4, B, N});
  LSNN_EXPECT(bits.scalar_type() == ScalarType::Int, "bits must be int32");
  check_like_device(bits, "bits", carry, "carry");
  if (smooth) {
    check_like(smooth_z, "smooth_z", carry, "carry");
    check_shape(smooth_z, "smooth_z", {T, B, N});
  }
  const bool whole = y.is_contiguous() && bits.is_contiguous() && carry.is_contiguous() && (!smooth || smooth_z.is_contiguous());
  LSNN_EXPECT(whole, "saved tensors must be contiguous");
  check_bits(bits, "bits", T, B, N);
  LSNN_EXPECT(current.has_value() || !(checkpoint || w_in), "current: expected it beside w_in or checkpoint, got none");
  Maybe x = current;
  if (x) {
    check_like(*x, "current", carry), check_shape(*x, "current", {T, B, w_in ? w_in->size(1) : N});
    if (x->stride(2) != 1 && x->size(2) > 1 && !x_bits) x = dense(*x);
  }
  const StateHolder s = make_state(carry, l, v, a, i, r, z);
  const Maybe c = dense(bias), p0 = dense(p);
  const Projection in = x ? make_projection(*x, x_bits, w_in, c, l) : Projection{};
  const Readout readout = make_readout(carry, w_out, p0, k_out, B, N);
  if (want & (1 << KAPPA | 1 << SIGMA) && coefficients.is_cpu())
    for (int64_t n = 0; n < N; n++)
      LSNN_EXPECT(
          type == ScalarType::Double ? ((const double*)l.coefficients)[KAPPA * N + n] : ((const float*)l.coefficients)[KAPPA * N + n],
          "kappa must not be 0 where the gradient of kappa or sigma is asked for, got 0 at neuron ", n);
  auto plain = [&](const Maybe& g, const char* name, const Ints& sizes) {
    if (g) check_like(*g, name, carry), check_shape(*g, name, sizes);
    return dense(g);
  };
  Maybe gs = g_spikes;
  if (gs) {
    check_like(*gs, "gradient of spikes", carry), check_shape(*gs, "gradient of spikes", {T, B, N});
    if (gs->stride(2) > 1) gs = dense(*gs);
  }
  const auto gtv = plain(g_trace_v, "gradient of trace v", {T, B, N}), gta = plain(g_trace_a, "gradient of trace a", {T, B, N}),
             gtA = plain(g_trace_threshold, "gradient of trace threshold", {T, B, N});
  const auto gv = plain(g_v, "gradient of v", {B, N}), ga = plain(g_a, "gradient of a", {B, N}), gi = plain(g_i, "gradient of i", {B, N}),
             gz = plain(g_z, "gradient of z", {l.D, B, N});
  const auto gp = plain(g_p, "gradient of p", {T, B, readout.O}), gpT = plain(g_p_last, "gradient of the last p", {B, readout.O});

  auto asked = [&](int bit) { return (wanted >> bit & 1) != 0; };
  auto when = [&](bool is_wanted, const Ints& sizes) { return empty(carry, is_wanted ? sizes : Ints{0}, type); };
  const bool want_x = asked(0) || !has_cpu_kernels(carry), want_in = in.I && (asked(2) || asked(3)), want_bias = want_in && bias,
             want_out = readout.O && asked(4);
  const Tensor gx = when(want_x, {T, B, N}), gw = when(asked(1), {N, N}), gk = when(want, {n_coefficients, N});
  const Tensor gw_in = when(want_in, {N, in.I}), gbias = when(want_bias, {N}), gw_out = when(want_out, {readout.O, N}),
               gp0 = when(readout.O, {B, readout.O});
  const Tensor v0 = empty(carry, {B, N}, type), a0 = empty(carry, {B, N}, type), i0 = empty(carry, {B, N}, type);
  const bool want_z = asked(5) || !has_cpu_kernels(carry);
  Tensor z0 = when(want_z, {z.size(0), B, N});
  if (want_z && z.size(0) > l.D) torch::stable::zero_(z0);

  BackwardArgs f{};
  f.layer = l;
  f.first = s.state();
  f.saved = {checkpoint ? nullptr : (void*)data(y),
             (uint32_t*)data(bits),
             smooth ? (void*)data(smooth_z) : nullptr,
             (void*)data(carry),
             small_y,
             every};
  f.gz = data(gs);
  if (gs) f.gz_stride_t = gs->stride(0), f.gz_stride_b = gs->stride(1), f.gz_stride_n = gs->stride(2);
  f.gv = data(gtv), f.ga = data(gta), f.gA = data(gtA);
  f.glast = {(void*)data(gv), (void*)data(ga), (void*)data(gi), nullptr, (void*)data(gz)};
  f.want = (unsigned)want;
  auto out_ptr = [](const Tensor& t, bool is_wanted) { return is_wanted ? t.mutable_data_ptr() : nullptr; };
  f.gx = out_ptr(gx, want_x), f.gw = out_ptr(gw, asked(1)), f.gcoefficients = out_ptr(gk, want);
  f.gfirst = {v0.mutable_data_ptr(), a0.mutable_data_ptr(), i0.mutable_data_ptr(), nullptr, out_ptr(z0, want_z)};
  if (x) f.x = data(*x), f.x_stride_t = x->stride(0), f.x_stride_b = x->stride(1);
  f.projection = in, f.gw_in = out_ptr(gw_in, want_in), f.gbias = out_ptr(gbias, want_bias);
  f.readout = readout, f.gp = data(gp), f.gp_last = data(gpT);
  f.gw_out = out_ptr(gw_out, want_out), f.gp_first = out_ptr(gp0, readout.O);
  run(f, carry);
  return {gx, gw, gk, v0, a0, i0, z0, gw_in, gbias, gw_out, gp0};
}

}  // namespace

STABLE_TORCH_LIBRARY(lsnn, m) {
  m.def(
      "alif_forward(Tensor current, Tensor w_rec, Tensor coefficients, Tensor? delay, int[] delays, Tensor v, Tensor a, Tensor i, Tensor "
      "r, Tensor z, Tensor? w_in, Tensor? bias, Tensor? w_out, Tensor? p, int dynamics, int surrogate, float dampening, int refractory, "
      "bool smooth, bool trace, bool save, int checkpoint, float k_out, bool spikes, Tensor? x_bits, bool as_bits, bool small_y) -> "
      "(Tensor spikes, "
      "Tensor v_last, Tensor a_last, "
      "Tensor i_last, Tensor r_last, Tensor z_last, Tensor trace_v, Tensor trace_a, Tensor trace_threshold, Tensor p, Tensor p_last, "
      "Tensor y, Tensor bits, Tensor smooth_z, Tensor carry)");
  m.def(
      "alif_backward(Tensor? g_spikes, Tensor? g_trace_v, Tensor? g_trace_a, Tensor? g_trace_threshold, Tensor? g_v, Tensor? g_a, Tensor? "
      "g_i, Tensor? g_z, Tensor? g_p, Tensor? g_p_last, Tensor? current, Tensor w_rec, Tensor coefficients, Tensor? delay, int[] delays, "
      "Tensor v, Tensor a, Tensor i, Tensor r, Tensor z, Tensor? w_in, Tensor? bias, Tensor? w_out, Tensor? p, Tensor y, Tensor bits, "
      "Tensor smooth_z, Tensor carry, int dynamics, int surrogate, float dampening, int refractory, bool smooth, int checkpoint, float "
      "k_out, int want, int wanted, bool reduced, Tensor? x_bits) -> (Tensor current, Tensor w_rec, Tensor coefficients, Tensor v, Tensor "
      "a, Tensor i, "
      "Tensor z, Tensor "
      "w_in, Tensor bias, Tensor w_out, Tensor p)");
}

STABLE_TORCH_LIBRARY_IMPL(lsnn, CPU, m) {
  m.impl("alif_forward", TORCH_BOX(&alif_forward));
  m.impl("alif_backward", TORCH_BOX(&alif_backward));
}

// Also where there are no CUDA kernels: then they say so.
STABLE_TORCH_LIBRARY_IMPL(lsnn, CUDA, m) {
  m.impl("alif_forward", TORCH_BOX(&alif_forward));
  m.impl("alif_backward", TORCH_BOX(&alif_backward));
}

}  // namespace lsnn::binding
