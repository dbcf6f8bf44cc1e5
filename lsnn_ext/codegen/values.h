// The values of a step and their places, for rows.h, which names them, and cuda_threads.h. Macros
// are those of the header included before.
#pragma once

namespace lsnn::neuron {
namespace {

// A number that is known when a generated step is compiled.
template <int n> struct Fixed {
  LSNN_FUSE_METHOD constexpr operator int() const { return n; }
};

// V: a vector of numbers, or one number.
template <class Step, class V> struct ValuesOf {
  const Step& step;
  V values[Step::n_values * Step::vectors];

  LSNN_FUSE_METHOD explicit ValuesOf(const Step& s) : step(s) {}
  LSNN_FUSE_METHOD V& at(int place, int v) { return values[place * Step::vectors + v]; }
  LSNN_FUSE_METHOD V& current(int k, int v = 0) { return at(k, v); }
  LSNN_FUSE_METHOD V& state(int s, int v = 0) { return at(step.currents + s, v); }
  LSNN_FUSE_METHOD V& before(int v = 0) { return state(step.states, v); }
  LSNN_FUSE_METHOD V& coefficient(int c, int v = 0) { return state(step.states + 1 + c, v); }
  LSNN_FUSE_METHOD V& d_state(int s, int v = 0) { return coefficient(step.coefficients + s, v); }
  LSNN_FUSE_METHOD V& d_z(int v = 0) { return d_state(step.states, v); }
  LSNN_FUSE_METHOD V& after(int v = 0) { return d_state(step.states + 1, v); }
  LSNN_FUSE_METHOD V& mean(int m, int v = 0) { return d_state(step.states + 2 + m, v); }
  LSNN_FUSE_METHOD V& result(int i, int v = 0) { return mean(step.means + i, v); }
};

}  // namespace
}  // namespace lsnn::neuron
