// The operators: schemas, checks, allocation, call. Through the stable ABI one binary serves every torch from 2.11 on.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "devices.h"

namespace lsnn::binding {
namespace {

// ------------------------------------------------------------------------------------------------------------------ layer
template <class T> void check_coefficients(const T* k, int64_t N, double dampening) {
  for (int c = 0; c < n_coefficients; c++)
    for (int64_t n = 0; n < N; n++) {
      const double x = k[c * N + n];
      const bool share = c == ALPHA || c == RHO || c == SIGMA;
      const char* wanted = share ? "lie in [0, 1]" : c == WIDTH ? "be finite and > 0" : "be finite";
      STD_TORCH_CHECK(std::isfinite(x) && (!share || (x >= 0 && x <= 1)) && (c != WIDTH || x > 0), coefficient_names[c], " must ", wanted,
                      ", got ", x, " at neuron ", n);
    }
  STD_TORCH_CHECK(std::isfinite(dampening) && dampening >= 0, "dampening must be finite and >= 0, got ", dampening);
}

// Keeps alive what the pointers of a Layer point to.
struct LayerHolder {
  Tensor coefficients, delay;
  Ints delays;
  Layer layer;
};

LayerHolder make_layer(int64_t T, int64_t B, const Tensor& w_rec, const Tensor& coefficients, const std::optional<Tensor>& delay,
                       const Ints& delays, int64_t dynamics, int64_t surrogate, double dampening, int64_t refractory, bool smooth) {
  STD_TORCH_CHECK(w_rec.dim() == 2 && w_rec.size(0) == w_rec.size(1), "w_rec must have shape (N, N), got ", shape_text(w_rec));
  const int64_t N = w_rec.size(0);
  STD_TORCH_CHECK(N >= 1, "w_rec must hold one neuron at least, got shape ", shape_text(w_rec));
  check_shape(coefficients, "coefficients", {n_coefficients, N});
  STD_TORCH_CHECK(dynamics >= 0 && dynamics < n_rows, "dynamics must be a row from 0 to ", n_rows - 1, ", got ", dynamics);
  STD_TORCH_CHECK(surrogate >= 0 && surrogate < n_surrogates, "surrogate must be 0 to ", n_surrogates - 1, ", got ", surrogate);
  STD_TORCH_CHECK(refractory >= 0 && refractory < (1 << 24), "refractory must be from 0 to 2^24 - 1 steps, got ", refractory);
  STD_TORCH_CHECK(!delays.empty(), "delays must name one delay at least, got none");
  for (size_t i = 0; i < delays.size(); i++)
    STD_TORCH_CHECK(delays[i] >= 0 && (!i || delays[i] > delays[i - 1]), "delays must ascend from 0 or more, got ", delays[i], " at place ",
                    i);
  STD_TORCH_CHECK(delay.has_value() == (delays.size() > 1), "delay must be given exactly when there are several delays");
  const int64_t S = delays.size();
  STD_TORCH_CHECK(S * N * (N + 64) < std::numeric_limits<uint32_t>::max(),
                  "w_rec times the number of delays must stay below 2^32 numbers, got ", S, " delays of ", N, " x ", N);
  // Offsets into the ring of dL/dc, kept for as many steps as the largest delay, have 32 bits.
  STD_TORCH_CHECK(delays.back() < (int64_t(1) << 32) / (16 * (N + 64)) - 64, "delay: expected less than ",
                  (int64_t(1) << 32) / (16 * (N + 64)) - 64, " extra steps for ", N, " neurons, got ", delays.back());
  LayerHolder h{dense(coefficients), delay ? dense(*delay) : Tensor(), delays, {}};
  if (delay) {
    STD_TORCH_CHECK(delay->scalar_type() == ScalarType::Long, "delay must be an int64 tensor");
    check_shape(*delay, "delay", {N, N});
    check_like_device(*delay, "delay", w_rec, "w_rec");
    const int64_t* d = (const int64_t*)data(h.delay);
    for (int64_t i = 0; delay->is_cpu() && i < N * N; i++) {
      bool known = false;
      for (int64_t k : delays) known |= d[i] == k;
      STD_TORCH_CHECK(known, "delay must hold only numbers of delays, got ", d[i]);
    }
  }
  // What lies on a card is not read here: the host would have to wait for it.
  if (!coefficients.is_cpu()) {
  } else if (w_rec.scalar_type() == ScalarType::Double) check_coefficients((const double*)data(h.coefficients), N, dampening);
  else check_coefficients((const float*)data(h.coefficients), N, dampening);
  h.layer = {T,
             B,
             N,
             rows[dynamics],
             (Surrogate)surrogate,
             dampening,
             refractory,
             smooth,
             nullptr,
             S,
             1 + delays.back(),
             delay ? (const int64_t*)data(h.delay) : nullptr,
             data(w_rec),
             w_rec.stride(0),
             w_rec.stride(1),
             data(h.coefficients)};
  return h;
}

// The state, contiguous; a longer z keeps its newest D steps, which lie first.
struct StateHolder {
  Tensor v, a, i, r, z;
  State state() const { return {(void*)data(v), (void*)data(a), (void*)data(i), (void*)data(r), (void*)data(z)}; }
};
StateHolder make_state(const Tensor& like, const Layer& l, const Tensor& v, const Tensor& a, const Tensor& i, const Tensor& r,
                       const Tensor& z) {
  const std::tuple<const Tensor&, const char*> all[] = {{v, "state.v"}, {a, "state.a"}, {i, "state.i"}, {r, "state.r"}};
  for (auto [t, name] : all) check_like(t, name, like), check_shape(t, name, {l.B, l.N});
  check_like(z, "state.z", like);
  STD_TORCH_CHECK(z.dim() == 3 && z.size(0) >= l.D && z.size(1) == l.B && z.size(2) == l.N, "state.z must have shape (", l.D, ", ", l.B,
                  ", ", l.N, ") or more past steps, got ", shape_text(z));
  return {dense(v), dense(a), dense(i), dense(r), dense(z)};
}

// -------------------------------------------------------------------------------------------------------------- operators
using Thirteen = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Thirteen alif_forward(Tensor current, Tensor w_rec, Tensor coefficients, std::optional<Tensor> delay, Ints delays, Tensor v, Tensor a,
                      Tensor i, Tensor r, Tensor z, int64_t dynamics, int64_t surrogate, double dampening, int64_t refractory, bool smooth,
                      bool trace, bool save) {
  STD_TORCH_CHECK(current.dim() == 3, "current must have shape (T, B, N), got ", shape_text(current));
  const ScalarType type = current.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "current must be float32 or float64");
  check_like(w_rec, "w_rec", current), check_like(coefficients, "coefficients", current);
  const int64_t T = current.size(0), B = current.size(1), N = current.size(2);
  const LayerHolder h = make_layer(T, B, w_rec, coefficients, delay, delays, dynamics, surrogate, dampening, refractory, smooth);
  Layer l = h.layer;
  l.delays = h.delays.data();
  STD_TORCH_CHECK(l.N == N, "w_rec must have shape (", N, ", ", N, ") for a current of ", N, " neurons, got ", shape_text(w_rec));
  const StateHolder s = make_state(current, l, v, a, i, r, z);
  const Tensor x = current.stride(2) == 1 || N == 1 ? current : dense(current);

