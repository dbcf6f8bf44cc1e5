// The launches of both directions for one type of numbers T; run.cu chooses between them.
#pragma once
#include <type_traits>

#include "backward.cuh"
#include "forward.cuh"
#include "lengths.cuh"
#include "lsnn.h"
#include "run.h"
#include "spike_product.h"
#include "step.cuh"
#include "weight_gradient.cuh"

namespace lsnn::cuda {

// Kernels that may apply to a call, see wrong_kernel. The paper's network has its own kernels for
// float and common shapes.
struct Candidates {
  bool paper, general;

  template <class T> static Candidates of(bool may_be_paper, const Plan& plan) {
    if (sizeof(T) != 4 || !may_be_paper) return {false, true};
    return {true, (plan.host.zero & no_terms) != no_terms};
  }
  bool both() const { return paper && general; }
  bool some() const { return paper || general; }
  // Calls f(Spec) for each of them.
  template <class T, class F> void each(const F& f) const {
    if constexpr (sizeof(T) == 4)
      if (paper) f(std::type_identity<PaperSpec>());
    if (general) f(std::type_identity<GeneralSpec>());
  }
};

// Kernels that are launched for a call: those of the paper's network, and those of the design.
struct Chosen {
  bool lsnn;
  Candidates kernels;
  bool both;  // see wrong_kernel

