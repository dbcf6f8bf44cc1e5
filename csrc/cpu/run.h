// The CPU path: the whole sequence, forward and backward. T is float or double; no pointer of the
// arguments may be null but those that alif.h allows.
#pragma once
#include <string>
#include <tuple>

#include "../alif.h"

namespace lsnn::cpu {

template <class T> void forward(const ForwardArgs& args, Parallel parallel);
template <class T> void backward(const BackwardArgs& args, Parallel parallel);

// The linear map of rows that are mostly zero, as spikes are.
template <class T> void linear_forward(const Linear& args, Parallel parallel);
template <class T> void linear_backward(const Linear& args, Parallel parallel);

// Bits [R,words(I)] of spikes x [R,I], 0 beyond I. Returns false, with bits that mean nothing,
// where some number is other than 0 and 1. T: also uint8_t.
template <class T>
bool spike_bits(const T* x, int64_t R, int64_t I, uint32_t* bits, Parallel parallel);

// The leaky integrator of a product that was made elsewhere.
template <class T> void leaky_forward(const LeakyForward& args, Parallel parallel);
template <class T> void leaky_backward(const LeakyBackward& args, Parallel parallel);

// The instruction set in use: "avx512", "avx2", "neon" or "portable", the best one of this
// processor unless LSNN_CPU names another. Throws std::runtime_error when LSNN_CPU names one that
// is unknown or that this processor lacks.
const char* instruction_set();

// The same, the bits of a vector, and the flags by which a compiler uses it.
std::tuple<std::string, int, std::string> instruction_set_flags();

}  // namespace lsnn::cpu
