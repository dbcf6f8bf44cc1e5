// One number in place of the vectors of ops.h, for cuda_threads.h.
#pragma once

#ifdef __CUDACC__
#define LSNN_FUSE_INLINE static __device__ __forceinline__
#define LSNN_FUSE_METHOD __host__ __device__ __forceinline__
#else
#include <math.h>
#define LSNN_FUSE_INLINE static inline __attribute__((always_inline))
#define LSNN_FUSE_METHOD inline __attribute__((always_inline))
#endif

namespace lsnn::neuron {
namespace {

template <class T> using Vector = T;
template <class T> using Mask = bool;
template <class T> LSNN_FUSE_INLINE T broadcast(T x) { return x; }

// Functions of the library of the compiler: on a GPU within 2 units in the last place, pow in
// float32 within 4.
#define LSNN_FUSE_LIBRARY(name, function, parameters, arguments)            \
  template <class T> LSNN_FUSE_INLINE T name parameters {                   \
    if constexpr (sizeof(T) == sizeof(float)) return function##f arguments; \
    else return function arguments;                                         \
  }
LSNN_FUSE_LIBRARY(exp_of, exp, (T a), (a))
LSNN_FUSE_LIBRARY(log_of, log, (T a), (a))
LSNN_FUSE_LIBRARY(tanh_of, tanh, (T a), (a))
LSNN_FUSE_LIBRARY(sin_of, sin, (T a), (a))
LSNN_FUSE_LIBRARY(cos_of, cos, (T a), (a))
LSNN_FUSE_LIBRARY(atan_of, atan, (T a), (a))
LSNN_FUSE_LIBRARY(erf_of, erf, (T a), (a))
LSNN_FUSE_LIBRARY(sqrt_of, sqrt, (T a), (a))
LSNN_FUSE_LIBRARY(abs_of, fabs, (T a), (a))
LSNN_FUSE_LIBRARY(pow_of, pow, (T a, T b), (a, b))
LSNN_FUSE_LIBRARY(fmod_of, fmod, (T a, T b), (a, b))
LSNN_FUSE_LIBRARY(fma_of, fma, (T a, T b, T c), (a, b, c))
#undef LSNN_FUSE_LIBRARY
template <class T> LSNN_FUSE_INLINE T sigmoid_of(T a) {
  const T e = exp_of(-abs_of(a));
  return (a < T(0) ? e : T(1)) / (e + T(1));
}
template <class T> LSNN_FUSE_INLINE T float32_of(T a) { return T(float(a)); }

}  // namespace
}  // namespace lsnn::neuron

#include "operators.h"
