// Lists of the operators: one definition of each order, which Python reads from _C.
#pragma once
#include <iterator>
#include <optional>
#include <string_view>
#include <vector>

#include "../alif.h"
#include "checks.h"
#include "memory.h"

namespace lsnn::binding {

using Maybe = std::optional<Tensor>;
using Maybes = std::vector<Maybe>;
using Tensors = std::vector<Tensor>;

// Integers of a call. checkpoint: 0, or steps between two saved states, with y recomputed in the
// backward pass. outputs, gradients: masks of the bits below. coefficient_gradients: bit k for row
// k of the coefficients. bf16_parts: bfloat16 numbers that factors of the backward pass may be
// split into, 1 or 2; 0: factors are exact. zero_coefficients: bit k: row k of the coefficients is
// 0; assumed without a check on a GPU. without_autapses: the diagonals of w_rec count as 0.
// existing: only nonzero weights have a gradient; not read by the CUDA kernels of models.
// interface: this_interface.
#define LSNN_CONSTANTS(X)  \
  X(dynamics)              \
  X(surrogate)             \
  X(refractory)            \
  X(smooth)                \
  X(checkpoint)            \
  X(outputs)               \
  X(gradients)             \
  X(coefficient_gradients) \
  X(bf16_parts)            \
  X(zero_coefficients)     \
  X(without_autapses)      \
  X(existing)              \
  X(interface)
// Real numbers of a call.
#define LSNN_NUMBERS(X) \
  X(dampening)          \
  X(k_out)              \
  X(cutoff)

// Options of a call, see ../options.h; an empty list: those of the environment.
#define LSNN_OPTIONS(X) \
  X(product)            \
  X(team_size)          \
  X(l1_size)            \
  X(design)             \
  X(kernels)

// Outputs of the forward pass: spikes as numbers, traces, tensors for the backward pass, spikes as
// bits; saved_bf16: y is saved in bfloat16; packed: the packed weights are saved, CUDA kernels of
// models only.
#define LSNN_OUTPUTS(X) \
  X(spikes)             \
  X(traces)             \
  X(saved)              \
  X(bits)               \
  X(saved_bf16)         \
  X(packed)
// Gradients that the backward pass computes only on request.
#define LSNN_GRADIENTS(X) \
  X(x)                    \
  X(w_rec)                \
  X(w_in)                 \
  X(bias)                 \
  X(w_out)                \
  X(z)                    \
  X(b_out)                \
  X(delay_kernel)

#define LSNN_FORWARD_SCHEMA                                                                   \
  "alif_forward(Tensor x, Tensor[] state, Tensor? coefficients, Tensor?[] recurrence, "       \
  "int[] delays, Tensor?[] projection, Tensor?[] readout, int[] constants, float[] numbers, " \
  "int[] options=[], Tensor? lengths=None, Tensor[]? sources=None, float[] rows=[], "         \
  "int neuron=0) -> "                                                                         \
  "(Tensor spikes, Tensor[] state, Tensor[] traces, Tensor[] readout, Tensor[] saved)"
#define LSNN_BACKWARD_SCHEMA                                                                     \
  "alif_backward(Tensor? g_spikes, Tensor?[] g_traces, Tensor?[] g_state, Tensor?[] g_readout, " \
  "Tensor? x, Tensor[] state, Tensor coefficients, Tensor?[] recurrence, int[] delays, "         \
  "Tensor?[] projection, Tensor?[] readout, Tensor[] saved, int[] constants, "                   \
  "float[] numbers, int[] options=[], Tensor? lengths=None, int neuron=0) -> "                   \
  "(Tensor x, Tensor[] recurrence, Tensor coefficients, Tensor[] state, Tensor[] projection, "   \
  "Tensor[] readout)"

#define LSNN_NAME(name) #name,
#define LSNN_INDEX(name) name,
inline constexpr const char* constant_names[] = {LSNN_CONSTANTS(LSNN_NAME)};
inline constexpr const char* number_names[] = {LSNN_NUMBERS(LSNN_NAME)};
inline constexpr const char* option_names[] = {LSNN_OPTIONS(LSNN_NAME)};
inline constexpr const char* output_names[] = {LSNN_OUTPUTS(LSNN_NAME)};
inline constexpr const char* gradient_names[] = {LSNN_GRADIENTS(LSNN_NAME)};
enum class Output { LSNN_OUTPUTS(LSNN_INDEX) count };
enum class Gradient { LSNN_GRADIENTS(LSNN_INDEX) count };

// The schemas, lists and tables by which a call is written in numbers, as one number: FNV-1a of
// their words. Every call passes it, so that a call that was exported or compiled with others is
// refused, not misread, and torch.compile finds no graph of theirs in its cache on disk.
constexpr int64_t hash_interface() {
#define LSNN_WORDS(...) #__VA_ARGS__ "\n"
  uint32_t hash = 2166136261u;
  auto add = [&](std::string_view words) {
    for (char c : words) hash = (hash ^ (unsigned char)c) * 16777619u;
  };
  add(LSNN_FORWARD_SCHEMA LSNN_BACKWARD_SCHEMA);
  add(LSNN_CONSTANTS(LSNN_WORDS) LSNN_NUMBERS(LSNN_WORDS) LSNN_OPTIONS(LSNN_WORDS));
  add(LSNN_OUTPUTS(LSNN_WORDS) LSNN_GRADIENTS(LSNN_WORDS));
  add(LSNN_MODELS(LSNN_WORDS) LSNN_SURROGATES(LSNN_WORDS));
  for (const char* name : coefficient_names) {
    add(name);
    add(" ");
  }
  return hash;
}
inline constexpr int64_t this_interface = hash_interface();

#define LSNN_FIELD(name) int64_t name;
#define LSNN_REAL_FIELD(name) double name;
struct Constants {
  LSNN_CONSTANTS(LSNN_FIELD)
  LSNN_NUMBERS(LSNN_REAL_FIELD)

