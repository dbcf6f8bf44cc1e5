// The operators of ops.h on one number, for cuda_threads.h.
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

// Functions of the library of the compiler: on a GPU within 2 units in the last place, pow in
// float32 within 4.
#define LSNN_FUSE_LIBRARY(name)                                    \
  LSNN_FUSE_INLINE float name##_of(float a) { return name##f(a); } \
  LSNN_FUSE_INLINE double name##_of(double a) { return name(a); }
LSNN_FUSE_LIBRARY(exp)
LSNN_FUSE_LIBRARY(log)
LSNN_FUSE_LIBRARY(tanh)
LSNN_FUSE_LIBRARY(sin)
LSNN_FUSE_LIBRARY(cos)
LSNN_FUSE_LIBRARY(atan)
LSNN_FUSE_LIBRARY(erf)
LSNN_FUSE_LIBRARY(sqrt)
LSNN_FUSE_LIBRARY(fabs)
#undef LSNN_FUSE_LIBRARY
LSNN_FUSE_INLINE float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
LSNN_FUSE_INLINE double fma_of(double a, double b, double c) { return fma(a, b, c); }
LSNN_FUSE_INLINE float pow_of(float a, float b) { return powf(a, b); }
LSNN_FUSE_INLINE double pow_of(double a, double b) { return pow(a, b); }

template <class T> struct Operators {
  using Number = T;
  using V = T;
  using M = bool;
  LSNN_FUSE_INLINE V add_(V a, V b) { return a + b; }
  LSNN_FUSE_INLINE V sub_(V a, V b) { return a - b; }
  LSNN_FUSE_INLINE V mul_(V a, V b) { return a * b; }
  LSNN_FUSE_INLINE V div_(V a, V b) { return a / b; }
  LSNN_FUSE_INLINE V fma_(V a, V b, V c) { return fma_of(a, b, c); }
  LSNN_FUSE_INLINE V neg_(V a) { return -a; }
  LSNN_FUSE_INLINE V abs_(V a) { return fabs_of(a); }
  LSNN_FUSE_INLINE V sign_(V a) { return a > T(0) ? T(1) : a < T(0) ? T(-1) : T(0); }
  LSNN_FUSE_INLINE V sqrt_(V a) { return sqrt_of(a); }
  LSNN_FUSE_INLINE V maximum_(V a, V b) { return a > b || a != a ? a : b; }
  LSNN_FUSE_INLINE V minimum_(V a, V b) { return a < b || a != a ? a : b; }
  LSNN_FUSE_INLINE V exp_(V a) { return exp_of(a); }
  LSNN_FUSE_INLINE V log_(V a) { return log_of(a); }
  LSNN_FUSE_INLINE V tanh_(V a) { return tanh_of(a); }
  LSNN_FUSE_INLINE V sigmoid_(V a) {
    const V e = exp_of(-fabs_of(a));
    return (a < T(0) ? e : T(1)) / (e + T(1));
  }
  LSNN_FUSE_INLINE V sin_(V a) { return sin_of(a); }
  LSNN_FUSE_INLINE V cos_(V a) { return cos_of(a); }
  LSNN_FUSE_INLINE V atan_(V a) { return atan_of(a); }
  LSNN_FUSE_INLINE V erf_(V a) { return erf_of(a); }
  LSNN_FUSE_INLINE V pow_(V a, V b) { return pow_of(a, b); }
  LSNN_FUSE_INLINE M gt_(V a, V b) { return a > b; }
  LSNN_FUSE_INLINE M ge_(V a, V b) { return a >= b; }
  LSNN_FUSE_INLINE M lt_(V a, V b) { return a < b; }
  LSNN_FUSE_INLINE M le_(V a, V b) { return a <= b; }
  LSNN_FUSE_INLINE M eq_(V a, V b) { return a == b; }
  LSNN_FUSE_INLINE M ne_(V a, V b) { return a != b; }
  LSNN_FUSE_INLINE M and_(M a, M b) { return a && b; }
  LSNN_FUSE_INLINE M or_(M a, M b) { return a || b; }
  LSNN_FUSE_INLINE M not_(M a) { return !a; }
  LSNN_FUSE_INLINE V select_(M a, V b, V c) { return a ? b : c; }
  LSNN_FUSE_INLINE V float32_(V a) { return T(float(a)); }
  LSNN_FUSE_INLINE V constant(T x) { return x; }
  LSNN_FUSE_INLINE V number(M m) { return m ? T(1) : T(0); }
  LSNN_FUSE_INLINE M is_true(V a) { return a != T(0); }
};

}  // namespace
}  // namespace lsnn::neuron
