// Device memory for test_kernels.cpp, with copies of the host's buffers. Under the emulator each
// copy is a heap block of exactly the size of its buffer, so that AddressSanitizer detects accesses
// beyond it.
#pragma once
#include <cstring>
#include <map>
#include <vector>

#include "../../cuda/run.h"
#include "../problem.h"

namespace lsnn::test {

inline std::map<const void*, size_t> buffer_bytes;  // of all that is alive

void* allocate(size_t bytes) {
  void* p = std::malloc(bytes ? bytes : 1);
  buffer_bytes[p] = bytes;
  return p;
}
void release(void* p) {
  buffer_bytes.erase(p);
  std::free(p);
}

#if LSNN_NVCC
inline void on_card(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

// Two blocks of the same layout, on host and device, so that a pass needs one copy each way. They
// grow as needed.
class Slab {
 public:
  // The device's copy of a buffer, see send().
  void* add(const void* buffer, size_t bytes) {
    const size_t first = used_;
    used_ += padded(bytes);
    std::memcpy(host_ + first, buffer, bytes);
    return device_ + first;
  }
  // The fetched contents at a device address.
  const void* fetched(const void* there) const {
    return host_ + (static_cast<const char*>(there) - device_);
  }
  void send() { on_card(cudaMemcpy(device_, host_, used_, cudaMemcpyHostToDevice)); }
  // Waits for the kernels, and throws their errors.
  void fetch() { on_card(cudaMemcpy(host_, device_, used_, cudaMemcpyDeviceToHost)); }
  // Empty, with room for all buffers that are alive.
  void reset() {
    used_ = 0;
    size_t all = 0;
    for (const auto& [p, bytes] : buffer_bytes) all += padded(bytes);
    if (all <= size_) return;
    on_card(cudaFree(device_));
    on_card(cudaFreeHost(host_));
    size_ = 0;
    on_card(cudaMalloc(&device_, 2 * all));
    on_card(cudaMallocHost(&host_, 2 * all));
    size_ = 2 * all;
  }

 private:
  static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }
  char *host_ = nullptr, *device_ = nullptr;
  size_t used_ = 0, size_ = 0;
};
inline Slab slab;
#endif

// The copies of the buffers that arguments point to.
class DeviceMemory {
 public:
  DeviceMemory() {
#if LSNN_NVCC
    slab.reset();
#endif
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() {
#if !LSNN_NVCC
    for (const auto& [host, there] : copies_) std::free(there);
#endif
  }

  // Replaces pointers to buffers by pointers to their copies; null stays null.
  template <class... P> void translate(P*&... p) { (translate_one(p), ...); }
  void translate(State& s) { translate(s.v, s.a, s.i, s.r, s.z); }
  void translate(Saved& s) { translate(s.y, s.bits, s.z, s.carry, s.packed); }
  void translate(Layer& l) { translate(l.delay, l.w, l.coefficients); }
  void translate(Readout& r) { translate(r.w, r.first, r.bias); }
  void translate(ForwardArgs& f) {
    translate(f.layer);
    translate(f.first);
    translate(f.last);
    translate(f.saved);
    translate(f.x, f.z, f.trace_v, f.trace_a, f.trace_A);
    translate(f.readout);
    translate(f.readout_p, f.readout_last);
  }
  void translate(BackwardArgs& f) {
    translate(f.layer);
    translate(f.first);
    translate(f.saved);
    translate(f.glast);
    translate(f.gfirst);
    translate(f.gz, f.gv, f.ga, f.gA, f.gx, f.gw, f.gcoefficients);
    translate(f.readout);
    translate(f.gp, f.gp_last, f.gw_out, f.gp_first, f.gbias_out);
  }
  void translate(cuda::HostCoefficients& host) {
    translate(host.made);
    for (cuda::Row& row : host.rows) translate(row.tensor);
  }
  void translate(Linear& l) { translate(l.w, l.bias, l.y, l.g, l.gw, l.bits); }
  void translate(LeakyForward& f) { translate(f.x, f.first, f.p, f.last); }
  void translate(LeakyBackward& f) { translate(f.gp, f.gp_last, f.gx, f.gp_first); }

  // Called after all translations, before the kernels.
  void send() const {
#if LSNN_NVCC
    slab.send();
#endif
  }
  // Copies outputs back after the kernels.
  void copy_back() const {
#if LSNN_NVCC
    slab.fetch();
#endif
    for (const auto& [host, there] : copies_) {
#if LSNN_NVCC
      const void* from = slab.fetched(there);
#else
      const void* from = there;
#endif
      std::memcpy(const_cast<void*>(host), from, buffer_bytes.at(host));
    }
  }

 private:
  template <class P> void translate_one(P*& p) {
    if (!p) return;
    const auto [found, is_new] = copies_.try_emplace(p, nullptr);
    if (is_new) {
      const size_t bytes = buffer_bytes.at(p);
#if LSNN_NVCC
      found->second = slab.add(p, bytes);
#else
      found->second = std::malloc(bytes ? bytes : 1);
      std::memcpy(found->second, p, bytes);
#endif
    }
    p = static_cast<P*>(found->second);
  }

  std::map<const void*, void*> copies_;  // by the buffer
};

// The product of the design `step` in the order of the CPU path, with a thread for each sum.
template <class T> struct ProductJob {
  int64_t M, K, N;
  cuda::Factor a, b;
  T* out;
};
template <class T> __global__ void product_kernel(ProductJob<T> job) {
  const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= job.M * job.N) return;
  const T *a = (const T*)job.a.data + i / job.N * job.a.row,
          *b = (const T*)job.b.data + i % job.N * job.b.column;
  T sum = job.out[i];
  for (int64_t k = 0; k < job.K; k++)
    if (const T x = a[k * job.a.column]; x != T(0)) sum = sum + x * b[k * job.b.row];
  job.out[i] = sum;
}
template <class T> void add_product(void*, int64_t M, int64_t K, int64_t N, const cuda::Factor& a,
                                    const cuda::Factor& b, void* out) {
  if (M * N == 0) return;
  cuda::launch("product", {(M * N + 127) / 128, 128}, &product_kernel<T>,
               ProductJob<T>{M, K, N, a, b, (T*)out});
}

}  // namespace lsnn::test
