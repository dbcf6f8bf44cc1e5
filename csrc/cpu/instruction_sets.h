// The instruction sets that the CPU kernels are compiled for, the best first. CMakeLists.txt reads
// this table and compiles kernels.cpp once for each line of the target processor; run.cpp selects
// one when the first kernel runs: that of LSNN_CPU, or the best of the processor. To add one, add a
// line here, its pair in target.h, its branches in simd.h and bits.h, and its name in .ci/run and
// lsnn_ext/tools/info/__init__.py.
//
// X(name, target, bits of a vector, compiler flags, whether this processor supports it).
#pragma once

#define LSNN_HAS(feature) __builtin_cpu_supports(feature)

// clang-format off
#define LSNN_SETS_X86_64(X) \
  X(avx512, AVX512, 512, "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi -mpopcnt", \
    LSNN_HAS("avx512f") && LSNN_HAS("avx512bw") && LSNN_HAS("avx512dq") && \
        LSNN_HAS("avx512vl") && LSNN_HAS("fma")) \
  X(avx2, AVX2, 256, "-mavx2 -mfma -mbmi -mpopcnt", \
    LSNN_HAS("avx2") && LSNN_HAS("fma") && LSNN_HAS("bmi"))
#define LSNN_SETS_AARCH64(X) \
  X(neon, NEON, 128, "", true)  // mandatory in AArch64
#define LSNN_SETS_ANY(X) \
  X(portable, PORTABLE, 128, "", true)
// clang-format on

#if defined(LSNN_ONLY_PORTABLE)
#define LSNN_INSTRUCTION_SETS(X) LSNN_SETS_ANY(X)
#elif defined(__x86_64__)
#define LSNN_INSTRUCTION_SETS(X) LSNN_SETS_X86_64(X) LSNN_SETS_ANY(X)
#elif defined(__aarch64__)
#define LSNN_INSTRUCTION_SETS(X) LSNN_SETS_AARCH64(X) LSNN_SETS_ANY(X)
#else
#define LSNN_INSTRUCTION_SETS(X) LSNN_SETS_ANY(X)
#endif
