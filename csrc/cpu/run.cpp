#include "run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "block_cache.h"
#include "packed.h"

namespace lsnn::cpu {
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
#endif
        {"portable", true, &kernels_f32_portable, &kernels_f64_portable},
    };
    const char* asked = std::getenv("LSNN_CPU");
    for (const InstructionSet& s : sets)
      if (asked && *asked ? !std::strcmp(s.name, asked) : s.here) {
        if (!s.here) throw std::runtime_error(std::string("LSNN_CPU=") + asked + ": this processor does not have it");
        return s;
      }
    throw std::runtime_error(std::string("LSNN_CPU must be avx512, avx2 or portable, got ") + asked);
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

// The layer in the layout of packed.h, in one block.
template <class T> struct PackedLayer {
  Block block;
  Packed<T> packed;

  static int64_t size(const Layer& l, bool panels) {
    const int64_t NP = padded(l.N);
    return (l.S * l.N * NP * (panels ? 2 : 1) + (n_coefficients + 2) * NP) * (int64_t)sizeof(T);
  }

  PackedLayer(const Layer& l, const AnyModel& model, bool panels) : block(size(l, panels)) {
    const int64_t N = l.N, NP = padded(N), each = N * NP;
    T* w = (T*)block.data;
    T* k = w + l.S * each;
    T* turned = k + (n_coefficients + 2) * NP;
    for (int64_t s = 0; s < l.S; s++)
      for (int64_t j = 0; j < N; j++)
        for (int64_t n = 0; n < NP; n++) {
          const bool here = n < N && (l.S == 1 || l.delay[j * N + n] == l.delays[s]);
          w[(s * N + j) * NP + n] = here ? ((const T*)l.w)[j * l.w_stride_j + n * l.w_stride_k] : T(0);
        }
    for (int64_t c = 0; c < n_coefficients + 2; c++)
      for (int64_t n = 0; n < NP; n++) {
        const T beyond = c == THETA || c == WIDTH ? T(1) : T(0);  // harmless: no spike, no division by 0
        k[c * NP + n] = c == n_coefficients       ? T(l.dampening)
                        : c == n_coefficients + 1 ? T(l.n_ref)
                        : n < N                   ? ((const T*)l.coefficients)[c * N + n]
                                                  : beyond;
      }
    const int64_t panel = kernels<T>().panel;
    for (int64_t s = 0; panels && s < l.S; s++)
      for (int64_t j = 0; j < NP; j++)
        for (int64_t n = 0; n < N; n++) turned[s * each + (j / panel * N + n) * panel + j % panel] = j < N ? w[(s * N + j) * NP + n] : T(0);
    packed = {NP, words(N), w, panels ? turned : nullptr, k, model};
  }
};

template <class F> void each(Parallel parallel, int64_t n, const F& body) {
  parallel(n, [](int64_t i, void* context) { (*static_cast<const F*>(context))(i); }, const_cast<F*>(&body));
}

}  // namespace

const char* instruction_set() { return chosen().name; }

template <class T> void forward(const ForwardArgs& f, Parallel parallel) {
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const PackedLayer<T> p(l, model_of<T>(l, f.first.r, 0), false);
  const int64_t scratch = k.forward_scratch(l);
  each(parallel, tiles(l.B), [&](int64_t tile) {
    const Block block(scratch);
    k.forward_tile(f, p.packed, tile, block.data);
  });
}

template <class T> void backward(const BackwardArgs& f, Parallel parallel) {
  const Layer& l = f.layer;
  const Kernels<T>& k = kernels<T>();
  const PackedLayer<T> p(l, model_of<T>(l, f.first.r, f.want), true);
  const int64_t N = l.N, NP = p.packed.NP, nw = f.gw ? l.S * N * NP : 0, nk = f.want ? n_coefficients * NP : 0, each_group = nw + nk;

  // Tiles are summed group by group, and the groups at the end, always in the same order. As many groups as tiles, unless
  // their weight gradients would take more than 256 MB.
  const int64_t most = each_group ? std::max<int64_t>(1, (256 << 20) / (each_group * (int64_t)sizeof(T))) : tiles(l.B);
  const int64_t groups = std::min(tiles(l.B), most), scratch = k.backward_scratch(l);
  const Block sums(std::max<int64_t>(1, groups * each_group) * sizeof(T));
  T* sum = (T*)sums.data;
  each(parallel, groups, [&](int64_t g) {
    const Block block(scratch);
    T *gw = nw ? sum + g * each_group : nullptr, *gk = nk ? sum + g * each_group + nw : nullptr;
    if (each_group) std::memset(sum + g * each_group, 0, each_group * sizeof(T));
    for (int64_t tile = g * tiles(l.B) / groups; tile < (g + 1) * tiles(l.B) / groups; tile++)
      k.backward_tile(f, p.packed, tile, block.data, gw, gk);
  });
  auto total = [&](int64_t at) {
    T t = 0;
    for (int64_t g = 0; g < groups; g++) t += sum[g * each_group + at];
    return t;
  };
  if (nw)
    each(parallel, N, [&](int64_t j) {
      for (int64_t n = 0; n < N; n++) {
        const int64_t s = l.S == 1 ? 0 : std::lower_bound(l.delays, l.delays + l.S, l.delay[j * N + n]) - l.delays;
        ((T*)f.gw)[j * N + n] = total((s * N + j) * NP + n);
      }
    });
  for (int64_t c = 0; f.want && c < n_coefficients; c++)
    for (int64_t n = 0; n < N; n++) ((T*)f.gcoefficients)[c * N + n] = f.want >> c & 1 ? total(nw + c * NP + n) : T(0);
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
