// A case of the C++ test programs, and its numbers.
//
// Every buffer is a heap block of exactly the size in alif.h, so that AddressSanitizer detects
// accesses beyond it. Inputs are hashes of their index; outputs start as NaN.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../alif.h"

namespace lsnn::test {

// Inputs with gradients, the coefficients `k` last; the other inputs; from `z` on outputs of the
// forward pass; from `gx` on those of the backward pass. The spike bits are separate.
enum Name {
  x,
  w,
  v0,
  a0,
  i0,
  z0,
  kernel,
  k,
  r0,
  gz,
  gv,
  ga,
  gA,
  gv_last,
  ga_last,
  gi_last,
  gz_last,
  z,
  trace_v,
  trace_a,
  trace_A,
  v_last,
  a_last,
  i_last,
  z_last,
  r_last,
  y,
  smooth_z,
  carry,
  gx,
  gw,
  gv0,
  ga0,
  gi0,
  gz0,
  gkernel,
  gk,
  n_names
};
inline constexpr const char* name_text[] = {
    "x",       "w",      "v0",      "a0",       "i0",      "z0",      "kernel",  "k",
    "r0",      "gz",     "gv",      "ga",       "gA",      "gv_last", "ga_last", "gi_last",
    "gz_last", "z",      "trace_v", "trace_a",  "trace_A", "v_last",  "a_last",  "i_last",
    "z_last",  "r_last", "y",       "smooth_z", "carry",   "gx",      "gw",      "gv0",
    "ga0",     "gi0",    "gz0",     "gkernel",  "gk"};
inline constexpr Name gradient_of[] = {gx, gw, gv0, ga0, gi0, gz0, gkernel, gk};
template <class... Names> constexpr uint64_t set_of(Names... name) {
  return ((uint64_t(1) << name) | ...);
}

// Gradients are tested by groups: each input before k is a group, and each coefficient.
inline constexpr int n_groups = int(k) + int(n_coefficients);

inline constexpr unsigned every = (1u << n_coefficients) - 1;  // coefficient
inline constexpr double dampening = 0.7;

struct Case {
  int model = 0;
  Surrogate surrogate = Surrogate::triangle;
  int64_t T = 17, B = 3, N = 33;
  std::vector<int64_t> delays = {0};  // none: no recurrent weights
  int64_t n_ref = 0;
  bool smooth = false;
  // false drops the detach flags of the model, which finite differences do not have
  bool detach = true;
  int layout = 0;          // of x, w and gz, see strides()
  unsigned want = every;   // a bit for each coefficient with a gradient
  unsigned zero = 0;       // coefficients that are 0
  uint64_t absent = 0;     // names whose pointer is null
  // largest refractory counter of the first state; -1: one more than n_ref, if there is one
  int64_t first_r = -1;
  double theta = 1, width = 1;  // factors: thresholds below zero, few neurons near their threshold
  double density = 1;  // share of the synapses that are not zero
  // a synapse has a weight for each delay, instead of one weight and one delay
  bool all_delays = false;
  bool autapses = true;
  std::vector<int64_t> lengths = {};  // of the items, descending; empty: all T
  double cutoff = std::numeric_limits<double>::infinity();
  bool has_kernel = false;  // delays are taps of axonal delays, with one weight of each synapse
  bool has_mask = false;  // of the spikes that act through (1)

