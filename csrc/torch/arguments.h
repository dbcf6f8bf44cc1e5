// Converts the arguments of an operator for the kernels: checked, contiguous, kept alive.
//
// lsnn_ext/_core/arguments.py and resolve.py have the same checks for the functions, with the names
// of their arguments. docs/contributing.md lists the places that an argument touches.
#pragma once
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "../cpu/layout.h"
#include "boundary.h"
#include "devices.h"
#include "neurons.h"
#include "options.h"

namespace lsnn::binding {

// A subnormal width is refused: its reciprocal may be infinite, and it has no gradient.
template <class T>
void check_coefficients(const T* k, int64_t N, double dampening, int64_t zero) {
  constexpr double least_width = std::numeric_limits<T>::min();
  for (int c = 0; c < n_coefficients; c++)
    for (int64_t n = 0; n < N; n++) {
      const double x = k[c * N + n];
      LSNN_EXPECT(x == 0 || !(zero >> c & 1), "zero_coefficients: expected ", coefficient_names[c],
                  " 0, got ", x, " at neuron ", n);
      const bool is_share = c == ALPHA || c == RHO || c == SIGMA, is_width = c == WIDTH;
      if (std::isfinite(x) && (!is_share || (x >= 0 && x <= 1)) && (!is_width || x >= least_width))
        continue;
      const std::string wanted = is_share                   ? "a number from 0 to 1"
                                 : !is_width                ? "a finite number"
                                 : x > 0 && x < least_width ? "a normal number of its dtype"
                                                            : "a finite number > 0";
      refuse(coefficient_names[c], ": expected ", wanted, ", got ", x, " at neuron ", n);
    }
  LSNN_EXPECT(std::isfinite(dampening) && dampening >= 0,
              "dampening: expected a finite number >= 0, got ", dampening);
}

// The gradients of kappa and sigma need the current i, which follows from y by a division by kappa.
// want: a bit for each coefficient with a gradient.
inline void check_kappa(const Layer& l, int64_t want, bool wide) {
  if (!(want & (1 << KAPPA | 1 << SIGMA))) return;
  for (int64_t n = 0; n < l.N; n++) {
    const int64_t at = KAPPA * l.N + n;
    const double kappa =
        wide ? ((const double*)l.coefficients)[at] : ((const float*)l.coefficients)[at];
    LSNN_EXPECT(kappa != 0,
                "kappa: expected a number other than 0 for the gradient of kappa or sigma, got 0 "
                "at neuron ",
                n);
  }
}

inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}

// Keeps the memory of a Layer alive. Not copyable: pointers into its vectors survive moves only.
struct LayerHolder {
  Tensor coefficients, delay, kernel, mask;
  Ints delays, taps, lengths;
  Layer layer;

  LayerHolder() = default;
  LayerHolder(LayerHolder&&) = default;
  LayerHolder(const LayerHolder&) = delete;
};

// The kernels index rows of weights, events and rows of gradients with 32 bits.
inline constexpr int64_t offsets = int64_t(1) << 32;

// Exclusive upper limit of delays: dL/dc of that many steps and a chunk is kept for all items of a
// tile.
template <class T> int64_t delay_limit(int64_t N) {
  return offsets / (cpu::max_items * cpu::gradient_stride<T>(cpu::padded(N))) - chunk - 1;
}

// more than fit in memory, and sums of steps cannot overflow
inline constexpr int64_t most_steps = int64_t(1) << 48;

inline void check_checkpoint(int64_t steps, const Tensor& like) {
  LSNN_EXPECT(steps >= 0 && steps <= most_steps && (!steps || has_cpu_kernels(like)),
              "checkpoint: expected 0, or steps from 1 to 2^48 on the CPU, got ", steps);
}

inline bool is_real(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double;
}
inline void check_real(const Tensor& t, const char* name) {
  LSNN_EXPECT(is_real(t.scalar_type()), name, ": expected float32 or float64, got ", dtype_text(t));
}

