// Scratch memory of the backward pass of a tile.
#pragma once
#include "product_active.h"
#include "readout.h"
#include "replay.h"

namespace lsnn::cpu {
namespace {

// D: steps that dL/dc is kept for the product, Layer::kept(). N neurons take NP = padded(N) numbers
// of a row, and ND = gradient_stride(NP) of a row of dL/dc or dL/dz; items: those of a full tile.
template <class T> struct BackwardScratch {
  ReplayScratch<T> replay;
  ReadoutScratch<T> readout;
  T* gc;  // [chunk + D,currents,items,ND] dL/dc, step t in slot t % (chunk + D)
  T* d_states;  // [states,items,NP] dL/d of the carried states
  T* dz;  // [items,ND] dL/d of the spikes of the current step
  T* gx_out;  // [items,currents,N] a row to be streamed out
  // [gradients,NP] gradients of the coefficients over the chunk: short sums round less
  T* sums;
  // [D + span,N,max_items] dL/dc of the last steps for the sparse product, step t in slot t % (D +
  // 1), followed by copies of the first slots, so that the slots of a group of delays are
  // contiguous
  T* gc_transposed;
  const T** slices;  // [S] first slots of the groups
  // [D + 1,items,gradient_stride] dL/dc of the last steps for products in bfloat16
  uint16_t* gc_bf16;
  uint32_t* nonzero;  // [words(I) + 1] nonzero inputs of one item
  ActiveRows active;
  // W dL/dc of a step, [items,ND]; and with a kernel of the last D of Layer, step t in slot t % D,
  // [NP/lanes,D,items,lanes]: the taps of a neuron read neighbouring numbers
  T *product, *received;
  RowGradient<T, false> gradient;  // the spikes of the chunk, into the gradient of w
  RowGradient<T, true> gradient_filtered;  // the same with a kernel
  RowGradient<T, true> gradient_in;  // the inputs of the chunk, into that of their weights

  // span: of SparseGroups, 0 without
  BackwardScratch(Arena& shared, Arena& own, const BackwardArgs& f, int64_t span, bool bf16,
                  int64_t members)
      : replay(shared, own, f, members),
        readout(own, f.layer, f.readout, true),
        gradient(own, f.layer.S * f.layer.N,
                 f.layer.n_taps ? 0 : chunk * tile_items(f.layer.B) * f.layer.S * f.layer.N),
        gradient_filtered(own, f.layer.N,
                          f.layer.n_taps ? chunk * tile_items(f.layer.B) * f.layer.N : 0),
        gradient_in(own, f.projection.I + 1,
                    f.projection.I ? chunk * tile_items(f.layer.B) * (f.projection.I + 1) : 0) {
    const Layer& l = f.layer;
    const int64_t n = tile_items(l.B), NP = padded(l.N);
    gc = shared.take<T>((chunk + l.kept()) * l.sizes.currents * n * gradient_stride<T>(NP));
    d_states = own.take<T>(l.sizes.states * n * NP);
    dz = own.take<T>(n * gradient_stride<T>(NP));
    gx_out = own.take<T>(n * l.sizes.currents * l.N + pad);
    sums = own.take<T>(l.sizes.gradients * NP);
    // One slot more than delays: the fastest member may write dL/dc of a step while the slowest
    // still reads that of the step before.
    gc_transposed = shared.take<T>(span ? (l.kept() + span) * l.N * max_items : 0);
    slices = own.take<const T*>(l.S);
    gc_bf16 = shared.take<uint16_t>(bf16 ? (l.kept() + 1) * n * gradient_stride<uint16_t>(NP) : 0);
    product = own.take<T>(l.mask || l.n_taps ? n * gradient_stride<T>(NP) : 0);
    received = own.take<T>(l.n_taps ? l.D * n * NP : 0);
    nonzero = own.take<uint32_t>(words(f.projection.I) + 1);
    active.entries = own.take<uint32_t>((row_items + 1) * l.N);
  }
};

}  // namespace
}  // namespace lsnn::cpu
