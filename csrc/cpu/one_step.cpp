#include "one_step.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "thread_teams.h"

namespace lsnn::cpu {
namespace {

template <class T> class PackedStep : public OneStep {
 public:
  PackedStep(const Layer& l, Parallel parallel)
      : kernels_(chosen_kernels<T>()),
        layer_(l, {}, {}, general_spec<T>(l, nullptr, 0), kernels_,
               {.sums = true, .products = true}, parallel) {}

  void forward(const ForwardArgs& given, Parallel parallel) const override {
    const Timed all(hooks(), Count::ns_forward, Count::forward_calls);
    const Layer& l = given.layer;
    ForwardArgs f = given;
    f.last.z = nullptr;  // copied below
    const Packed<T> p = packed(l, f.first.r, 0);
    in_tiles(serial_if_few(parallel, l.B * l.N), l.B, kernels_.forward_scratch(f, 1),
             [&](int64_t tile, const Member& member) {
               const Timed timed(p.hooks, Count::ns_forward_tiles);
               kernels_.forward_tile(f, p, tile, member);
             });
    T* const z = (T*)given.last.z;
    const int64_t n = l.B * l.N;
    std::copy_n((const T*)f.z, n, z);
    std::copy_n((const T*)f.first.z, (l.D - 1) * n, z + n);
  }

  void backward(const BackwardArgs& given, Parallel parallel) const override {
    const Timed all(hooks(), Count::ns_backward, Count::backward_calls);
    const Layer& l = given.layer;
    const Packed<T> p = packed(l, given.first.r, given.want);
    const int64_t n_state = l.B * l.N, n_k = given.want ? n_coefficients * p.NP : 0;
    const Block block((4 * n_state + tiles(l.B) * n_k) * (int64_t)sizeof(T));
    T *carry = (T*)block.data, *k = carry + 4 * n_state;
    const void* first[] = {given.first.v, given.first.a, given.first.i, given.first.r};
    for (int c = 0; c < 4; c++) std::memcpy(carry + c * n_state, first[c], n_state * sizeof(T));
    std::fill_n(k, tiles(l.B) * n_k, T(0));
    BackwardArgs f = given;
    f.saved.carry = carry;
    f.gw = nullptr;  // made below
    const ScratchBytes scratch =
        kernels_.backward_scratch(f, p.product.span, p.w_bf16 != nullptr, 1);
    in_tiles(serial_if_few(parallel, n_state * l.N * std::max<int64_t>(l.S, 1) / 8), l.B, scratch,
             [&](int64_t tile, const Member& member) {
               const Timed timed(p.hooks, Count::ns_backward_tiles);
               kernels_.backward_tile(
                   f, p, tile, member,
                   {nullptr, nullptr, nullptr, n_k ? k + tile * n_k : nullptr, nullptr});
             });
    if (given.gw) weight_gradient(given);
    if (given.gbias)
      for (int64_t b = 0; b < l.B; b++)
        for (int64_t n = 0; n < l.N; n++) ((T*)given.gbias)[n] += ((const T*)given.gx)[b * l.N + n];
    for (int64_t tile = 0; n_k && tile < tiles(l.B); tile++)
      for (int64_t c = 0; c < n_coefficients; c++)
        for (int64_t n = 0; n < l.N && given.want >> c & 1; n++)
          ((T*)given.gcoefficients)[c * l.N + n] += k[tile * n_k + c * p.NP + n];
  }

 private:
  const Kernels<T>& kernels_;
  const PackedLayer<T> layer_;

  Packed<T> packed(const Layer& l, const void* first_r, unsigned want) const {
    Packed<T> p = layer_.packed;
    p.spec = general_spec<T>(l, first_r, want);
    p.hooks = hooks();
    return p;
  }

  template <class F> static void in_tiles(Parallel parallel, int64_t B, const ScratchBytes& bytes,
                                          const F& body) {
    if (parallel.threads > 1) return in_teams(parallel, {tiles(B), 1}, tiles(B), bytes, body);
    const Block scratch(bytes.shared + bytes.own);
    Barrier barrier;
    const Member alone{0, 1, &barrier, nullptr, scratch.data, (char*)scratch.data + bytes.shared,
                       {}};
    for (int64_t tile = 0; tile < tiles(B); tile++) body(tile, alone);
  }

  // gw[s,j,k] += sum over the batch of z'_j dL/dc_k, with z' of delays[s] steps before.
  void weight_gradient(const BackwardArgs& f) const {
    const Layer& l = f.layer;
    Linear linear{};
    linear.R = linear.g_rows = l.B;
    linear.I = linear.N = l.N;
    linear.g = f.gx;
    const Block scratch(kernels_.linear_scratch(linear));
    for (int64_t s = 0; s < l.S; s++) {
      linear.x = (const T*)f.first.z + l.delays[s] * l.B * l.N;
      kernels_.linear_gradient(linear, 0, l.B, (T*)f.gw + s * l.N * layer_.packed.NP, scratch.data);
    }
  }
};

}  // namespace

template <class T> std::unique_ptr<OneStep> pack_for_steps(const Layer& layer, Parallel parallel) {
  return std::make_unique<PackedStep<T>>(layer, parallel);
}
template std::unique_ptr<OneStep> pack_for_steps<float>(const Layer&, Parallel);
template std::unique_ptr<OneStep> pack_for_steps<double>(const Layer&, Parallel);

}  // namespace lsnn::cpu