// Layer::lengths: [B] steps of each item, descending, from at most T to 0; empty without lengths.
inline Ints read_lengths(const Maybe& lengths, int64_t T, int64_t B) {
  if (!lengths) return {};
  LSNN_EXPECT(lengths->is_cpu() && lengths->scalar_type() == ScalarType::Long,
              "lengths: expected an int64 tensor on the CPU, got ", dtype_text(*lengths), " on ",
              device_text(*lengths));
  check_shape(*lengths, "lengths", {B});
  const Tensor whole = dense(*lengths);
  const int64_t* n = (const int64_t*)data(whole);
  for (int64_t b = 0; b < B; b++) {
    const int64_t most = b ? n[b - 1] : T;
    LSNN_EXPECT(n[b] >= 0 && n[b] <= most, "lengths: expected numbers from 0 to ", most,
                " at item ", b, ", got ", n[b], "; lengths descend from at most T = ", T);
  }
  return Ints(n, n + B);
}

inline void check_choices(const Constants& c) {
  LSNN_EXPECT(c.dynamics >= 0 && c.dynamics < n_models, "dynamics: expected a number from 0 to ",
              n_models - 1, ", got ", c.dynamics);
  LSNN_EXPECT(c.surrogate >= 0 && c.surrogate < n_surrogates,
              "surrogate: expected a number from 0 to ", n_surrogates - 1, ", got ", c.surrogate);
  LSNN_EXPECT(c.refractory >= 0 && c.refractory < (1 << 24),
              "refractory: expected 0 to 2^24 - 1 steps, got ", c.refractory);
  LSNN_EXPECT(c.bf16_parts >= 0 && c.bf16_parts < exact_parts,
              "bf16_parts: expected 0, 1 or 2, got ", c.bf16_parts);
}

