// The only file with compiler checks: nvcc, or a host compiler, which also compiles the kernels for
// the emulator.
//
// Every function of the headers below cpu/ and cuda/ is static and always inlined. Each instruction
// set of the CPU path is a translation unit; a function that the linker shares between them (a weak
// symbol) could run AVX-512 code on a processor without it.
#pragma once
#include <float.h>
#include <math.h>
#ifdef LSNN_OTHER_LIBM
#include <bit>
#endif

#if defined(__CUDACC__)
#define LSNN_NVCC 1
#define LSNN_INLINE static __host__ __device__ __forceinline__
#define LSNN_METHOD __host__ __device__ __forceinline__
#define LSNN_LAMBDA  // the lambda inherits the attributes of the enclosing function
#elif defined(__GNUC__)
#define LSNN_NVCC 0
#define LSNN_INLINE static inline __attribute__((always_inline))
#define LSNN_METHOD inline __attribute__((always_inline))
#define LSNN_LAMBDA __attribute__((always_inline))
#else
#error "lsnn_ext is written for GCC, Clang and nvcc."
#endif

// Thread block clusters: from compute capability 9.0 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define LSNN_CLUSTERS 0
#else
#define LSNN_CLUSTERS 1
#endif

// Asynchronous copies from global to shared memory: from compute capability 8.0 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define LSNN_ASYNC_COPIES 0
#else
#define LSNN_ASYNC_COPIES 1
#endif

// Tensor cores with bfloat16: from compute capability 8.0 on, too.
#define LSNN_TENSOR_CORES LSNN_ASYNC_COPIES

// nvcc needs more registers for the same kernel from compute capability 10.0 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define LSNN_FEWER_REGISTERS 1
#else
#define LSNN_FEWER_REGISTERS 0
#endif

// A function that is not inlined, with internal linkage.
#define LSNN_LOCAL static __attribute__((unused))

namespace lsnn {

// Scalar mathematics; cpu/simd.h defines the same names for vectors.
template <class F> LSNN_INLINE F select(bool m, F a, F b) { return m ? a : b; }
LSNN_INLINE float abs_(float x) { return fabsf(x); }
LSNN_INLINE double abs_(double x) { return fabs(x); }
LSNN_INLINE float max_(float a, float b) { return a > b ? a : b; }
LSNN_INLINE double max_(double a, double b) { return a > b ? a : b; }
LSNN_INLINE float min_(float a, float b) { return a < b ? a : b; }
LSNN_INLINE double min_(double a, double b) { return a < b ? a : b; }
LSNN_INLINE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
LSNN_INLINE double fma_(double a, double b, double c) { return fma(a, b, c); }
// The smallest normal number of the type of x.
LSNN_INLINE float least_normal(float) { return FLT_MIN; }
LSNN_INLINE double least_normal(double) { return DBL_MIN; }
// One over x. On a GPU an approximation to two units in the last place; gradients only.
#if defined(__CUDA_ARCH__)
LSNN_INLINE float reciprocal_(float x) { return __fdividef(1.0f, x); }
#else
LSNN_INLINE float reciprocal_(float x) { return 1.0f / x; }
#endif
LSNN_INLINE double reciprocal_(double x) { return 1.0 / x; }
// Whether exp, erf and atan differ from the CPU path's in the last bit. In a build with
// LSNN_OTHER_LIBM has_other_libm can be set: then one in sixteen results other than 0 and 1 is off
// by one unit in the last place, as on a GPU.
#ifdef LSNN_OTHER_LIBM
inline bool has_other_libm = false;
LSNN_INLINE float libm_(float y) {
  const unsigned hash = std::bit_cast<unsigned>(y) * 0x9e3779b1u >> 27;
  if (!has_other_libm || y == 0 || y == 1 || hash > 1) return y;
  return nextafterf(y, hash ? 2.0f : -2.0f);
}
LSNN_INLINE double libm_(double y) {
  const auto hash = std::bit_cast<unsigned long long>(y) * 0x9e3779b97f4a7c15u >> 59;
  if (!has_other_libm || y == 0 || y == 1 || hash > 1) return y;
  return nextafter(y, hash ? 2.0 : -2.0);
}
#else
inline constexpr bool has_other_libm = LSNN_NVCC;
template <class F> LSNN_INLINE F libm_(F y) { return y; }
#endif
LSNN_INLINE float exp_(float x) { return libm_(expf(x)); }
LSNN_INLINE double exp_(double x) { return libm_(exp(x)); }
// For psi, for which vectors may use a shorter approximation. Smooth spikes use exp_, which is
// bitwise identical everywhere except on a GPU.
LSNN_INLINE float psi_exp_(float x) { return libm_(expf(x)); }
LSNN_INLINE double psi_exp_(double x) { return libm_(exp(x)); }
LSNN_INLINE float erf_(float x) { return libm_(erff(x)); }
LSNN_INLINE double erf_(double x) { return libm_(erf(x)); }
LSNN_INLINE float atan_(float x) { return libm_(atanf(x)); }
LSNN_INLINE double atan_(double x) { return libm_(atan(x)); }

}  // namespace lsnn
