#include "launch.cuh"

namespace lsnn::cuda {
namespace {
const Entry& entry(const Plan& plan) {
  return plan.storage == Storage::f64   ? entry_f64
         : plan.storage == Storage::f32 ? entry_f32
                                        : entry_f32_bf16;
}
}  // namespace

int64_t forward_workspace(const ForwardArgs& f, const Plan& plan) {
  return entry(plan).forward_workspace(f, plan);
}
int64_t backward_workspace(const BackwardArgs& f, const Plan& plan) {
  return entry(plan).backward_workspace(f, plan);
}
void forward(const ForwardArgs& f, const Plan& plan, void* workspace, const Product& product,
             void* stream) {
  entry(plan).forward(f, plan, workspace, product, stream);
}
void backward(const BackwardArgs& f, const Plan& plan, void* workspace, const Product& product,
              void* stream) {
  entry(plan).backward(f, plan, workspace, product, stream);
}
Device current_device() { return device_limits(); }

}  // namespace lsnn::cuda