// like: the tensor, named `of`, whose device and dtype the others must have. recurrence: w_rec; the
// delay of each synapse, the kernel of axonal delays and the mask of spikes, or none. is_made: the
// coefficients are not computed yet. other: a registered neuron, or null.
inline LayerHolder make_layer(int64_t T, int64_t B, const Tensor& like, const char* of,
                              const Maybe& lengths, const Tensor& coefficients,
                              const Maybes& recurrence, const Ints& delays, const Constants& c,
                              const RegisteredNeuron* other, bool is_made = false) {
  const Maybe w_rec = at(recurrence, 0), delay = at(recurrence, 1), kernel = at(recurrence, 2),
              mask = at(recurrence, 3);
  const bool wide = like.scalar_type() == ScalarType::Double;
  check_like(coefficients, "coefficients", like, of);
  LSNN_EXPECT(coefficients.dim() == 2 && coefficients.size(1) >= 1,
              "coefficients: expected shape (", other ? other->coefficients : +n_coefficients,
              ", N) with N >= 1, got ", shape_text(coefficients));
  const int64_t N = coefficients.size(1), S = (int64_t)delays.size(),
                K = other ? other->sizes.currents : 1;
  check_shape(coefficients, "coefficients", {other ? other->coefficients : +n_coefficients, N});
  LSNN_EXPECT(w_rec.has_value() == (S > 0),
              "delays: expected at least one with w_rec and none without it, got ", S);
  // one more dimension for several currents, and one for weights of each delay
  const int64_t one_matrix = K > 1 ? 3 : 2;
  const bool by_delay = w_rec && w_rec->dim() == one_matrix + 1;
  auto square = [&] { return K > 1 ? Ints{K, N, N} : Ints{N, N}; };
  if (w_rec) {
    check_like(*w_rec, "w_rec", like, of);
    if (by_delay) check_shape(*w_rec, "w_rec", K > 1 ? Ints{S, K, N, N} : Ints{S, N, N});
    else check_shape(*w_rec, "w_rec", square());
  }
  check_choices(c);
  for (size_t i = 0; i < delays.size(); i++)
    LSNN_EXPECT(delays[i] >= 0 && (!i || delays[i] > delays[i - 1]),
                "delays: expected ascending numbers >= 0, got ", delays[i], " at index ", i);
  LSNN_EXPECT(w_rec || !(kernel || mask), "w_rec: expected a tensor with ",
              kernel ? "delay_kernel" : "recurrent_mask", ", got None");
  LSNN_EXPECT(has_cpu_kernels(like) || !(kernel || mask),
              kernel ? "delay_kernel" : "recurrent_mask",
              ": expected None for the CUDA kernels, got a tensor");
  if (kernel) {
    LSNN_EXPECT(!by_delay, "w_rec: expected one matrix with delay_kernel, got shape ",
                shape_text(*w_rec));
    check_like(*kernel, "delay_kernel", like, of);
    check_shape(*kernel, "delay_kernel", {S, N});
  }
  if (mask) {
    LSNN_EXPECT(mask->scalar_type() == ScalarType::Bool, "recurrent_mask: expected bool, got ",
                dtype_text(*mask));
    check_like_device(*mask, "recurrent_mask", like, of);
    check_shape(*mask, "recurrent_mask", {B, N});
  }
  LSNN_EXPECT(delay.has_value() == (S > 1 && !by_delay && !kernel),
              "delay: expected a tensor for several delays of a w_rec of shape (N, N), and None ",
              "otherwise, got ", delay ? "a tensor" : "None");
  const int64_t padded = std::min(N, offsets) + 64;
  const int64_t M = kernel ? 1 : S;
  LSNN_EXPECT(
      is_below(offsets, {K, M, N, padded}) && is_below(offsets, {chunk * cpu::max_items, M, N}),
      "w_rec: expected less than 2^32 numbers in the matrices of all delays, got ", M, " of ", N,
      " x ", N);
  const int64_t limit = (wide ? delay_limit<double>(N) : delay_limit<float>(N)) / K;
  LSNN_EXPECT(!S || delays.back() < limit, "delay: expected less than ", limit, " extra steps for ",
              N, " neurons, got ", S ? delays.back() : 0);
  const int64_t D = S ? 1 + delays.back() : 1;
  LayerHolder h;
  h.coefficients = dense(coefficients);
  h.delays = kernel ? Ints{0} : delays;
  if (kernel) h.taps = delays, h.kernel = dense(*kernel);
  if (mask) h.mask = dense(*mask);
  h.lengths = read_lengths(lengths, T, B);
  if (delay) {
    h.delay = dense(*delay);
    LSNN_EXPECT(delay->scalar_type() == ScalarType::Long, "delay: expected int64, got ",
                dtype_text(*delay));
    check_shape(*delay, "delay", square());
    check_like_device(*delay, "delay", like, of);
    const int64_t* d = (const int64_t*)data(h.delay);
    if (delay->is_cpu()) {
      std::vector<char> known(D, 0);
      for (int64_t of : delays) known[of] = 1;
      for (int64_t i = 0; i < K * N * N; i++)
        LSNN_EXPECT(d[i] >= 0 && d[i] < D && known[d[i]],
                    "delay: expected only numbers in delays, got ", d[i]);
    }
  }
  LSNN_EXPECT(c.cutoff >= 0, "cutoff: expected a number >= 0, got ", c.cutoff);
  // Coefficients on a GPU are not read: the host would have to synchronize.
  if (coefficients.is_cpu() && !is_made && !other) {
    const int64_t zero = c.zero_coefficients;
    if (wide) check_coefficients((const double*)data(h.coefficients), N, c.dampening, zero);
    else check_coefficients((const float*)data(h.coefficients), N, c.dampening, zero);
  }
  h.layer = {.T = T,
             .B = B,
             .N = N,
             .model = models[c.dynamics],
             .surrogate = (Surrogate)c.surrogate,
             .dampening = c.dampening,
             .n_ref = c.refractory,
             .smooth = other ? other->has_number_spikes : c.smooth != 0,
             .delays = h.delays.data(),
             .S = (int64_t)h.delays.size(),
             .D = D,
             .delay = delay ? (const int64_t*)data(h.delay) : nullptr,
             .w = data(w_rec),
             .w_stride_j = w_rec ? w_rec->stride(-2) : 0,
             .w_stride_k = w_rec ? w_rec->stride(-1) : 0,
             .coefficients = data(h.coefficients),
             .w_stride_s = by_delay ? w_rec->stride(0) : 0,
             .autapses = !c.without_autapses,
             .lengths = lengths && B ? h.lengths.data() : nullptr,
             .cutoff = c.cutoff,
             .neuron = other ? other->table : nullptr,
             .sizes = other ? other->sizes : NeuronSizes{},
             .w_stride_current = w_rec && K > 1 ? w_rec->stride(-3) : 0,
             .kernel = kernel ? data(h.kernel) : nullptr,
             .taps = h.taps.data(),
             .n_taps = (int64_t)h.taps.size(),
             .mask = mask ? (const uint8_t*)data(h.mask) : nullptr};
  return h;
}

