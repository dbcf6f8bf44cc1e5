// A layer packed once for many passes of one step, as in a loop over steps. Results are bitwise
// identical to forward() and backward() of run.h with T = 1, except for sums over the batch, whose
// order differs.
#pragma once
#include <memory>

#include "../alif.h"

namespace lsnn::cpu {

class OneStep {
 public:
  virtual ~OneStep() = default;
  // args.layer: the packed layer with T = 1 and any B. Saves y and bits; the carry is the first
  // state.
  virtual void forward(const ForwardArgs& args, Parallel parallel) const = 0;
  // gx must not be null. Sums over the batch are added in place: gw is [S,N,padded(N)], gbias [N]
  // the sum of gx.
  virtual void backward(const BackwardArgs& args, Parallel parallel) const = 0;
};

// Copies the weights and coefficients of the layer.
template <class T> std::unique_ptr<OneStep> pack_for_steps(const Layer& layer, Parallel parallel);

}  // namespace lsnn::cpu