  int64_t item() const { return B * N; }
  int64_t length(int64_t b) const { return lengths.empty() ? T : lengths[size_t(b)]; }
  int64_t item_steps() const {
    int64_t sum = 0;
    for (int64_t b = 0; b < B; b++) sum += length(b);
    return sum;
  }
  bool after_end(int64_t t, int64_t b) const { return t >= length(b); }
  bool after_end(int64_t i) const { return after_end(i / item(), i / N % B); }  // i counts [T,B,N]
  int64_t D() const { return delays.empty() ? 1 : delays.back() + 1; }
  int64_t S() const { return (int64_t)delays.size(); }
  int64_t matrices() const { return all_delays ? S() : std::min<int64_t>(S(), 1); }
  std::string text() const {
    std::string s = std::string(models[model].name) + " " + surrogate_names[(int)surrogate] +
                    (smooth ? " smooth" : "") + (detach ? "" : " attached") +
                    (delays.empty() ? " alone"
                     : all_delays   ? " all_delays"
                                    : "") +
                    (autapses ? "" : " no_autapses") + (has_kernel ? " kernel" : "") +
                    (has_mask ? " mask" : "");
    const std::pair<const char*, int64_t> numbers[] = {{"T", T},
                                                       {"B", B},
                                                       {"N", N},
                                                       {"n_ref", n_ref},
                                                       {"layout", layout},
                                                       {"want", want},
                                                       {"zero", zero},
                                                       {"absent", absent},
                                                       {"first_r", first_r},
                                                       {"width%", int64_t(100 * width)},
                                                       {"theta%", int64_t(100 * theta)},
                                                       {"density%", int64_t(100 * density)}};
    if (std::isfinite(cutoff)) s += " cutoff=" + std::to_string(cutoff);
    for (auto [what, n] : numbers) s += std::string(" ") + what + "=" + std::to_string(n);
    for (int64_t d : delays) s += (d == delays[0] ? " delays=" : ",") + std::to_string(d);
    for (size_t b = 0; b < lengths.size(); b++)
      s += (b ? "," : " lengths=") + std::to_string(lengths[b]);
    return s;
  }
};

struct Strides {
  int64_t t, b, n;
  // i counts [T,B,N]
  int64_t at(int64_t i, const Case& c) const {
    return i / c.item() * t + i / c.N % c.B * b + i % c.N * n;
  }
};
inline Strides strides(const Case& c, int name) {
  switch (c.layout) {
    case 1: return {c.N, c.T * c.N, 1};  // batch first; w is transposed as well
    case 2:
      return {c.B * (c.N + 3), c.N + 3, 1};  // rows with gaps between them
    // one number for all; one current for all steps
    case 3: return name == gz ? Strides{0, 0, 0} : Strides{0, c.N, 1};
    // one number for all neurons; one current for all items
    case 4: return name == gz ? Strides{c.B, 1, 0} : Strides{c.N, 0, 1};
    default: return {c.item(), c.N, 1};
  }
}

// Strides of w: matrices, rows and columns.
struct WStrides {
  int64_t s, j, n;
  int64_t at(int64_t matrix, int64_t from, int64_t to) const {
    return matrix * s + from * j + to * n;
  }
  int64_t size(const Case& c) const { return at(c.matrices() - 1, c.N - 1, c.N - 1) + 1; }
};
inline WStrides w_strides(const Case& c) {
  constexpr int64_t unread = int64_t(1) << 56;
  const int64_t N = c.N, M = c.matrices();
  if (M <= 1) return {unread, c.layout == 1 ? 1 : N, c.layout == 1 ? N : 1};
  switch (c.layout) {
    case 1: return {N * N, 1, N};  // each transposed
    case 2: return {1, N * M, M};  // one within the other
    case 3: return {0, N, 1};  // the same for all delays
    case 4: return {N * (N + 1), 0, 1};  // the same for all neurons that spike
    default: return {N * N, N, 1};
  }
}

inline int64_t size_of(const Case& c, int name) {
  const uint64_t bit = set_of(name), all = c.T * c.item();
  if (bit & set_of(x, gz)) return all ? strides(c, name).at(all - 1, c) + 1 : 0;
  if (bit & set_of(w)) return c.matrices() ? w_strides(c).size(c) : 0;
  if (bit & set_of(gw)) return c.matrices() * c.N * c.N;
  if (bit & set_of(kernel, gkernel)) return c.has_kernel ? c.S() * c.N : 0;
  if (bit & set_of(k, gk)) return n_coefficients * c.N;
  if (bit & set_of(z0, gz_last, z_last, gz0)) return c.D() * c.item();
  if (bit & set_of(carry)) return segments(c.T) * 4 * c.item();
  return bit & set_of(gv, ga, gA, z, trace_v, trace_a, trace_A, y, smooth_z, gx) ? all : c.item();
}

// The i-th number of a stream.
inline double drawn(uint64_t stream, uint64_t i, double low, double high) {
  uint64_t h = (i + 1) * 0x9e3779b97f4a7c15 + stream * 0xbf58476d1ce4e5b9;
  for (int round = 0; round < 3; round++) h = (h ^ h >> 29) * 0x94d049bb133111eb;
  return low + (high - low) * double(h >> 11) / double(uint64_t(1) << 53);
}
// that gradients are multiplied with
inline double direction(int group, int64_t i) { return drawn(100 + group, i, -1, 1); }

// Descending lengths from T down, some of them 0.
inline std::vector<int64_t> drawn_lengths(int64_t T, int64_t B) {
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < B; b++)
    lengths.push_back(std::max<int64_t>(0, int64_t(drawn(93, b, -0.15, 1.15) * double(T))));
  for (int64_t& length : lengths) length = std::min(length, T);
  std::sort(lengths.rbegin(), lengths.rend());
  return lengths;
}