// The state, contiguous; the kernels read the first D steps of z, the newest. None: zeros.
struct StateHolder {
  Maybe v = {}, a = {}, i = {}, r = {}, z = {};
  Tensors others = {};  // of a registered neuron, in place of v to r
  std::vector<void*> pointers = {};
  State state() const {
    return {(void*)data(v), (void*)data(a), (void*)data(i),
            (void*)data(r), (void*)data(z), pointers.empty() ? nullptr : pointers.data()};
  }
};
inline StateHolder make_state(const Tensor& like, const char* of, const Layer& l,
                              const Tensors& state) {
  const size_t n = (size_t)l.sizes.states;
  if (state.empty()) {
    if (!has_cpu_kernels(like)) return {};
    const Tensor row = zeros(like, {l.B, l.N});
    const Tensor z = l.D == 1 ? row : zeros(like, {l.D, l.B, l.N});
    if (!l.neuron) return {row, row, row, row, z};
    return {.z = z,
            .others = Tensors(n, row),
            .pointers = std::vector<void*>(n + 1, row.mutable_data_ptr())};
  }
  static constexpr const char* of_models[] = {"state.v", "state.a", "state.i", "state.r"};
  LSNN_EXPECT(state.size() == n + 1, "state: expected ", n + 1,
              l.neuron ? " tensors, the states and z" : " tensors v, a, i, r, z", ", or none, got ",
              state.size());
  for (size_t k = 0; k < n; k++) {
    const char* name = l.neuron ? "state" : of_models[k];
    check_like(state[k], name, like, of);
    check_shape(state[k], name, {l.B, l.N});
  }
  const Tensor& z = state.back();
  check_like(z, "state.z", like, of);
  LSNN_EXPECT(z.dim() == 3 && z.size(0) >= l.D && z.size(1) == l.B && z.size(2) == l.N,
              "state.z: expected shape (", l.D, ", ", l.B, ", ", l.N, ") or more past steps, got ",
              shape_text(z));
  if (!l.neuron)
    return {dense(state[0]), dense(state[1]), dense(state[2]), dense(state[3]), dense(z)};
  StateHolder h{.z = dense(z)};
  for (size_t k = 0; k < n; k++) {
    h.others.push_back(dense(state[k]));
    h.pointers.push_back(h.others.back().mutable_data_ptr());
  }
  h.pointers.push_back(nullptr);  // never empty
  return h;
}

// Spikes as bits [T,B,words(N)]: set bits beyond N would be read as neurons.
inline void check_bits(const Tensor& bits, const char* name, int64_t T, int64_t B, int64_t N) {
  check_shape(bits, name, {T, B, words(N)});
  if (N % 32 == 0 || !bits.is_cpu()) return;
  const uint32_t padding_mask = ~((1u << N % 32) - 1);
  const uint32_t* last = (const uint32_t*)data(bits) + words(N) - 1;
  uint32_t any = 0;
  for (int64_t row = 0; row < T * B; row++) any |= last[row * words(N)] & padding_mask;
  LSNN_EXPECT(!any, name, ": expected zeros in the bits beyond neuron ", N - 1,
              ", got ones; pack the spikes after slicing them");
}

// Inputs (T,B,I) as bits; x has their dtype and device.
inline void check_input_bits(const Tensor& bits, const char* name, const Tensor& x, int64_t T,
                             int64_t B, int64_t I) {
  LSNN_EXPECT(bits.scalar_type() == ScalarType::Int && bits.is_contiguous(), name,
              ": expected a contiguous int32 tensor, got ", dtype_text(bits),
              bits.is_contiguous() ? "" : ", not contiguous");
  check_like_device(bits, name, x, "x");
  check_bits(bits, name, T, B, I);
}

