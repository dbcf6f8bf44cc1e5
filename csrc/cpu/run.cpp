#include "run.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

#include "block_cache.h"
#include "counters.h"
#include "dispatch.h"
#include "instruction_sets.h"
#include "pack.h"
#include "thread_teams.h"

namespace lsnn::cpu {

// A pair of tables for each instruction set, from kernels.cpp.
#define LSNN_DECLARE(name, target, bits, flags, available) \
  extern const Kernels<float> kernels_f32_##name;          \
  extern const Kernels<double> kernels_f64_##name;
LSNN_INSTRUCTION_SETS(LSNN_DECLARE)
#undef LSNN_DECLARE

namespace {

struct InstructionSet {
  const char* name;
  int bits;  // of a vector
  const char* flags;
  bool available;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

const InstructionSet& chosen() {
  static const InstructionSet& found = []() -> const InstructionSet& {
    static const InstructionSet sets[] = {
#define LSNN_ENTRY(name, target, bits, flags, available) \
  {#name, bits, flags, available, &kernels_f32_##name, &kernels_f64_##name},
        LSNN_INSTRUCTION_SETS(LSNN_ENTRY)
#undef LSNN_ENTRY
    };
    const char* requested = std::getenv("LSNN_CPU");
    for (const InstructionSet& s : sets)
      if (requested && *requested ? !std::strcmp(s.name, requested) : s.available) {
        if (!s.available)
          throw std::runtime_error(
              std::string("LSNN_CPU: expected an instruction set of this processor, got ") +
              requested);
        return s;
      }
    std::string names;  // all but the last one
    for (const InstructionSet& s : sets)
      if (&s + 1 < std::end(sets)) names += (names.empty() ? "" : ", ") + std::string(s.name);
    throw std::runtime_error("LSNN_CPU: expected " + (names.empty() ? "" : names + " or ") +
                             std::end(sets)[-1].name + ", got " + requested);
  }();
  return found;
}
template <class T> const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4) return *chosen().f32;
  else return *chosen().f64;
}

template <class T> bool any(const void* p, int64_t n) {
  return p && std::any_of((const T*)p, (const T*)p + n, [](T x) { return x != T(0); });
}

}  // namespace

template <class T> GeneralSpec general_spec(const Layer& l, const void* first_r, unsigned want) {
  if (l.neuron) return {};  // a registered neuron has its own equations
  const T* k = (const T*)l.coefficients;
  return {l.model,
          l.surrogate,
          l.smooth,
          any<T>(k + SIGMA * l.N, l.N) || (want >> SIGMA & 1),
          any<T>(k + P * l.N, l.N),
          any<T>(k + ETA * l.N, l.N),
          l.n_ref > 0 || any<T>(first_r, l.B * l.N),
          is_cut(l),
          want};
}

const char* instruction_set() { return chosen().name; }
std::tuple<std::string, int, std::string> instruction_set_flags() {
  return {chosen().name, chosen().bits, chosen().flags};
}

template <class T> void forward(const ForwardArgs& f, Parallel parallel) {
  const Timed all(hooks(), Count::ns_forward, Count::forward_calls);
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const PackedLayer<T> p(l, f.projection, f.readout, general_spec<T>(l, f.first.r, 0), k,
                         {.sums = true}, parallel);
  const Formation how = forward_teams(f, parallel, k.lanes);
  in_teams(parallel, how, tiles(l.B), k.forward_scratch(f, how.members),
           [&](int64_t tile, const Member& member) {
             const Timed timed(p.packed.hooks, Count::ns_forward_tiles);
             k.forward_tile(f, p.packed, tile, member);
             arrive_and_wait(member);
           });
}

namespace {
// Copies sums of dL/dw into gw. w: [S * N,NP] of one current, or [entries] of Packed::learning.
template <class T>
void hand_out_weights(const BackwardArgs& f, const Layer& l, int64_t current, const Packed<T>& p,
                      const T* w, Parallel parallel) {
  const int64_t N = l.N, NP = p.NP, K = l.sizes.currents;
  const bool own_delays = matrices(l) != l.S;
  const DelayIndex index = own_delays && !p.learning.start ? DelayIndex(l) : DelayIndex();
  auto of_row = [&](int64_t m, int64_t j, const T* weights) {
    T* to = (T*)f.gw + ((m * K + current) * N + j) * N;
    if (p.learning.start) {
      std::fill_n(to, N, T(0));
      for (int64_t s = own_delays ? 0 : m; s < (own_delays ? l.S : m + 1); s++)
        for (uint32_t i = p.learning.start[s * N + j]; i < p.learning.start[s * N + j + 1]; i++)
          to[p.learning.column[i]] = w[i];
    } else if (!own_delays) {
      std::copy_n(w + (m * N + j) * NP, N, to);
    } else {
      for (int64_t n = 0; n < N; n++) {
        const int64_t s = index(j, n);
        to[n] = s < 0 ? T(0) : w[(s * N + j) * NP + n];
      }
    }
    for (int64_t n = 0; weights && n < N; n++)
      if (weights[n] == T(0)) to[n] = T(0);
    if (!l.autapses) to[j] = T(0);
  };
  if (f.existing && !p.learning.start) return each_row_of_weights<T>(l, parallel, of_row);
  parallel_for(serial_if_few(parallel, matrices(l) * N * N), matrices(l) * N,
               [&](int64_t r) { of_row(r / N, r % N, nullptr); });
}
}  // namespace

template <class T> void backward(const BackwardArgs& f, Parallel parallel) {
  const Timed all(hooks(), Count::ns_backward, Count::backward_calls);
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const Uses uses{
      .sums = !f.saved.y, .products = true, .gradient = f.gw != nullptr, .existing = f.existing};
  const PackedLayer<T> p(l, f.projection, f.readout, general_spec<T>(l, f.first.r, f.want), k, uses,
                         parallel);
  const int64_t N = l.N, NP = p.packed.NP, I = f.projection.I, O = f.readout.O,
                OP = padded_outputs(O);
  const Sparse<T>& learning = p.packed.learning;
  const int64_t n_gradients = l.sizes.gradients;
  const int64_t n_each = learning.start ? learning.start[l.S * N] : l.sizes.currents * l.S * N * NP,
                n_w = f.gw ? n_each : 0, n_in = f.gw_in ? (I + 1) * NP : 0,
                n_out = f.gw_out ? N * OP : 0, n_k = f.want ? n_gradients * NP : 0,
                n_kernel = f.gkernel ? l.n_taps * NP : 0,
                n_all = n_w + n_in + n_out + n_k + n_kernel;

  // Tiles are summed in groups, and the groups at the end, always in the same order. One group for
  // each tile, unless their weight gradients would take more than 256 MB.
  const int64_t most =
      n_all ? std::max<int64_t>(1, (256 << 20) / (n_all * (int64_t)sizeof(T))) : tiles(l.B);
  // one, without tiles, for an empty batch
  const int64_t groups = std::max<int64_t>(1, std::min(tiles(l.B), most));
  const Block block(std::max<int64_t>(1, groups * n_all) * sizeof(T));
  auto sums = [&](int64_t g) {
    T* at = (T*)block.data + g * n_all;
    auto take = [&](int64_t n) { return at += n, n ? at - n : nullptr; };
    T *w = take(n_w), *w_in = take(n_in), *w_out = take(n_out), *coefficients = take(n_k);
    return Sums<T>{w, w_in, w_out, coefficients, take(n_kernel)};
  };
  const Formation how = backward_teams(f, parallel, k.lanes, groups);
  const ScratchBytes scratch =
      k.backward_scratch(f, p.packed.product.span, p.packed.w_bf16 != nullptr, how.members);
  in_teams(parallel, how, groups, scratch, [&](int64_t g, const Member& member) {
    const Timed timed(p.packed.hooks, Count::ns_backward_tiles);
    const int64_t from = n_all * member.index / member.members,
                  to = n_all * (member.index + 1) / member.members;
    if (n_all) std::memset((T*)block.data + g * n_all + from, 0, (to - from) * sizeof(T));
    arrive_and_wait(member);
    for (int64_t tile = g * tiles(l.B) / groups; tile < (g + 1) * tiles(l.B) / groups; tile++) {
      k.backward_tile(f, p.packed, tile, member, sums(g));
      arrive_and_wait(member);
    }
  });
  const Timed timed(p.packed.hooks, Count::ns_sum_tiles);
  // Sums all groups into the first, then copies from there.
  constexpr int64_t slice = 1 << 14;
  T* const first = (T*)block.data;
  parallel_for(serial_if_few(parallel, (groups - 1) * n_all), (n_all + slice - 1) / slice,
               [&](int64_t i) {
                 const int64_t end = std::min(n_all, (i + 1) * slice);
                 for (int64_t g = 1; g < groups; g++)
                   for (int64_t at = i * slice; at < end; at++) first[at] += first[g * n_all + at];
               });
  const Sums<T> sum = sums(0);
  for (int64_t k = 0; f.gw && k < l.sizes.currents; k++)
    hand_out_weights(f, layer_of_current(l, k, sizeof(T)), k, p.packed, sum.w + k * l.S * N * NP,
                     parallel);
  if (n_in)
    copy_squares(
        parallel, N, I, [&](int64_t n, int64_t i) { return sum.w_in[i * NP + n]; },
        [&](int64_t n, int64_t i) -> T& { return ((T*)f.gw_in)[n * I + i]; });
  if (n_in && f.gbias) std::copy_n(sum.w_in + I * NP, N, (T*)f.gbias);
  if (n_out)
    for (int64_t o = 0; o < O; o++)
      for (int64_t n = 0; n < N; n++) ((T*)f.gw_out)[o * N + n] = sum.w_out[n * OP + o];
  for (int64_t s = 0; f.gkernel && s < l.n_taps; s++)
    for (int64_t n = 0; n < N; n++)
      ((T*)f.gkernel)[s * N + n] = sum.kernel[(n / k.lanes * l.n_taps + s) * k.lanes + n % k.lanes];
  if (!f.want) return;
  for (int64_t c = 0; c < n_gradients; c++)
    for (int64_t n = 0; n < N; n++)
      ((T*)f.gcoefficients)[c * N + n] = f.want >> c & 1 ? sum.k[c * NP + n] : T(0);
}

// ------------------------------------------------------------------------------------------ linear
template <class T> void linear_forward(const Linear& l, Parallel parallel) {
  const int64_t NP = padded(l.N), rows_each = 1024;
  const Kernels<T>& k = kernels<T>();
  const Block block((l.I + 1) * NP * (int64_t)sizeof(T));
  T *w = (T*)block.data, *bias = w + l.I * NP;
  for (int64_t i = 0; i < l.I; i++)
    for (int64_t n = 0; n < NP; n++)
      w[i * NP + n] = n < l.N ? ((const T*)l.w)[n * l.w_stride_n + i * l.w_stride_i] : T(0);
  for (int64_t n = 0; n < NP; n++) bias[n] = l.bias && n < l.N ? ((const T*)l.bias)[n] : T(0);
  parallel_for(parallel, (l.R + rows_each - 1) / rows_each, [&](int64_t slice) {
    const Block scratch(k.linear_scratch(l));
    k.linear_forward(l, w, bias, slice * rows_each, std::min(l.R, (slice + 1) * rows_each),
                     scratch.data);
  });
}

// Where rows of the gradient repeat over many steps, as after a mean over time, each row is
// multiplied with the spike counts of the inputs.
template <class T> void linear_backward_of_counts(const Linear& l, Parallel parallel) {
  const int64_t steps = l.R / l.g_rows, columns = l.g_rows * words(l.I), columns_each = 128;
  const Block counts(l.g_rows * l.I * (int64_t)sizeof(T));
  parallel_for(parallel, (columns + columns_each - 1) / columns_each, [&](int64_t slice) {
    kernels<T>().spike_counts(l, slice * columns_each,
                              std::min(columns, (slice + 1) * columns_each), (T*)counts.data);
  });
  Linear rest = l;
  rest.R = l.g_rows;
  rest.x = counts.data;
  rest.bits = nullptr;
  linear_backward<T>(rest, parallel);
  for (int64_t n = 0; l.gbias && n < l.N; n++) ((T*)l.gbias)[n] *= T(steps);
}

template <class T> void linear_backward(const Linear& l, Parallel parallel) {
  constexpr int64_t many = 8, exact = 1 << 24;  // steps; what float32 counts to
  if (l.bits && l.R >= many * l.g_rows && l.R < exact * l.g_rows)
    return linear_backward_of_counts<T>(l, parallel);
  // The number of slices depends only on the number of rows, and slices are summed in order, so
  // that the gradient is the same for any number of threads.
  const int64_t NP = padded(l.N), slice_size = (l.I + 1) * NP,
                n_slices = std::clamp<int64_t>(l.R / 2048, 1, 16);
  const Kernels<T>& k = kernels<T>();
  const Block block(n_slices * slice_size * (int64_t)sizeof(T));
  T* sum = (T*)block.data;
  parallel_for(parallel, n_slices, [&](int64_t slice) {
    const Block scratch(k.linear_scratch(l));
    T* gw = sum + slice * slice_size;
    std::memset(gw, 0, slice_size * sizeof(T));
    k.linear_gradient(l, slice * l.R / n_slices, (slice + 1) * l.R / n_slices, gw, scratch.data);
  });
  for (int64_t i = 0; i <= (l.gbias ? l.I : l.I - 1); i++)
    for (int64_t n = 0; n < l.N; n++) {
      T total = 0;
      for (int64_t slice = 0; slice < n_slices; slice++)
        total += sum[slice * slice_size + i * NP + n];
      (i < l.I ? ((T*)l.gw)[n * l.I + i] : ((T*)l.gbias)[n]) = total;
    }
}

// -------------------------------------------------------------------------------------- spike bits
namespace {

bool spike_bits_of_rows(const uint8_t* x, int64_t I, int64_t r0, int64_t r1, uint32_t* bits) {
  constexpr uint64_t ones = 0x0101010101010101, gathers = 0x0102040810204080;
  uint64_t others = 0;
  for (int64_t r = r0; r < r1; r++)
    for (int64_t w = 0; w < words(I); w++) {
      uint32_t word = 0;
      for (int64_t i = 32 * w; i < std::min(I, 32 * w + 32); i += 8) {
        uint64_t eight = 0;  // bytes, input i in the lowest
        std::memcpy(&eight, x + r * I + i, std::min<int64_t>(8, I - i));
        others |= eight & ~ones;
        // The product gathers the lowest bit of each byte, in order, in the highest byte.
        word |= (uint32_t)((eight & ones) * gathers >> 56) << i % 32;
      }
      bits[r * words(I) + w] = word;
    }
  return !others;
}
template <class T>
bool spike_bits_of_rows(const T* x, int64_t I, int64_t r0, int64_t r1, uint32_t* bits) {
  return kernels<T>().spike_bits(x, I, r0, r1, bits);
}

}  // namespace

template <class Number>
bool spike_bits(const Number* x, const SpikeRows& rows, uint32_t* bits, Parallel parallel) {
  constexpr int64_t rows_each = 256;
  const int64_t R = rows.T * rows.B, I = rows.I;
  std::atomic<bool> spikes{true};
  parallel_for(parallel, (R + rows_each - 1) / rows_each, [&](int64_t slice) {
    const int64_t r1 = std::min(R, (slice + 1) * rows_each);
    for (int64_t r = slice * rows_each; r < r1 && spikes; r++) {
      const Number* row = x + r / rows.B * rows.stride_t + r % rows.B * rows.stride_b;
      if (!spike_bits_of_rows(row, I, 0, 1, bits + r * words(I))) spikes = false;
    }
  });
  return spikes;
}

// ----------------------------------------------------------------------------------------- readout
namespace {
// body(c0, c1) for ranges of columns: full cache lines, few enough that the carried values stay in
// cache.
template <class F> void each_columns(Parallel parallel, int64_t T, int64_t n, const F& body) {
  constexpr int64_t line = 16, most = 4096;
  const int64_t lines_each = (n + line * parallel.threads - 1) / (line * parallel.threads);
  const int64_t columns = std::clamp(lines_each * line, line, most);
  parallel_for(serial_if_few(parallel, T * n), (n + columns - 1) / columns,
               [&](int64_t slice) { body(slice * columns, std::min(n, (slice + 1) * columns)); });
}
}  // namespace
template <class T> void leaky_forward(const LeakyForward& f, Parallel parallel) {
  each_columns(parallel, f.T, f.n,
               [&](int64_t c0, int64_t c1) { kernels<T>().leaky_forward(f, c0, c1); });
}
template <class T> void leaky_backward(const LeakyBackward& f, Parallel parallel) {
  each_columns(parallel, f.T, f.n,
               [&](int64_t c0, int64_t c1) { kernels<T>().leaky_backward(f, c0, c1); });
}

// ---------------------------------------------------------------------------------------- dispatch
template <class T> const Kernels<T>& chosen_kernels() { return kernels<T>(); }

template const Kernels<float>& chosen_kernels<float>();
template const Kernels<double>& chosen_kernels<double>();
template GeneralSpec general_spec<float>(const Layer&, const void*, unsigned);
template GeneralSpec general_spec<double>(const Layer&, const void*, unsigned);
template void leaky_forward<float>(const LeakyForward&, Parallel);
template void leaky_forward<double>(const LeakyForward&, Parallel);
template void leaky_backward<float>(const LeakyBackward&, Parallel);
template void leaky_backward<double>(const LeakyBackward&, Parallel);
template bool spike_bits<float>(const float*, const SpikeRows&, uint32_t*, Parallel);
template bool spike_bits<double>(const double*, const SpikeRows&, uint32_t*, Parallel);
template bool spike_bits<uint8_t>(const uint8_t*, const SpikeRows&, uint32_t*, Parallel);
template void linear_forward<float>(const Linear&, Parallel);
template void linear_forward<double>(const Linear&, Parallel);
template void linear_backward<float>(const Linear&, Parallel);
template void linear_backward<double>(const Linear&, Parallel);
template void forward<float>(const ForwardArgs&, Parallel);
template void forward<double>(const ForwardArgs&, Parallel);
template void backward<float>(const BackwardArgs&, Parallel);
template void backward<double>(const BackwardArgs&, Parallel);

}  // namespace lsnn::cpu
