// The past spikes as (1) sums them: filtered by the kernel of axonal delays, and masked.
#pragma once
#include "neurons.h"
#include "tile.h"

namespace lsnn::cpu {
namespace {

template <class T> struct SourceScratch {
  uint32_t* mask;  // [items,W] a bit for each neuron whose spikes act, if there is a mask
  uint32_t* bits;  // [NP / 32] a bit for each f of an item that is not 0, or its masked spikes
  T* f;  // [NP] f of an item, if there is a kernel
  Spikes<T>* past;  // [n_taps]

  SourceScratch(Arena& own, const Layer& l) {
    mask = own.take<uint32_t>(l.mask ? tile_items(l.B) * words(l.N) : 0);
    bits = own.take<uint32_t>(l.mask || l.n_taps ? padded(l.N) / 32 : 0);
    f = own.take<T>(l.n_taps ? padded(l.N) : 0);
    past = own.take<Spikes<T>>(l.n_taps);
  }
};

template <class T> struct Sources : Tile {
  static constexpr int L = Vec<T>::lanes;
  const Layer& l;
  const T* kernel;  // of Packed
  const SourceScratch<T>& s;
  const T* z0;  // [D,B,N] spikes before the first step, newest first
  const int64_t W;

  LSNN_METHOD Sources(const Layer& layer, const T* kernel, const SourceScratch<T>& scratch,
                      int64_t tile, const Member& member, const void* z0)
      : Tile(layer, tile, member),
        l(layer),
        kernel(kernel),
        s(scratch),
        z0((const T*)z0),
        W(words(N)) {
    if (!l.mask) return;
    memset(s.mask, 0, items * W * sizeof(uint32_t));
    for (int64_t b = 0; b < items; b++)
      for (int64_t n = 0; n < N; n++)
        if (l.mask[(b0 + b) * N + n]) s.mask[b * W + n / 32] |= 1u << n % 32;
  }

  // past < 0
  LSNN_METHOD const T* first_z(int64_t past, int64_t b) const {
    return z0 + ((-1 - past) * B + b0 + b) * N;
  }
  LSNN_METHOD const uint32_t* mask_of(int64_t b) const { return s.mask + b * W; }
  LSNN_METHOD bool acts(int64_t b, int64_t j) const {
    return !l.mask || (mask_of(b)[j / 32] >> j % 32 & 1);
  }
  // The bits of neurons that act, from neuron `first` on; valid until the next call.
  LSNN_METHOD const uint32_t* masked(int64_t b, const uint32_t* bits, int64_t n_words,
                                     int64_t first) const {
    if (!l.mask) return bits;
    for (int64_t w = 0; w < n_words; w++) s.bits[w] = bits[w] & mask_of(b)[first / 32 + w];
    return s.bits;
  }

  // s.f = f of (1) of item b at step t for all neurons, summed in ascending delay, and s.bits those
  // that are not 0 and act. past: as of Steps::collect.
  template <class Past> LSNN_METHOD void filter(int64_t t, int64_t b, const Past& past) const {
    using V = Vec<T>;
    memset(s.bits, 0, NP / 32 * sizeof(uint32_t));
    for (int64_t part = 0; part < past.members; part++) {
      const bool whole = past.members == 1;
      const int64_t from = whole ? 0 : 32 * first_word(part),
                    to = whole || 32 * first_word(part + 1) > N ? N : 32 * first_word(part + 1);
      for (int64_t tap = 0; tap < l.n_taps; tap++) {
        const int64_t t_past = t - 1 - l.taps[tap];
        s.past[tap] = t_past < 0 ? Spikes<T>{nullptr, first_z(t_past, b), N}
                                 : Spikes<T>{past.bits(t_past, b, part),
                                             l.smooth ? past.real(t_past, b) : nullptr, N};
      }
      for (int64_t n = from; n < to; n += L) {
        const T* k = kernel + n * l.n_taps;
        V f(0);
        for (int64_t tap = 0; tap < l.n_taps; tap++)
          f = f + load_spikes(s.past[tap], n) * load(k + tap * L);
        store(s.f + n, f);
        put_bits<T>(s.bits, n, to_bits(f != V(0)));
      }
    }
    if (l.mask)
      for (int64_t w = 0; w < W; w++) s.bits[w] &= mask_of(b)[w];
  }
};

}  // namespace
}  // namespace lsnn::cpu
