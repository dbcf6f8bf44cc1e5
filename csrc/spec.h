// A Spec is the part of a layer that the equations of alif_math.h depend on. Its members are
// constants in kernels compiled for a model, variables elsewhere.
#pragma once
#include <limits>
#include <type_traits>

#include "alif.h"
#include "surrogate.h"

namespace lsnn {

// Any layer: everything is decided at run time.
struct GeneralSpec {
  Choices model;
  Surrogate surrogate;
  bool smooth;
  bool synapse, coupling, current;  // sigma, p, eta may differ from 0
  bool refractory;
  bool cut;  // psi is cut at `cutoff`
  unsigned want;  // a bit for each coefficient with a gradient
};

LSNN_INLINE constexpr bool same(const Choices& a, const Choices& b) {
  return a.test == b.test && a.ge == b.ge && a.scale == b.scale && a.reset == b.reset &&
         a.when == b.when && a.drive == b.drive && a.detach == b.detach;
}

// The terms of a layer that are constants of a kernel. The refractory period is not among them: it
// costs next to nothing.
struct NoTerms {  // no optional term, fixed coefficients
  static constexpr bool synapse = false, coupling = false, current = false;
  static constexpr unsigned want = 0;
  bool refractory, cut;
};
struct LearnedCoefficients {  // no optional term
  static constexpr bool synapse = false, coupling = false, current = false;
  bool refractory, cut;
  unsigned want;
};
struct Synapse {  // sigma only
  static constexpr bool synapse = true, coupling = false, current = false;
  bool refractory, cut;
  unsigned want;
};
struct Coupling {  // p and eta
  static constexpr bool synapse = false, coupling = true, current = true;
  bool refractory, cut;
  unsigned want;
};
struct AllTerms {
  bool synapse, coupling, current, refractory, cut;
  unsigned want;
};

LSNN_INLINE constexpr Choices choices_of(int row) { return models[row]; }

// A model of the table with its own surrogate: its choices are constants.
template <Choices choices, Surrogate of_model, class Terms> struct ModelSpec : Terms {
  static constexpr Choices model = choices;
  static constexpr Surrogate surrogate = of_model;
  static constexpr bool smooth = false;
};

// The largest number means no cutoff, as infinity does: AOTInductor cannot read infinity.
LSNN_INLINE bool is_cut(const Layer& l) {
  return !has_bounded_support(l.surrogate) && l.cutoff < std::numeric_limits<double>::max();
}

// Whether a layer has no optional term.
LSNN_INLINE bool has_no_terms(const GeneralSpec& g) {
  return !g.synapse && !g.coupling && !g.current;
}

// The paper's network: the model `lsnn` with the triangle, no synapse, fixed coefficients.
struct PaperSpec : ModelSpec<choices_of(0), Surrogate::triangle, NoTerms> {
  static bool fits(const GeneralSpec& g) {
    return same(g.model, model) && g.surrogate == surrogate && !g.smooth && has_no_terms(g) &&
           !g.want;
  }
};

// The members that are variables in a kernel.
template <class Spec> LSNN_INLINE Spec spec_of(const GeneralSpec& g) {
  if constexpr (std::is_same_v<Spec, GeneralSpec>) return g;
  else if constexpr (std::is_base_of_v<NoTerms, Spec>) return {{g.refractory, g.cut}};
  else if constexpr (std::is_base_of_v<AllTerms, Spec>)
    return {{g.synapse, g.coupling, g.current, g.refractory, g.cut, g.want}};
  else return {{g.refractory, g.cut, g.want}};
}

// Whether there can be neurons that are not active.
template <class Spec> LSNN_INLINE bool can_be_inactive(const Spec& spec) {
  return has_bounded_support(spec.surrogate) || spec.cut || spec.refractory;
}

}  // namespace lsnn