// The projection of inputs x [T,B,I]: w_in, bias or none, and the inputs as bits or none.
struct ProjectionHolder {
  Maybe w, bias, bits;
  Projection projection;
};
inline ProjectionHolder make_projection(const Tensor& x, const Maybes& given, const Layer& l) {
  ProjectionHolder h{at(given, 0), dense(at(given, 1)), at(given, 2), {}};
  Projection& in = h.projection;
  const int64_t N = l.N;
  if (!h.w) {
    LSNN_EXPECT(!h.bias, "bias: expected w_in with it, got None");
    LSNN_EXPECT(!h.bits, "x_bits: expected w_in with it, got None");
    return h;
  }
  const Tensor& w_in = *h.w;
  LSNN_EXPECT(has_cpu_kernels(x), "w_in: expected None for the CUDA kernels, got a tensor");
  LSNN_EXPECT(x.size(2) >= 1, "x: expected at least one input with w_in, got shape ",
              shape_text(x));
  in.I = x.size(2);
  check_like(w_in, "w_in", x, "x");
  check_shape(w_in, "w_in", {N, in.I});
  LSNN_EXPECT(in.I < offsets && is_below(offsets, {l.S * N + in.I + 1, N + 64}) &&
                  is_below(offsets, {chunk * cpu::max_items, in.I + 1}),
              "w_in: expected less than 2^32 numbers, w_rec of all delays included, got ",
              shape_text(w_in));
  if (h.bias) {
    check_like(*h.bias, "bias", x, "x");
    check_shape(*h.bias, "bias", {N});
    in.bias = data(h.bias);
  }
  if (h.bits) {
    check_input_bits(*h.bits, "x_bits", x, l.T, l.B, in.I);
    in.bits = (const uint32_t*)data(*h.bits);
  }
  in.w = data(w_in);
  in.w_stride_n = w_in.stride(0);
  in.w_stride_i = w_in.stride(1);
  return h;
}

// The readout: w_out, p before the first step, or none for zeros, and on a GPU a bias or none.
struct ReadoutHolder {
  Maybe w, p, bias;
  Readout readout;
};
inline ReadoutHolder make_readout(const Tensor& like, const char* of, const Maybes& given, double k,
                                  const Layer& l) {
  ReadoutHolder h{at(given, 0), dense(at(given, 1)), dense(at(given, 2)), {}};
  Readout& out = h.readout;
  LSNN_EXPECT(h.w || !h.p, "p: expected w_out with it, got None");
  LSNN_EXPECT(h.w || !h.bias, "b_out: expected w_out with it, got None");
  if (!h.w) return h;
  const Tensor& w_out = *h.w;
  LSNN_EXPECT(w_out.dim() == 2 && w_out.size(0) >= 1, "w_out: expected shape (O, ", l.N,
              ") with O >= 1, got ", shape_text(w_out));
  LSNN_EXPECT(k >= 0 && k <= 1, "k_out: expected a number from 0 to 1, got ", k);
  out.O = w_out.size(0);
  out.k = k;
  check_like(w_out, "w_out", like, of);
  check_shape(w_out, "w_out", {out.O, l.N});
  LSNN_EXPECT(out.O < offsets && is_below(offsets / 2, {out.O + 16, l.N + 64}),
              "w_out: expected less than 2^31 numbers, got ", shape_text(w_out));
  if (!has_cpu_kernels(like)) {
    LSNN_EXPECT(!l.neuron,
                "w_out: expected None for the CUDA kernels of a registered neuron, got a tensor");
    LSNN_EXPECT(cuda::readout_fits(l.N, out.O, like.scalar_type() == ScalarType::Double),
                "w_out: expected a shape for which 48 KiB of shared memory suffice, got ",
                shape_text(w_out));
    LSNN_EXPECT(!l.lengths, "lengths: expected None with w_out on a GPU, got a tensor");
  }
  if (h.p) {
    check_like(*h.p, "p", like, of);
    check_shape(*h.p, "p", {l.B, out.O});
  }
  if (h.bias) {
    LSNN_EXPECT(!has_cpu_kernels(like), "b_out: expected None for the CPU kernels, got a tensor");
    check_like(*h.bias, "b_out", like, of);
    check_shape(*h.bias, "b_out", {out.O});
    out.bias = data(h.bias);
  }
  out.w = data(w_out);
  out.w_stride_o = w_out.stride(0);
  out.w_stride_n = w_out.stride(1);
  out.first = data(h.p);
  return h;
}

}  // namespace lsnn::binding
