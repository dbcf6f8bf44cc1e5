// A layer that is packed once, for passes of one step each: what a loop over steps calls. The
// results are those of forward() and backward() of run.h with T = 1, bit for bit but for sums over
// the batch, which are made in another order.
#pragma once
#include <memory>

#include "../alif.h"

namespace lsnn::cpu {

class OneStep {
 public:
  virtual ~OneStep() = default;
  // The layer of the arguments is the one that was packed, with T = 1 and any B. Saved are y and
  // bits, and no carry: it is the first state.
  virtual void forward(const ForwardArgs& args, Parallel parallel) const = 0;
  // gx is never null. What is summed over the batch is added to what stands there: gw is
  // [S,N,padded(N)] for each delay, gbias [N] the sum of gx.
  virtual void backward(const BackwardArgs& args, Parallel parallel) const = 0;
};

// The weights and coefficients of the layer are copied.
template <class T> std::unique_ptr<OneStep> pack_for_steps(const Layer& layer, Parallel parallel);

}  // namespace lsnn::cpu