inline double input(const Case& c, int name, int64_t i) {
  // A stream of its own, so that the numbers of cases without a kernel do not depend on it.
  const int stream = name < kernel ? name : name == kernel ? 95 : name - 1;
  const double u = drawn(stream, i, 0, 1), sign = drawn(90, i % c.N, -1, 1) > 0 ? 1 : -1;
  const int64_t most_r = c.first_r >= 0 ? c.first_r : c.n_ref ? c.n_ref + 1 : 0;
  switch (name) {
    case x: return -1 + 3.2 * u;
    case w: return drawn(92, i, 0, 1) < c.density ? (u - 0.5) / std::sqrt(double(c.N)) : 0;
    case v0:
    case i0: return -0.5 + 1.2 * u;
    case a0: return 0.5 * u;
    case kernel: return u < 0.2 ? 0 : u - 0.3;
    case z0: return u < 0.3 ? 1 : u < 0.8 ? 0 : u;  // past spikes may be any number
    case r0: return std::floor(u * double(most_r + 1));
    case k: break;
    default: return 2 * u - 1;
  }
  // p and eta of a neuron have the same sign, as otherwise v reinforces itself and gradients
  // explode.
  const bool to_R = models[c.model].reset == Reset::to_R;
  const double low[] = {.6, .3, .7, .1, 0, .2, 0, .4, .2, .8, to_R ? -.2 : .3};
  const double high[] = {.95, 1, .95, .6, .2, 1.2, .8, .8, .8, 1.2, to_R ? .2 : .9};
  const int which = int(i / c.N);
  const double turn = which == P || which == ETA ? sign
                      : which == THETA           ? c.theta
                      : which == WIDTH           ? c.width
                                                 : 1;
  return c.zero >> which & 1 ? 0 : turn * (low[which] + (high[which] - low[which]) * u);
}

// Host memory; defined by each program.
void* allocate(size_t bytes);
void release(void* p);
struct Release {
  void operator()(void* p) const { release(p); }
};
template <class X> using Buffer = std::unique_ptr<X[], Release>;
template <class X> Buffer<X> buffer(int64_t n) {
  return Buffer<X>(static_cast<X*>(allocate(size_t(n) * sizeof(X))));
}

inline Options options;  // of all running cases

