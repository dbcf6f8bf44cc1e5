// The functions of neurons.h as tables of neuron.h, specialised for each model of the table and its
// optional terms, and the dispatch among them. docs/kernels.md explains which are specialised.
#pragma once
#include <utility>

#include "neurons.h"

namespace lsnn::cpu {
namespace {

template <class T> struct NeuronKernels {
  void (*step)(const void*, const StepRow<T>&);
  void (*replay_steps)(const void*, const ReplaySteps<T>&);
  int64_t (*replay)(const void*, const ReplayRow<T>&);
  void (*adjoint)(const void*, const AdjointRows<T>&);
};

// Choices that the forward pass does not read are set to one value, so that models that differ only
// in these share a kernel. The replay also reads the support of the surrogate.
constexpr Choices of_forward(Choices c) {
  c.detach = detach_none;
  return c;
}
constexpr Surrogate of_replay(Surrogate s) {
  return has_bounded_support(s) ? s : Surrogate::arctan;
}

template <class T> constexpr NeuronKernels<T> general_kernels = {
    step_row<T, GeneralSpec>, replay_steps<T, GeneralSpec>, replay_row<T, GeneralSpec>,
    adjoint_rows<T, GeneralSpec>};

// Kernels of a model of the table with its own surrogate, by the optional terms of a layer.
template <class T> struct ModelKernels {
  Choices choices;
  Surrogate surrogate;
  NeuronKernels<T> fixed, learned, synapse, coupling, all_terms;

  LSNN_METHOD const NeuronKernels<T>& operator[](const GeneralSpec& g) const {
    if (has_no_terms(g)) return g.want ? learned : fixed;
    if (g.synapse && !g.coupling && !g.current) return synapse;
    if (!g.synapse && g.coupling && g.current) return coupling;
    return all_terms;
  }
};

// Double precision, which serves for checks, and the portable instruction set have one kernel for
// all terms. With LSNN_FEW_KERNELS, for slow compilations with sanitizers, only the first model is
// specialised.
#ifdef LSNN_FEW_KERNELS
template <int row> inline constexpr bool has_own_kernels = row == 0;
#else
template <int row> inline constexpr bool has_own_kernels = true;
#endif
template <class T> inline constexpr bool is_by_terms =
    sizeof(T) == 4 && LSNN_TARGET != LSNN_TARGET_PORTABLE;
template <class T, class Terms>
using Compiled = std::conditional_t<is_by_terms<T>, Terms, AllTerms>;

template <class T, int row, class Terms, class AdjointTerms>
constexpr NeuronKernels<T> kernels_with() {
  if constexpr (has_own_kernels<row>) {
    constexpr Choices choices = choices_of(row);
    constexpr Surrogate surrogate = models[row].surrogate;
    using Step = ModelSpec<of_forward(choices), Surrogate::triangle, Compiled<T, Terms>>;
    using Replay = ModelSpec<of_forward(choices), of_replay(surrogate), Compiled<T, Terms>>;
    using Adjoint = ModelSpec<choices, surrogate, Compiled<T, AdjointTerms>>;
    return {step_row<T, Step>, replay_steps<T, Replay>, replay_row<T, Replay>,
            adjoint_rows<T, Adjoint>};
  } else {
    return general_kernels<T>;
  }
}
template <class T, int row> constexpr ModelKernels<T> kernels_of_model() {
  return {choices_of(row),
          models[row].surrogate,
          kernels_with<T, row, NoTerms, NoTerms>(),
          kernels_with<T, row, NoTerms, LearnedCoefficients>(),
          kernels_with<T, row, Synapse, Synapse>(),
          kernels_with<T, row, Coupling, Coupling>(),
          kernels_with<T, row, AllTerms, AllTerms>()};
}
template <class T> struct KernelTable { ModelKernels<T> of[n_models]; };
template <class T, int... rows>
constexpr KernelTable<T> kernels_of_models(std::integer_sequence<int, rows...>) {
  return {{kernels_of_model<T, rows>()...}};
}

// With a surrogate other than the model's, kernels that do not read it stay specialised.
template <class T> LSNN_LOCAL NeuronKernels<T> neuron_kernels(const GeneralSpec& spec) {
  static constexpr KernelTable<T> table =
      kernels_of_models<T>(std::make_integer_sequence<int, n_models>());
  NeuronKernels<T> chosen = general_kernels<T>;
  if (spec.smooth) return chosen;
  for (const ModelKernels<T>& of_model : table.of) {
    if (!same(of_model.choices, spec.model)) continue;
    const NeuronKernels<T>& known = of_model[spec];
    if (of_model.surrogate == spec.surrogate) return known;
    chosen.step = known.step;
    if (of_replay(of_model.surrogate) != of_replay(spec.surrogate)) continue;
    chosen.replay_steps = known.replay_steps;
    chosen.replay = known.replay;
  }
  return chosen;
}

// States are v, a, i and r, traces v, a and A; y is saved.
template <class T>
LSNN_LOCAL neuron::NeuronTable<T> model_table(const GeneralSpec& spec, bool beta_is_zero) {
  const NeuronKernels<T> kernels = neuron_kernels<T>(spec);
  const bool has_i = spec.want >> SIGMA & 1;
  return {.abi_version = neuron::abi_version,
          .number_bytes = sizeof(T),
          .lanes = Vec<T>::lanes,
          .states = 4,
          .currents = 1,
          .gradients = n_coefficients,
          .traces = 3,
          .packed = packed_coefficients,
          .saved = 1,
          .saves_currents = false,
          .has_number_spikes = spec.smooth,
          .has_inactive = can_be_inactive(spec),
          .replays = !v_suffices(spec, beta_is_zero),
          .has_product = !(spec.model.detach & detach_rec),
          .whole_rows = false,
          .carried = 3u | (has_i ? 4u : 0) | (spec.refractory ? 8u : 0),
          .settings = &spec,
          .step = kernels.step,
          .replay_steps = kernels.replay_steps,
          .replay = kernels.replay,
          .adjoint = kernels.adjoint};
}

}  // namespace
}  // namespace lsnn::cpu
