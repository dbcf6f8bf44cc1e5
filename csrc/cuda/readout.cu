#include "readout.cuh"
#include "run.h"

namespace lsnn::cuda {
namespace {

Launch columns(int64_t n, void* stream) {
  return {(n + leaky_threads - 1) / leaky_threads, leaky_threads, 0, 1, stream};
}

// Two for each SM, to hide latency; at most one for each item.
int64_t blocks_of(const Layer& l, const Device& device) {
  return l.B < 2 * device.sms ? l.B : 2 * device.sms;
}
template <class T> Launch blocks(const Layer& l, int64_t O, const Device& device, bool backward,
                                 void* stream) {
  Arena counted;
  ReadoutShared<T>(counted, l.N, O, backward);
  return {blocks_of(l, device), readout_threads, counted.used, 1, stream};
}

template <class T> void forward_of(const ForwardArgs& f, const Device& device, void* stream) {
  const bool numbers = f.layer.smooth || !f.saved.bits;
  const ReadoutForward<T> job{
      {f.layer, f.readout, {numbers ? nullptr : f.saved.bits, (const T*)f.z}},
      (T*)f.readout_p,
      (T*)f.readout_last};
  launch("readout, forward", blocks<T>(f.layer, f.readout.O, device, false, stream),
         &readout_forward_kernel<T>, job);
}

// In the workspace.
template <class T> struct OfBackward {
  T* gz;  // [T,B,N]
  T* partial_sums;  // [blocks,N O + O]

  OfBackward(Arena& m, const BackwardArgs& f, const Device& device) {
    const Layer& l = f.layer;
    const bool sums = f.gw_out || f.gbias_out;
    gz = m.take<T>(l.T * l.B * l.N);
    partial_sums = sums ? m.take<T>(blocks_of(l, device) * (l.N + 1) * f.readout.O) : nullptr;
  }
};
template <class T> void backward_of(BackwardArgs& f, const Device& device, void* workspace,
                                    void* stream) {
  const Layer& l = f.layer;
  Arena arena(workspace);
  const OfBackward<T> own(arena, f, device);
  const ReadoutBackward<T> job{
      {l, f.readout, {l.smooth ? nullptr : f.saved.bits, (const T*)f.saved.z}},
      f,
      own.gz,
      own.partial_sums};
  if (l.B)
    launch("readout, backward", blocks<T>(l, f.readout.O, device, true, stream),
           &readout_backward_kernel<T>, job);
  f.gz = own.gz;
  f.gz_stride_t = l.B * l.N;
  f.gz_stride_b = l.N;
  f.gz_stride_n = 1;
  if (!own.partial_sums) return;
  const int64_t n = (l.N + 1) * f.readout.O;
  launch("readout, sums",
         {(n + readout_threads - 1) / readout_threads, readout_threads, 0, 1, stream},
         &readout_sums_kernel<T>,
         {own.partial_sums, blocks_of(l, device), l.N, f.readout.O, (T*)f.gw_out, (T*)f.gbias_out});
}

}  // namespace

void readout_forward(const ForwardArgs& f, bool wide, const Device& device, void* stream) {
  if (!f.readout.O || !f.layer.B) return;
  if (wide) forward_of<double>(f, device, stream);
  else forward_of<float>(f, device, stream);
}
int64_t readout_workspace(const BackwardArgs& f, bool wide, const Device& device) {
  if (!f.readout.O) return 0;
  Arena counted;
  if (wide) OfBackward<double>(counted, f, device);
  else OfBackward<float>(counted, f, device);
  return counted.used;
}
void readout_backward(BackwardArgs& f, bool wide, const Device& device, void* workspace,
                      void* stream) {
  if (!f.readout.O) return;
  if (wide) backward_of<double>(f, device, workspace, stream);
  else backward_of<float>(f, device, workspace, stream);
}

void leaky_forward(const LeakyForward& f, bool wide, void* stream) {
  if (f.n == 0) return;
  const auto kernel = wide ? &leaky_forward_kernel<double> : &leaky_forward_kernel<float>;
  launch("leaky readout, forward", columns(f.n, stream), kernel, f);
}
void leaky_backward(const LeakyBackward& f, bool wide, void* stream) {
  if (f.n == 0) return;
  const auto kernel = wide ? &leaky_backward_kernel<double> : &leaky_backward_kernel<float>;
  launch("leaky readout, backward", columns(f.n, stream), kernel, f);
}

}  // namespace lsnn::cuda
