// Launches and times kernels, and writes the CSV, for primitives.cu.
#pragma once
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <nv/target>
#include <string>
#include <type_traits>
#include <vector>

namespace primitives {

inline constexpr int n_rounds = 2000;

struct Span {
  long long cycles, ns;
  unsigned lost;
};

inline FILE* csv = stdout;
inline bool failed = false;

inline bool good(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return true;
  std::fprintf(stderr, "primitives: FAILED %s: %s\n", what.c_str(), cudaGetErrorString(error));
  (void)cudaGetLastError();
  failed = true;
  return false;
}
// A parameter may have commas, so that it is quoted.
inline void write(const char* primitive, const std::string& parameter, double value,
                  const char* unit) {
  std::fprintf(csv, "%s,\"%s\",%.6g,%s\n", primitive, parameter.c_str(), value, unit);
  std::fflush(csv);
}

inline __device__ long long nanoseconds() {
  long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}
// A no-op on GPUs without clusters, where the host launches no kernel that calls it.
inline __device__ void cluster_sync() {
  NV_IF_TARGET(NV_PROVIDES_SM_90,
               (asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait."
                             "acquire.aligned;" :: : "memory");))
}

template <class... P> struct Launch {
  cudaLaunchAttribute attribute[1];
  cudaLaunchConfig_t config{};
  Launch(int blocks, int threads, size_t shared, int cluster) {
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = shared;
    config.attrs = attribute;
    config.numAttrs = cluster > 0;
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = cluster;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
  }
  Launch(const Launch&) = delete;
  cudaError_t operator()(void (*kernel)(P...), std::type_identity_t<P>... arguments) {
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
    return error == cudaSuccess ? cudaDeviceSynchronize() : error;
  }
};

// The kernel once to warm up, then the median of five runs, per round.
template <class F> void time_rounds(const char* primitive, const std::string& parameter, Span* span,
                                    F run) {
  std::vector<double> cycles, ns;
  for (int i = 0; i < 6; i++) {
    *span = {};
    if (!good(run(), primitive + (" " + parameter))) return;
    if (span->lost) {
      std::fprintf(stderr, "primitives: FAILED %s %s: bytes never arrived\n", primitive,
                   parameter.c_str());
      failed = true;
      return;
    }
    if (i) {
      cycles.push_back(double(span->cycles) / n_rounds);
      ns.push_back(double(span->ns) / n_rounds);
    }
  }
  std::sort(cycles.begin(), cycles.end());
  std::sort(ns.begin(), ns.end());
  write(primitive, parameter, cycles[2], "cycles");
  write(primitive, parameter, ns[2], "ns");
}

}  // namespace primitives
