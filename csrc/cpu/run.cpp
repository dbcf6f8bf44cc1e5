#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>

#include "block_cache.h"
#include "packed.h"

namespace lsnn::cpu {
#if defined(__aarch64__)
extern const Kernels<float> kernels_f32_neon;
extern const Kernels<double> kernels_f64_neon;
#endif
namespace {

struct InstructionSet {
  const char* name;
  bool here;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

const InstructionSet& chosen() {
  static const InstructionSet& found = []() -> const InstructionSet& {
    static const InstructionSet sets[] = {
#if defined(__x86_64__)
        {"avx512",
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"),
         &kernels_f32_avx512, &kernels_f64_avx512},
        {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi"), &kernels_f32_avx2,
         &kernels_f64_avx2},
#elif defined(__aarch64__)
        {"neon", true, &kernels_f32_neon, &kernels_f64_neon},
#endif
        {"portable", true, &kernels_f32_portable, &kernels_f64_portable},
    };
    const char* asked = std::getenv("LSNN_CPU");
    for (const InstructionSet& s : sets)
      if (asked && *asked ? !std::strcmp(s.name, asked) : s.here) {
        if (!s.here) throw std::runtime_error(std::string("LSNN_CPU=") + asked + ": this processor does not have it");
        return s;
      }
    std::string names;  // all but the last one
    for (const InstructionSet& s : sets)
      if (&s + 1 < std::end(sets)) names += (names.empty() ? "" : ", ") + std::string(s.name);
    throw std::runtime_error("LSNN_CPU must be " + (names.empty() ? "" : names + " or ") + std::end(sets)[-1].name + ", got " + asked);
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

template <class T> AnyModel model_of(const Layer& l, const void* first_r, unsigned want) {
  const T* k = (const T*)l.coefficients;
  return {l.row,
          l.surrogate,
          l.smooth,
          any<T>(k + SIGMA * l.N, l.N) || (want >> SIGMA & 1),
          any<T>(k + P * l.N, l.N),
          any<T>(k + ETA * l.N, l.N),
          l.n_ref > 0 || any<T>(first_r, l.B * l.N),
          want};
}

template <class F> void each(Parallel parallel, int64_t n, const F& body) {
  parallel(n, [](int64_t i, void* context) { (*static_cast<const F*>(context))(i); }, const_cast<F*>(&body));
}

// get(r, c) for all rows and columns into to(r, c), in squares that fit the first cache whichever of the two is contiguous.
template <class Get, class To> void copy_squares(Parallel parallel, int64_t rows, int64_t columns, const Get& get, const To& to) {
  constexpr int64_t side = 32;
  each(parallel, (rows + side - 1) / side, [&](int64_t part) {
    const int64_t r0 = part * side, r1 = std::min(rows, r0 + side);
    for (int64_t c0 = 0; c0 < columns; c0 += side)
      for (int64_t r = r0, c1 = std::min(columns, c0 + side); r < r1; r++)
        for (int64_t c = c0; c < c1; c++) to(r, c) = get(r, c);
  });
}

// A matrix of any strides into rows of `stride` numbers, zeros beyond its columns.
template <class T>
void copy_rows(Parallel parallel, int64_t rows, int64_t columns, const void* from, int64_t stride_r, int64_t stride_c, T* to,
               int64_t stride) {
  const T* f = (const T*)from;
  for (int64_t r = 0; r < rows; r++) std::fill(to + r * stride + columns, to + (r + 1) * stride, T(0));
  if (stride_c == 1) each(parallel, rows, [&](int64_t r) { std::copy_n(f + r * stride_r, columns, to + r * stride); });
  else if (stride_r == 1)
    copy_squares(
        parallel, rows, columns, [=](int64_t r, int64_t c) { return f[r + c * stride_c]; },
        [=](int64_t r, int64_t c) -> T& { return to[r * stride + c]; });
  else
    copy_squares(
        parallel, rows, columns, [=](int64_t r, int64_t c) { return f[r * stride_r + c * stride_c]; },
        [=](int64_t r, int64_t c) -> T& { return to[r * stride + c]; });
}

// The layer in the layout of packed.h, in one block.
template <class T> struct PackedLayer {
  Block block;
  Packed<T> packed;

  struct Sizes {
    int64_t w, bias, panels, w_out, panels_out, coefficients;
    int64_t sum() const { return w + bias + panels + w_out + panels_out + coefficients; }
  };
  static Sizes sizes(const Layer& l, const Projection& in, const Readout& out, bool backward) {
    const int64_t NP = padded(l.N), each = l.N * NP;
    return {l.S * each + in.I * NP,   NP, backward ? l.S * each : 0, l.N * padded_outputs(out.O), backward ? NP * out.O : 0,
            (n_coefficients + 2) * NP};
  }

  PackedLayer(const Layer& l, const Projection& in, const Readout& out, const AnyModel& model, bool backward, Parallel parallel)
      : block(sizes(l, in, out, backward).sum() * (int64_t)sizeof(T)) {
    const Sizes size = sizes(l, in, out, backward);
    const int64_t N = l.N, NP = padded(N), each = N * NP, OP = padded_outputs(out.O), panel = kernels<T>().panel,
                  lanes = kernels<T>().lanes;
    T* w = (T*)block.data;
    T *bias = w + size.w, *panels = bias + size.bias, *w_out = panels + size.panels, *panels_out = w_out + size.w_out,
      *k = panels_out + size.panels_out;
    if (l.S == 1) copy_rows(parallel, N, N, l.w, l.w_stride_j, l.w_stride_k, w, NP);
    for (int64_t s = 0; l.S > 1 && s < l.S; s++)
      copy_squares(
          parallel, N, NP,
          [&](int64_t j, int64_t n) {
            const bool here = n < N && l.delay[j * N + n] == l.delays[s];
            return here ? ((const T*)l.w)[j * l.w_stride_j + n * l.w_stride_k] : T(0);
          },
          [&](int64_t j, int64_t n) -> T& { return w[s * each + j * NP + n]; });
    for (int64_t s = 0; backward && s < l.S; s++) {
      const T* from = w + s * each;
      T* to = panels + s * each;
      std::fill(to + N / panel * panel * N, to + each, T(0));
      copy_squares(
          parallel, N, N, [=](int64_t j, int64_t n) { return from[j * NP + n]; },
          [=](int64_t j, int64_t n) -> T& { return to[(j / panel * N + n) * panel + j % panel]; });
    }
    if (in.I) copy_rows(parallel, in.I, N, in.w, in.w_stride_i, in.w_stride_n, w + l.S * each, NP);
    for (int64_t n = 0; n < NP; n++) bias[n] = in.I && in.bias && n < N ? ((const T*)in.bias)[n] : T(0);
    auto w_oj = [&](int64_t o, int64_t j) {
      return o < out.O && j < N ? ((const T*)out.w)[o * out.w_stride_o + j * out.w_stride_n] : T(0);
    };
    for (int64_t j = 0; j < N; j++)
      for (int64_t o = 0; o < OP; o++) w_out[j * OP + o] = w_oj(o, j);
    for (int64_t j = 0; backward && j < NP; j++)
      for (int64_t o = 0; o < out.O; o++) panels_out[(j / panel * out.O + o) * panel + j % panel] = w_oj(o, j);
    for (int64_t c = 0; c < n_coefficients + 2; c++)
      for (int64_t n = 0; n < NP; n++) {
        const T beyond = c == THETA || c == WIDTH ? T(1) : T(0);  // harmless: no spike, no division by 0
        k[(n / lanes * (n_coefficients + 2) + c) * lanes + n % lanes] = c == n_coefficients       ? T(l.dampening)
                                                                        : c == n_coefficients + 1 ? T(l.n_ref)
                                                                        : n < N                   ? ((const T*)l.coefficients)[c * N + n]
                                                                                                  : beyond;
      }
    packed = {NP, words(N), w, bias, panels, w_out, panels_out, k, model};
  }
};

}  // namespace

const char* instruction_set() { return chosen().name; }

template <class T> void forward(const ForwardArgs& f, Parallel parallel) {
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const PackedLayer<T> p(l, f.projection, f.readout, model_of<T>(l, f.first.r, 0), false, parallel);
  const int64_t scratch = k.forward_scratch(f);
  each(parallel, tiles(l.B), [&](int64_t tile) {
    const Block block(scratch);
    k.forward_tile(f, p.packed, tile, block.data);
  });
}

template <class T> void backward(const BackwardArgs& f, Parallel parallel) {
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const PackedLayer<T> p(l, f.projection, f.readout, model_of<T>(l, f.first.r, f.want), true, parallel);
  const int64_t N = l.N, NP = p.packed.NP, I = f.projection.I, O = f.readout.O, OP = padded_outputs(O);
  const int64_t n_w = f.gw ? l.S * N * NP : 0, n_in = f.gw_in ? (I + 1) * NP : 0, n_out = f.gw_out ? N * OP : 0,
                n_k = f.want ? n_coefficients * NP : 0, n_all = n_w + n_in + n_out + n_k;

  // Tiles are summed group by group, and the groups at the end, always in the same order. As many groups as tiles, unless
  // their weight gradients would take more than 256 MB.
  const int64_t most = n_all ? std::max<int64_t>(1, (256 << 20) / (n_all * (int64_t)sizeof(T))) : tiles(l.B);
  const int64_t groups = std::min(tiles(l.B), most), scratch = k.backward_scratch(f);
  const Block block(std::max<int64_t>(1, groups * n_all) * sizeof(T));
  auto sums = [&](int64_t g) {
    T* at = (T*)block.data + g * n_all;
    auto part = [&](int64_t n) { return at += n, n ? at - n : nullptr; };
    T *w = part(n_w), *w_in = part(n_in), *w_out = part(n_out);
    return Sums<T>{w, w_in, w_out, part(n_k)};
  };
  each(parallel, groups, [&](int64_t g) {
    const Block memory(scratch);
    if (n_all) std::memset((T*)block.data + g * n_all, 0, n_all * sizeof(T));
    for (int64_t tile = g * tiles(l.B) / groups; tile < (g + 1) * tiles(l.B) / groups; tile++)
      k.backward_tile(f, p.packed, tile, memory.data, sums(g));
  });
  auto total = [&](T* Sums<T>::* what, int64_t at) {
    T t = 0;
    for (int64_t g = 0; g < groups; g++) t += (sums(g).*what)[at];
    return t;
  };
  if (n_w)
    each(parallel, N, [&](int64_t j) {
      for (int64_t n = 0; n < N; n++) {
        const int64_t s = l.S == 1 ? 0 : std::lower_bound(l.delays, l.delays + l.S, l.delay[j * N + n]) - l.delays;
        ((T*)f.gw)[j * N + n] = total(&Sums<T>::w, (s * N + j) * NP + n);
      }
    });
  if (n_in)
    copy_squares(
        parallel, N, I, [&](int64_t n, int64_t i) { return total(&Sums<T>::w_in, i * NP + n); },
        [&](int64_t n, int64_t i) -> T& { return ((T*)f.gw_in)[n * I + i]; });
  for (int64_t n = 0; n_in && f.gbias && n < N; n++) ((T*)f.gbias)[n] = total(&Sums<T>::w_in, I * NP + n);
  for (int64_t o = 0; n_out && o < O; o++)
    for (int64_t n = 0; n < N; n++) ((T*)f.gw_out)[o * N + n] = total(&Sums<T>::w_out, n * OP + o);
  for (int64_t c = 0; f.want && c < n_coefficients; c++)
    for (int64_t n = 0; n < N; n++) ((T*)f.gcoefficients)[c * N + n] = f.want >> c & 1 ? total(&Sums<T>::k, c * NP + n) : T(0);
}

// ----------------------------------------------------------------------------------------------------------------- linear
template <class T> void linear_forward(const Linear& l, Parallel parallel) {
  const int64_t NP = padded(l.N), rows_each = 1024;
  const Kernels<T>& k = kernels<T>();
  const Block block((l.I + 1) * NP * (int64_t)sizeof(T));
  T *w = (T*)block.data, *bias = w + l.I * NP;
  for (int64_t i = 0; i < l.I; i++)
    for (int64_t n = 0; n < NP; n++) w[i * NP + n] = n < l.N ? ((const T*)l.w)[n * l.w_stride_n + i * l.w_stride_i] : T(0);
  for (int64_t n = 0; n < NP; n++) bias[n] = l.bias && n < l.N ? ((const T*)l.bias)[n] : T(0);
  each(parallel, (l.R + rows_each - 1) / rows_each, [&](int64_t part) {
    const Block scratch(k.linear_scratch(l));
    k.linear_forward(l, w, bias, part * rows_each, std::min(l.R, (part + 1) * rows_each), scratch.data);
  });
}

template <class T> void linear_backward(const Linear& l, Parallel parallel) {
  // As many parts as the number of rows alone demands, summed in order, for the same gradient on any number of threads.
  const int64_t NP = padded(l.N), part_size = (l.I + 1) * NP, parts = std::clamp<int64_t>(l.R / 2048, 1, 16);
  const Kernels<T>& k = kernels<T>();
  const Block block(parts * part_size * (int64_t)sizeof(T));
  T* sum = (T*)block.data;
  each(parallel, parts, [&](int64_t part) {
    const Block scratch(k.linear_scratch(l));
    T* gw = sum + part * part_size;
    std::memset(gw, 0, part_size * sizeof(T));
    k.linear_gradient(l, part * l.R / parts, (part + 1) * l.R / parts, gw, scratch.data);
  });
  for (int64_t i = 0; i <= (l.gbias ? l.I : l.I - 1); i++)
    for (int64_t n = 0; n < l.N; n++) {
      T total = 0;
      for (int64_t part = 0; part < parts; part++) total += sum[part * part_size + i * NP + n];
      (i < l.I ? ((T*)l.gw)[n * l.I + i] : ((T*)l.gbias)[n]) = total;
    }
}

template void linear_forward<float>(const Linear&, Parallel);
template void linear_forward<double>(const Linear&, Parallel);
template void linear_backward<float>(const Linear&, Parallel);
template void linear_backward<double>(const Linear&, Parallel);
template void forward<float>(const ForwardArgs&, Parallel);
template void forward<double>(const ForwardArgs&, Parallel);
template void backward<float>(const BackwardArgs&, Parallel);
template void backward<double>(const BackwardArgs&, Parallel);

}  // namespace lsnn::cpu