  const Tensor out = empty(current, {T, B, N}, type);
  const Tensor vT = empty(current, {B, N}, type), aT = empty(current, {B, N}, type), iT = empty(current, {B, N}, type),
               rT = empty(current, {B, N}, type), zT = empty(current, {l.D, B, N}, type);
  auto when = [&](bool wanted, const Ints& sizes) { return empty(current, wanted ? sizes : Ints{0}, type); };
  const Tensor tv = when(trace, {T, B, N}), ta = when(trace, {T, B, N}), tA = when(trace, {T, B, N});
  const Tensor y = when(save, {T, B, N}), smooth_z = when(save && smooth, {T, B, N}), carry = when(save, {segments(T), 4, B, N});
  const Tensor bits = empty(current, save ? Ints{T, B, words(N)} : Ints{0}, ScalarType::Int);
  auto out_ptr = [](const Tensor& t, bool wanted) { return wanted ? t.mutable_data_ptr() : nullptr; };

  ForwardArgs f{};
  f.layer = l;
  f.x = data(x), f.x_stride_t = x.stride(0), f.x_stride_b = x.stride(1);
  f.first = s.state();
  f.last = {vT.mutable_data_ptr(), aT.mutable_data_ptr(), iT.mutable_data_ptr(), rT.mutable_data_ptr(), zT.mutable_data_ptr()};
  f.z = out.mutable_data_ptr();
  f.trace_v = out_ptr(tv, trace), f.trace_a = out_ptr(ta, trace), f.trace_A = out_ptr(tA, trace);
  f.save = save;
  f.saved = {out_ptr(y, save), (uint32_t*)out_ptr(bits, save), out_ptr(smooth_z, save && smooth), out_ptr(carry, save)};
  run(f, current);
  return {out, vT, aT, iT, rT, zT, tv, ta, tA, y, bits, smooth_z, carry};
}

Seven alif_backward(std::optional<Tensor> g_spikes, std::optional<Tensor> g_trace_v, std::optional<Tensor> g_trace_a,
                    std::optional<Tensor> g_trace_threshold, std::optional<Tensor> g_v, std::optional<Tensor> g_a,
                    std::optional<Tensor> g_i, std::optional<Tensor> g_z, Tensor w_rec, Tensor coefficients, std::optional<Tensor> delay,
                    Ints delays, Tensor v, Tensor a, Tensor i, Tensor r, Tensor z, Tensor y, Tensor bits, Tensor smooth_z, Tensor carry,
                    int64_t dynamics, int64_t surrogate, double dampening, int64_t refractory, bool smooth, int64_t want, bool want_w) {
  STD_TORCH_CHECK(y.dim() == 3, "y must be what alif_forward saved, got shape ", shape_text(y));
  const ScalarType type = y.scalar_type();
  const int64_t T = y.size(0), B = y.size(1), N = y.size(2);
  const LayerHolder h = make_layer(T, B, w_rec, coefficients, delay, delays, dynamics, surrogate, dampening, refractory, smooth);
  Layer l = h.layer;
  l.delays = h.delays.data();
  check_like(w_rec, "w_rec", y), check_like(coefficients, "coefficients", y);
  check_shape(w_rec, "w_rec", {N, N});
  check_shape(bits, "bits", {T, B, words(N)}), check_shape(carry, "carry", {segments(T), 4, B, N});
  STD_TORCH_CHECK(y.is_contiguous() && bits.is_contiguous() && carry.is_contiguous(), "saved tensors must be contiguous");
  const StateHolder s = make_state(y, l, v, a, i, r, z);
  if (want & (1 << KAPPA | 1 << SIGMA) && coefficients.is_cpu())
    for (int64_t n = 0; n < N; n++)
      STD_TORCH_CHECK(
          type == ScalarType::Double ? ((const double*)l.coefficients)[KAPPA * N + n] : ((const float*)l.coefficients)[KAPPA * N + n],
          "kappa must not be 0 where the gradient of kappa or sigma is asked for, got 0 at neuron ", n);
  auto plain = [&](const std::optional<Tensor>& g, const char* name, const Ints& sizes) {
    if (g) check_like(*g, name, y), check_shape(*g, name, sizes);
    std::optional<Tensor> at_hand;
    if (g) at_hand = dense(*g);
    return at_hand;
  };
  std::optional<Tensor> gs = g_spikes;
  if (gs) {
    check_like(*gs, "gradient of spikes", y), check_shape(*gs, "gradient of spikes", {T, B, N});
    if (gs->stride(2) > 1) gs = dense(*gs);
  }
  const auto gtv = plain(g_trace_v, "gradient of trace v", {T, B, N}), gta = plain(g_trace_a, "gradient of trace a", {T, B, N}),
             gtA = plain(g_trace_threshold, "gradient of trace threshold", {T, B, N});
  const auto gv = plain(g_v, "gradient of v", {B, N}), ga = plain(g_a, "gradient of a", {B, N}), gi = plain(g_i, "gradient of i", {B, N}),
             gz = plain(g_z, "gradient of z", {l.D, B, N});

  const Tensor gx = empty(y, {T, B, N}, type), gw = want_w ? empty(y, {N, N}, type) : empty(y, {0}, type);
  const Tensor gk = want ? empty(y, {n_coefficients, N}, type) : empty(y, {0}, type);
  const Tensor v0 = empty(y, {B, N}, type), a0 = empty(y, {B, N}, type), i0 = empty(y, {B, N}, type);
  Tensor z0 = empty(y, {z.size(0), B, N}, type);
  if (z.size(0) > l.D) torch::stable::zero_(z0);

  BackwardArgs f{};
  f.layer = l;
  f.first = s.state();
  f.saved = {(void*)data(y), (uint32_t*)data(bits), smooth ? (void*)data(smooth_z) : nullptr, (void*)data(carry)};
  f.gz = data(gs);
  if (gs) f.gz_stride_t = gs->stride(0), f.gz_stride_b = gs->stride(1), f.gz_stride_n = gs->stride(2);
  f.gv = data(gtv), f.ga = data(gta), f.gA = data(gtA);
  f.glast = {(void*)data(gv), (void*)data(ga), (void*)data(gi), nullptr, (void*)data(gz)};
  f.want = (unsigned)want;
  f.gx = gx.mutable_data_ptr();
  f.gw = want_w ? gw.mutable_data_ptr() : nullptr;
  f.gcoefficients = want ? gk.mutable_data_ptr() : nullptr;
  f.gfirst = {v0.mutable_data_ptr(), a0.mutable_data_ptr(), i0.mutable_data_ptr(), nullptr, z0.mutable_data_ptr()};
  run(f, y);
  return {gx, gw, gk, v0, a0, i0, z0};
}

}  // namespace

