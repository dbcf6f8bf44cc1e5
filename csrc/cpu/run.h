// The CPU path: the whole sequence, forward and backward. T is float or double; pointers of the
// arguments may be null only where alif.h allows it.
#pragma once
#include <string>
#include <tuple>

#include "../alif.h"

namespace lsnn::cpu {

template <class T> void forward(const ForwardArgs& args, Parallel parallel);
template <class T> void backward(const BackwardArgs& args, Parallel parallel);

// The linear map of sparse rows, such as spikes.
template <class T> void linear_forward(const Linear& args, Parallel parallel);
template <class T> void linear_backward(const Linear& args, Parallel parallel);

// Bits [T,B,words(I)] of spikes x [T,B,I], 0 beyond I. Returns false, with undefined bits, if any
// number is not 0 or 1. Number: also uint8_t.
struct SpikeRows { int64_t T, B, I, stride_t, stride_b; };
template <class Number>
bool spike_bits(const Number* x, const SpikeRows& rows, uint32_t* bits, Parallel parallel);

// The leaky integrator of a given product.
template <class T> void leaky_forward(const LeakyForward& args, Parallel parallel);
template <class T> void leaky_backward(const LeakyBackward& args, Parallel parallel);

// The instruction set in use: "avx512", "avx2", "neon" or "portable"; LSNN_CPU, or the best one of
// this processor. Throws std::runtime_error if LSNN_CPU is unknown or unsupported here.
const char* instruction_set();

// The same, the bits of a vector, and the compiler flags.
std::tuple<std::string, int, std::string> instruction_set_flags();

}  // namespace lsnn::cpu
