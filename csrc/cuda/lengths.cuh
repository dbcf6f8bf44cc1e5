// Items that end before the sequence: their lengths on the device, and zeros after their last
// steps, which the kernels of the designs do not write.
#pragma once
#include "layout.cuh"

namespace lsnn::cuda {

// Lengths are passed as kernel arguments, so that the host waits for no copy.
inline constexpr int lengths_at_once = 256;
template <class T> struct LengthsJob {
  Packed<T> p;
  int64_t first;
  int n, of[lengths_at_once];
};
template <class T> __global__ void lengths_kernel(LengthsJob<T> job) {
  const int i = (int)threadIdx.x;
  if (i < job.n) job.p.lengths[job.first + i] = job.of[i];
}
template <class T> void pack_lengths(const Layer& l, const Packed<T>& p, void* stream) {
  if (!l.lengths) return;
  LengthsJob<T> job{p, 0, 0, {}};
  for (; job.first < l.B; job.first += lengths_at_once) {
    job.n = int(l.B - job.first < lengths_at_once ? l.B - job.first : lengths_at_once);
    for (int i = 0; i < job.n; i++) job.of[i] = (int)l.lengths[job.first + i];
    launch("packing the lengths", {1, lengths_at_once, 0, 1, stream}, &lengths_kernel<T>, job);
  }
}

// Arrays [n,B,bytes] of the caller, or null. Row r belongs to step r / variables * every.
struct Rows {
  void* to;
  int64_t n, bytes;
  int variables = 1, every = 1;
};
inline constexpr int most_arrays = 8;
template <class T> struct ClearJob {
  Layer layer;
  Packed<T> p;
  Rows arrays[most_arrays];
};
template <class X> LSNN_DEVICE void clear_row(void* to, int64_t bytes, int lane) {
  for (int64_t i = lane; i < bytes / (int64_t)sizeof(X); i += 32) static_cast<X*>(to)[i] = X(0);
}
// A warp for each row of an item. Rows have an even number of bytes.
template <class T> __global__ void clear_after_end_kernel(ClearJob<T> job) {
  const Layer& l = job.layer;
  const int lane = threadIdx.x % 32;
  const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int64_t warps = (int64_t)gridDim.x * blockDim.x / 32;
#pragma unroll
  for (int array = 0; array < most_arrays; array++) {
    const Rows& rows = job.arrays[array];
    if (!rows.to) continue;
    const bool whole = rows.bytes % 4 == 0 && (uintptr_t)rows.to % 4 == 0;
    for (int64_t i = first; i < rows.n * l.B; i += warps) {
      const int64_t t = i / l.B / rows.variables * rows.every;
      if (t < job.p.length(l, i % l.B)) continue;
      void* to = static_cast<char*>(rows.to) + i * rows.bytes;
      if (whole) clear_row<uint32_t>(to, rows.bytes, lane);
      else clear_row<uint16_t>(to, rows.bytes, lane);
    }
  }
}
template <class T> void clear_after_end(const ClearJob<T>& job, void* stream) {
  const Layer& l = job.layer;
  if (l.B == 0 || l.length(l.B - 1) == l.T) return;
  const int64_t blocks = (l.T * l.B + 7) / 8;
  const Launch shape{blocks < 4096 ? blocks : 4096, 256, 0, 1, stream};
  launch("zeros after the last steps", shape, &clear_after_end_kernel<T>, job);
}

template <class T> void clear_after_end(const ForwardArgs& f, const Packed<T>& p, void* stream) {
  const Layer& l = f.layer;
  const int64_t row = l.N * (int64_t)sizeof(T);
  ClearJob<T> job{
      l, p, {{f.z, l.T, row}, {f.trace_v, l.T, row}, {f.trace_a, l.T, row}, {f.trace_A, l.T, row}}};
  job.arrays[4] = {f.saved.bits, l.T, words(l.N) * 4};
  if (f.save) {
    job.arrays[5] = {f.saved.y, l.T, f.saved.y_is_bf16 ? 2 * l.N : row};
    job.arrays[6] = {f.saved.z, l.T, row};
    job.arrays[7] = {f.saved.carry, 4 * segments(l.T), row, 4, (int)segment};
  }
  clear_after_end(job, stream);
}
template <class T> void clear_after_end(const BackwardArgs& f, const Packed<T>& p, void* stream) {
  const Layer& l = f.layer;
  clear_after_end(ClearJob<T>{l, p, {{f.gx, l.T, l.N * (int64_t)sizeof(T)}}}, stream);
}

}  // namespace lsnn::cuda