STABLE_TORCH_LIBRARY(lsnn, m) {
  m.def(
      "alif_forward(Tensor current, Tensor w_rec, Tensor coefficients, Tensor? delay, int[] delays, Tensor v, Tensor a, Tensor i, Tensor "
      "r, "
      "Tensor z, int dynamics, int surrogate, float dampening, int refractory, bool smooth, bool trace, bool save) -> (Tensor spikes, "
      "Tensor "
      "v_last, Tensor a_last, Tensor i_last, Tensor r_last, Tensor z_last, Tensor trace_v, Tensor trace_a, Tensor trace_threshold, Tensor "
      "y, "
      "Tensor bits, Tensor smooth_z, Tensor carry)");
  m.def(
      "alif_backward(Tensor? g_spikes, Tensor? g_trace_v, Tensor? g_trace_a, Tensor? g_trace_threshold, Tensor? g_v, Tensor? g_a, Tensor? "
      "g_i, "
      "Tensor? g_z, Tensor w_rec, Tensor coefficients, Tensor? delay, int[] delays, Tensor v, Tensor a, Tensor i, Tensor r, Tensor z, "
      "Tensor y, "
      "Tensor bits, Tensor smooth_z, Tensor carry, int dynamics, int surrogate, float dampening, int refractory, bool smooth, int want, "
      "bool "
      "want_w) -> (Tensor current, Tensor w_rec, Tensor coefficients, Tensor v, Tensor a, Tensor i, Tensor z)");
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