  bool has(Output bit) const { return outputs >> (int)bit & 1; }
  bool has(Gradient bit) const { return gradients >> (int)bit & 1; }
};

// n_gradients: number of coefficients that may have a gradient.
inline Constants read_constants(const Ints& whole, const std::vector<double>& real,
                                int64_t n_gradients) {
  constexpr size_t n_whole = std::size(constant_names), n_real = std::size(number_names);
  LSNN_EXPECT(whole.size() == n_whole, "constants: expected ", n_whole, " integers, got ",
              whole.size());
  LSNN_EXPECT(real.size() == n_real, "numbers: expected ", n_real, " real numbers, got ",
              real.size());
  Constants c;
  size_t i = 0, r = 0;
#define LSNN_READ(name) c.name = whole[i++];
#define LSNN_READ_REAL(name) c.name = real[r++];
  LSNN_CONSTANTS(LSNN_READ)
  LSNN_NUMBERS(LSNN_READ_REAL)
  LSNN_EXPECT(c.interface == this_interface, "constants: expected a call of this version of ",
              "lsnn_ext, got one that another version exported or compiled; export it again");
  auto is_mask = [](int64_t mask, int64_t bits) { return mask >= 0 && mask < int64_t(1) << bits; };
  LSNN_EXPECT(is_mask(c.outputs, (int)Output::count), "outputs: expected ", (int)Output::count,
              " bits, got ", c.outputs);
  LSNN_EXPECT(is_mask(c.gradients, (int)Gradient::count), "gradients: expected ",
              (int)Gradient::count, " bits, got ", c.gradients);
  LSNN_EXPECT(is_mask(c.coefficient_gradients, n_gradients),
              "coefficient_gradients: expected a bit for each of ", n_gradients,
              " coefficients, got ", c.coefficient_gradients);
  LSNN_EXPECT(is_mask(c.zero_coefficients, n_coefficients),
              "zero_coefficients: expected a bit for each of ", +n_coefficients,
              " coefficients, got ", c.zero_coefficients);
  return c;
}

// Element i of a list, or none beyond its end. Zero tensors without memory, as of forward-mode
// differentiation, are materialized by torch except in lists.
inline Maybe at(const Maybes& list, size_t i) {
  if (i >= list.size() || !list[i]) return std::nullopt;
  LSNN_EXPECT(list[i]->numel() == 0 || list[i]->const_data_ptr(),
              "lists: expected tensors with memory, got one without");
  return list[i];
}

}  // namespace lsnn::binding