// The buffers of a case and the arguments made of them.
template <class T> struct Run {
  const Case& c;
  Buffer<T> b[n_names];
  Buffer<uint32_t> bits;
  Buffer<int64_t> delay;
  Buffer<uint8_t> mask;  // [B,N]

  explicit Run(const Case& of) : Run(of, Blank()) {
    for (int name = 0; name < z; name++)
      for (int64_t i = 0, n = size_of(c, name); i < n; i++) b[name][i] = T(input(c, name, i));
    // Inputs of steps after an item's last one must not be read. In layouts from 3 on they are
    // shared.
    for (Name name : {x, gz, gv, ga, gA})
      for (int64_t i = 0; i < c.T * c.item() && c.layout < 3; i++)
        if (c.after_end(i))
          b[name][name == x || name == gz ? strides(c, name).at(i, c) : i] = T(NAN);
    for (int64_t i = 0; c.S() && i < c.N * c.N; i++)
      delay[i] = c.delays[size_t(drawn(91, i, 0, double(c.S())))];
  }
  // The same inputs and saved tensors, in this type; or, up to z, only the inputs, which is faster
  // than drawing them again.
  template <class U> explicit Run(const Run<U>& from, Name to = gx) : Run(from.c, Blank()) {
    copy(from, to);
  }
  explicit Run(const Run& from, Name to = gx) : Run(from.c, Blank()) { copy(from, to); }

  int64_t n_bits() const { return c.T * c.B * words(c.N); }
  bool has(int name) const {
    return !(c.absent >> name & 1) && (c.has_kernel || !(set_of(name) & set_of(kernel, gkernel))) &&
           (c.S() || !(set_of(name) & set_of(w, gw)));
  }
  T* at(int name) const { return has(name) ? b[name].get() : nullptr; }

  Layer layer() const {
    Model model = models[c.model];
    if (!c.detach) model.detach = detach_none;
    static constexpr int64_t one_step[] = {0};
    const bool own_delays = c.S() > 1 && !c.all_delays && !c.has_kernel;
    const WStrides of_w = w_strides(c);
    Layer layer{.T = c.T,
                .B = c.B,
                .N = c.N,
                .model = model,
                .surrogate = c.surrogate,
                .dampening = dampening,
                .n_ref = c.n_ref,
                .smooth = c.smooth,
                .delays = c.has_kernel ? one_step : c.delays.data(),
                .S = c.has_kernel ? 1 : c.S(),
                .D = c.D(),
                .delay = own_delays ? delay.get() : nullptr,
                .w = at(w),
                .w_stride_j = of_w.j,
                .w_stride_k = of_w.n,
                .coefficients = at(k),
                .w_stride_s = of_w.s,
                .autapses = c.autapses,
                .cutoff = c.cutoff,
                .options = options};
    if (!c.lengths.empty()) layer.lengths = c.lengths.data();
    if (c.has_kernel) {
      layer.kernel = at(kernel);
      layer.taps = c.delays.data();
      layer.n_taps = c.S();
    }
    if (c.has_mask) layer.mask = mask.get();
    return layer;
  }
  Saved saved() const { return {at(y), bits.get(), c.smooth ? at(smooth_z) : nullptr, at(carry)}; }
  State first() const { return {at(v0), at(a0), at(i0), at(r0), at(z0)}; }
  ForwardArgs forward_args(bool save = true) const {
    const Strides s = strides(c, x);
    const State last = {at(v_last), at(a_last), at(i_last), at(r_last), at(z_last)};
    return {layer(), at(x),       s.t,         s.b,         first(), last,
            at(z),   at(trace_v), at(trace_a), at(trace_A), save,    save ? saved() : Saved{}};
  }
  BackwardArgs backward_args() const {
    const Strides s = strides(c, gz);
    const State of_last = {at(gv_last), at(ga_last), at(gi_last), nullptr, at(gz_last)},
                of_first = {at(gv0), at(ga0), at(gi0), nullptr, at(gz0)};
    BackwardArgs args = {layer(), first(), saved(), at(gz), s.t,
                         s.b,     s.n,     at(gv),  at(ga), at(gA),
                         of_last, c.want,  at(gx),  at(gw), c.want ? at(gk) : nullptr,
                         of_first};
    args.gkernel = at(gkernel);
    return args;
  }

  // Whether the i-th number of an output must be written.
  bool written(int name, int64_t i) const {
    if (name == smooth_z && !c.smooth) return false;
    if (name == gk) return c.want >> i / c.N & 1;
    return !(c.absent >> name & 1);
  }

 private:
  struct Blank {};  // no inputs, and nothing is written
  Run(const Case& of, Blank)
      : c(of),
        bits(buffer<uint32_t>(n_bits())),
        delay(buffer<int64_t>(c.N * c.N)),
        mask(buffer<uint8_t>(c.item())) {
    for (int64_t i = 0; i < c.item(); i++) mask[i] = drawn(94, i, 0, 1) < 0.7;
    for (int name = 0; name < n_names; name++) {
      const int64_t n = size_of(c, name);
      b[name] = buffer<T>(n);
      std::fill_n(b[name].get(), n, T(NAN));
    }
    std::fill_n(bits.get(), n_bits(), 0xabababab);
  }
  template <class U> void copy(const Run<U>& from, Name to) {
    for (int name = 0; name < to; name++)
      std::copy_n(from.b[name].get(), size_of(c, name), b[name].get());
    if (to > z) std::copy_n(from.bits.get(), n_bits(), bits.get());
    if (c.S()) std::copy_n(from.delay.get(), c.N * c.N, delay.get());
  }
};

// x rounded to bfloat16, by arithmetic.
inline float rounded(float x) {
  if (x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  // between neighbours, the same for all subnormal numbers
  const float step = std::ldexp(1.0f, std::max(exponent, -125) - 8);
  return std::nearbyint(x / step) * step;
}
inline void round_all(const Buffer<float>& b, int64_t n) {
  std::transform(b.get(), b.get() + n, b.get(), rounded);
}

}  // namespace lsnn::test
