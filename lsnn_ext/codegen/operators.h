// The operators of a step, those of OPERATORS in program.py: one definition for generated code and
// for the interpreter (csrc/cpu/interpreter.h). V is a vector of numbers of type T and M a mask, or
// V is a number and M a bool. Functions and macros are those of the header included before, ops.h
// or cuda_operators.h.
#pragma once

namespace lsnn::neuron {
namespace {

// In the order of OPERATORS: name, number of arguments, type of the result, parameters, expression.
// sign, maximum and minimum treat NaN as torch's kernels do: sign gives 0, the others NaN.
// clang-format off
#define LSNN_STEP_OPERATORS(X) \
  X(add, 2, V, (V a, V b), a + b) \
  X(sub, 2, V, (V a, V b), a - b) \
  X(mul, 2, V, (V a, V b), a * b) \
  X(div, 2, V, (V a, V b), a / b) \
  X(fma, 3, V, (V a, V b, V c), fma_of(a, b, c)) \
  X(neg, 1, V, (V a), -a) \
  X(abs, 1, V, (V a), abs_of<T>(a)) \
  X(sign, 1, V, (V a), a > T(0) ? broadcast(T(1)) : a < T(0) ? broadcast(T(-1)) : V{}) \
  X(sqrt, 1, V, (V a), sqrt_of(a)) \
  X(maximum, 2, V, (V a, V b), (M)((a > b) | (a != a)) ? a : b) \
  X(minimum, 2, V, (V a, V b), (M)((a < b) | (a != a)) ? a : b) \
  X(exp, 1, V, (V a), exp_of<T>(a)) \
  X(log, 1, V, (V a), log_of(a)) \
  X(tanh, 1, V, (V a), tanh_of<T>(a)) \
  X(sigmoid, 1, V, (V a), sigmoid_of<T>(a)) \
  X(sin, 1, V, (V a), sin_of(a)) \
  X(cos, 1, V, (V a), cos_of(a)) \
  X(atan, 1, V, (V a), atan_of(a)) \
  X(erf, 1, V, (V a), erf_of(a)) \
  X(pow, 2, V, (V a, V b), pow_of(a, b)) \
  X(fmod, 2, V, (V a, V b), fmod_of(a, b)) \
  X(gt, 2, M, (V a, V b), a > b) \
  X(ge, 2, M, (V a, V b), a >= b) \
  X(lt, 2, M, (V a, V b), a < b) \
  X(le, 2, M, (V a, V b), a <= b) \
  X(eq, 2, M, (V a, V b), a == b) \
  X(ne, 2, M, (V a, V b), a != b) \
  X(and, 2, M, (M a, M b), a & b) \
  X(or, 2, M, (M a, M b), a | b) \
  X(not, 1, M, (M a), a == M{}) \
  X(select, 3, V, (M a, V b, V c), a ? b : c) \
  X(float32, 1, V, (V a), float32_of(a))
// clang-format on

// Each as a function, with an underscore behind its name.
template <class T> struct Operators {
  using Number = T;
  using V = Vector<T>;
  using M = Mask<T>;
#define LSNN_FUSE_OPERATOR(name, count, Result, parameters, expression) \
  LSNN_FUSE_INLINE Result name##_ parameters { return expression; }
  LSNN_STEP_OPERATORS(LSNN_FUSE_OPERATOR)
#undef LSNN_FUSE_OPERATOR
  LSNN_FUSE_INLINE V constant(T x) { return broadcast(x); }
  // Truth values as numbers, and numbers as truth values.
  LSNN_FUSE_INLINE V number(M m) { return m ? broadcast(T(1)) : V{}; }
  LSNN_FUSE_INLINE M is_true(V a) { return a != T(0); }
};

}  // namespace
}  // namespace lsnn::neuron