  template <class T, class Args> static Chosen of(const Args& f, const Pass& pass,
                                                  const Plan& plan) {
    const bool lsnn = by_lsnn(f, plan);
    const Candidates all = Candidates::of<T>(lsnn || (pass.quads == 1 && is_aligned(f)), plan);
    return {lsnn, {all.paper && !lsnn, all.general}, all.both()};
  }
};

// ----------------------------------------------------------------------------------------- forward
template <class T> struct ForwardWorkspace {
  Packed<T> packed;
  Quad<T>* state;  // [5,threads] of the design `step`
  T* c;            // [B,N]
  T* z;            // [T,B,N] of the design `step`, where the caller wants none

  ForwardWorkspace(Arena& m, const ForwardArgs& f, const Pass& pass)
      : packed(m, f.layer, f.saved.packed) {
    const Layer& l = f.layer;
    const bool step = pass.design == Design::step;
    state = step ? m.take<Quad<T>>(5 * Point::count(l)) : nullptr;
    c = step ? m.take<T>(l.B * l.N) : nullptr;
    z = step && !f.z ? m.take<T>(l.T * l.B * l.N) : nullptr;
  }
};

template <class T> void forward(ForwardArgs f, const Plan& plan, void* workspace,
                                const Product& product, void* stream) {
  const Layer& l = f.layer;
  const Pass& pass = plan.forward;
  Arena arena(workspace);
  const ForwardWorkspace<T> own(arena, f, pass);
  if (own.z) f.z = own.z;
  if (l.B == 0 && !plan.host.made) return;
  pack<T>(l, f.first.r, plan.host, own.packed, stream);
  if (l.B == 0) return;
  pack_lengths(l, own.packed, stream);
  clear_after_end(f, own.packed, stream);
  const Chosen chosen = Chosen::of<T>(f, pass, plan);
  const Candidates& kernels = chosen.kernels;
  const ForwardJob<T> job{f, own.packed, chosen.both};
  if constexpr (sizeof(T) == 4)
    if (chosen.lsnn) launch_lsnn(job, *plan.lsnn, stream);
  if (!kernels.some()) return;
  const Launch shape{pass.blocks, pass.shape.groups * pass.shape.threads, pass.shared, 1, stream};

  if (pass.design == Design::step) {
    ForwardStep<T> step{job, {own.state, Point::count(l)}, own.c, -1};
    const Launch points{pass.blocks, pass.shape.threads, 0, 1, stream};
    auto run = [&] {
      kernels.each<T>([&](auto m) {
        launch("forward, step", points, &forward_step_kernel<T, typename decltype(m)::type>, step);
      });
    };
    for (run(); ++step.t < l.longest(); run())
      for (int64_t d = 0; d < l.S; d++) {
        const int64_t past = step.t - 1 - l.delays[d];
        if (past < 0 && !f.first.z) continue;
        const T* z = past < 0 ? (const T*)f.first.z + (-1 - past) * l.B * l.N
                              : (const T*)f.z + past * l.B * l.N;
        product.add(product.context, l.B, l.N, l.N, {z, l.N, 1},
                    {own.packed.w + d * l.N * padded(l.N), padded(l.N), 1}, own.c);
      }
    return;
  }
  const ForwardSequence<T> sequence{job, pass.shape};
  if (pass.quads > 1)
    return launch("forward, gather", shape, &forward_kernel<T, GeneralSpec, 4, false>, sequence);
  kernels.each<T>([&](auto m) {
    using Spec = typename decltype(m)::type;
    if (pass.design == Design::block)
      launch("forward, block", shape, &forward_kernel<T, Spec, 1, true>, sequence);
    else launch("forward, gather", shape, &forward_kernel<T, Spec, 1, false>, sequence);
  });
}

// ---------------------------------------------------------------------------------------- backward
template <class T> struct BackwardWorkspace {
  Packed<T> packed;
  T* replayed;       // see replay.cuh
  float* lsnn;       // see lsnn.h
  T* sums;           // [B,n_coefficients,NP] gradients of the coefficients
  T* partial_sums;          // [slices,matrices,N,N] of the weight gradient
  Quad<T>* adjoint;  // [4,threads] of the design `step`
  T* dz;             // [B,N]

  BackwardWorkspace(Arena& m, const BackwardArgs& f, const Plan& plan)
      : packed(m, f.layer, f.saved.packed) {
    const Layer& l = f.layer;
    const Pass& pass = plan.backward;
    const bool step = pass.design == Design::step;
    const int64_t threads = Point::count(l), slice = Slice(l.N, pass.shape.ranks, 0).width;
    const Chosen chosen = Chosen::of<T>(f, pass, plan);
    replayed = chosen.kernels.some()
                   ? m.take<T>(replayed_rows *
                               (step ? 4 * threads : pass.blocks * pass.shape.groups * slice))
                   : nullptr;
    lsnn = chosen.lsnn ? m.take<float>(lsnn_workspace(*plan.lsnn_backward)) : nullptr;
    sums = f.want ? m.take<T>(l.B * n_coefficients * padded(l.N)) : nullptr;
    partial_sums = f.gw ? m.take<T>(plan.slices(f.first.z) * matrices(l) * l.N * l.N) : nullptr;
    adjoint = step ? m.take<Quad<T>>(4 * threads) : nullptr;
    dz = step ? m.take<T>(l.B * l.N) : nullptr;
  }
};

// The sums of the slices: by tensor cores, and by events for the other steps, whose spikes come
// before the sequence and may be any number; or for all steps by events.
template <class T> void weight_gradient(const BackwardArgs& f, const Plan& plan,
                                        const Packed<T>& packed, T* partial_sums, void* stream) {
  const Layer& l = f.layer;
  int64_t by_events = l.T * l.B;
  if constexpr (std::is_same_v<T, float>)
    if (plan.tensor_cores) {
      // Item i of the product: spikes of item i of [T,B], and dL/dc of d + 1 steps later.
      const int64_t later = (l.delays[0] + 1) * l.B * l.N, items = spike_products(l, l.delays[0]),
                    slice = f.first.z ? l.N * l.N : 0;
      launch_spike_product({f.saved.bits, (const float*)f.gx + later, items, l.N, l.N,
                            *plan.tensor_cores, partial_sums + slice},
                           stream);
      by_events = f.first.z ? by_events - items : 0;
    }
  if (by_events == 0) return;
  const WeightTiles& tiles = plan.tiles;
  Arena counted;
  WeightShared<T>(counted, tiles);
  const WeightJob<T> job{{f, packed, nullptr, false}, tiles, by_events, partial_sums};
  const int threads = (tiles.columns + 31) / 32 * 32;
  launch("weight gradient", {tiles.count() * tiles.slices, threads, counted.used, 1, stream},
         &weight_gradient_kernel<T>, job);
}

template <class T>
void backward_steps(const BackwardJob<T>& job, const Candidates& kernels, const Pass& pass,
                    const BackwardWorkspace<T>& own, const Product& product, void* stream) {
  const Layer& l = job.f.layer;
  const int64_t threads = Point::count(l);
  const Launch points{pass.blocks, pass.shape.threads, 0, 1, stream};
  BackwardStep<T> step{job, {own.adjoint, threads}, {own.replayed, 4 * threads}, own.dz, 0};
  ReplaySteps<T> steps{job, step.replayed, threads, 0, 0, 0};
  auto replay = [&](int64_t first, int64_t last, int index) {
    steps.first = (int)first;
    steps.last = (int)last;
    steps.index = index;
    kernels.each<T>([&](auto m) {
      launch("backward, replay", points, &replay_kernel<T, typename decltype(m)::type>, steps);
    });
  };
  auto run = [&](int64_t t) {
    step.t = (int)t;
    kernels.each<T>([&](auto m) {
      launch("backward, step", points, &backward_step_kernel<T, typename decltype(m)::type>, step);
    });
  };
  auto multiply = [&](int64_t t) {
    if (l.model.detach & detach_rec) return;
    for (int64_t d = 0; d < l.S; d++) {
      const int64_t reached = t + 1 + l.delays[d];
      if (reached >= 0 && reached < l.longest())
        product.add(product.context, l.B, l.N, l.N,
                    {(const T*)job.f.gx + reached * l.B * l.N, l.N, 1},
                    {own.packed.w + d * l.N * padded(l.N), 1, padded(l.N)}, own.dz);
    }
  };
  run(l.T);
  const int64_t longest = l.longest();
  for (int S0 = last_multiple(longest, segment); S0 >= 0; S0 -= (int)segment) {
    const int64_t S1 = S0 + segment < longest ? S0 + segment : longest;
    replay(S0, S1, -1);
    for (int64_t t0 = S0 + last_multiple(S1 - S0, chunk); t0 >= S0; t0 -= chunk) {
      const int64_t t1 = t0 + chunk < S1 ? t0 + chunk : S1;
      replay(t0, t1, int((t0 - S0) / chunk));
      for (int64_t t = t1 - 1; t >= t0; t--) {
        multiply(t);
        run(t);
      }
    }
  }
  if (!job.f.gfirst.z) return;
  for (int64_t steps_back = 0; steps_back < l.D; steps_back++) {
    multiply(-1 - steps_back);
    run(-1 - steps_back);
  }
}

template <class T>
void backward(const BackwardArgs& f, const Plan& plan, void* workspace, const Product& product,
              void* stream) {
  const Layer& l = f.layer;
  const Pass& pass = plan.backward;
  Arena arena(workspace);
  const BackwardWorkspace<T> own(arena, f, plan);
  if (l.B > 0) {
    if (!f.saved.packed) pack<T>(l, f.first.r, plan.host, own.packed, stream);
    pack_lengths(l, own.packed, stream);
    clear_after_end(f, own.packed, stream);
    const Chosen chosen = Chosen::of<T>(f, pass, plan);
    const Candidates& kernels = chosen.kernels;
    const BackwardJob<T> job{f, own.packed, own.sums, chosen.both};
    if constexpr (sizeof(T) == 4)
      if (chosen.lsnn) launch_lsnn(job, *plan.lsnn_backward, own.lsnn, stream);
    const Launch shape{pass.blocks, pass.shape.groups * pass.shape.threads, pass.shared,
                       pass.shape.ranks, stream};
    const BackwardSequence<T> sequence{job, pass.shape, own.replayed};
    if (!kernels.some()) {
      // the paper's kernel does all steps
    } else if (pass.design == Design::step)
      backward_steps(job, kernels, pass, own, product, stream);
    else if (pass.quads > 1)
      launch("backward, gather", shape,
             &backward_kernel<T, GeneralSpec, BlockGradients<T>, 4, false>, sequence);
    else
      kernels.each<T>([&](auto m) {
        using Spec = typename decltype(m)::type;
        if (pass.design == Design::block)
          launch("backward, block", shape, &backward_kernel<T, Spec, BlockGradients<T>, 1, true>,
                 sequence);
        if (pass.design == Design::gather)
          launch("backward, gather", shape, &backward_kernel<T, Spec, BlockGradients<T>, 1, false>,
                 sequence);
        if constexpr (sizeof(T) == 4)
          if (pass.design == Design::cluster)
            launch("backward, cluster", shape,
                   &backward_kernel<T, Spec, ClusterGradients<T>, 1, true>, sequence);
      });
  }
  const bool some = l.T > 0 && l.B > 0;
  const int64_t n_w = matrices(l) * l.N * l.N;
  if (f.gw && some) {
    weight_gradient(f, plan, own.packed, own.partial_sums, stream);
    const SumJob<T> sum{own.partial_sums,    (T*)f.gw, n_w, n_w, plan.slices(f.first.z), 0, 0, 0,
                        l.autapses ? 0 : l.N};
    sum_partial<T>("weight gradient, sum of slices", sum, stream);
  } else if (f.gw) {
    clear(f.gw, n_w * (int64_t)sizeof(T), stream);
  }
  const int64_t NP = padded(l.N);
  if (f.want && l.B > 0)
    sum_partial<T>("gradients of the coefficients",
                   {own.sums, (T*)f.gcoefficients, n_coefficients * l.N, n_coefficients * NP, l.B,
                    f.want, l.N, NP},
                   stream);
  else if (f.want) clear(f.gcoefficients, n_coefficients * l.N * (int64_t)sizeof(T), stream);
}

// Bytes of the workspaces.
template <class T> int64_t workspace_of(const ForwardArgs& f, const Plan& plan) {
  Arena counted;
  ForwardWorkspace<T>(counted, f, plan.forward);
  return counted.used;
}
template <class T> int64_t workspace_of(const BackwardArgs& f, const Plan& plan) {
  Arena counted;
  BackwardWorkspace<T>(counted, f, plan);
  return counted.used;
}

// The functions of a type, defined in a file for each.
struct Entry {
  int64_t (*forward_workspace)(const ForwardArgs&, const Plan&);
  int64_t (*backward_workspace)(const BackwardArgs&, const Plan&);
  void (*forward)(ForwardArgs, const Plan&, void*, const Product&, void*);
  void (*backward)(const BackwardArgs&, const Plan&, void*, const Product&, void*);
};
template <class T> inline constexpr Entry entry_of{&workspace_of<T>, &workspace_of<T>, &forward<T>,
                                                   &backward<T>};
extern const Entry entry_f64, entry_f32;

// In alif_f32.cu. The number of clusters of `ranks` blocks that fit on the device at once, for a
// kernel with all the shared memory of a block: one block per SM, as with all kernels of the
// design.
int find_clusters(int ranks, const Device&);
int find_compiled_capability();

}  // namespace lsnn::cuda
