#include <map>
#include <mutex>

#include "launch.cuh"

namespace lsnn::cuda {
namespace {
const Entry& entry(const Plan& plan) { return plan.wide ? entry_f64 : entry_f32; }
}  // namespace

int64_t forward_workspace(const ForwardArgs& f, const Plan& plan) {
  return entry(plan).forward_workspace(f, plan);
}
int64_t backward_workspace(const BackwardArgs& f, const Plan& plan) {
  return entry(plan).backward_workspace(f, plan) +
         readout_workspace(f, plan.wide, current_device());
}
void forward(const ForwardArgs& f, const Plan& plan, void* workspace, const Product& product,
             void* stream) {
  entry(plan).forward(f, plan, workspace, product, stream);
  readout_forward(f, plan.wide, current_device(), stream);
}
void backward(const BackwardArgs& f, const Plan& plan, void* workspace, const Product& product,
              void* stream) {
  BackwardArgs of_spikes = f;
  readout_backward(of_spikes, plan.wide, current_device(),
                   static_cast<char*>(workspace) + entry(plan).backward_workspace(f, plan), stream);
  entry(plan).backward(of_spikes, plan, workspace, product, stream);
}

uint64_t launches() { return counted_launches(); }

Device current_device() {
  static std::mutex mutex;
  static std::map<int, Device> known;
  const int index = device_index();
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find(index); found != known.end()) return found->second;
  Device device = as_compiled(device_limits(), find_compiled_capability());
  for (int i = 0; i < 3 && device.most_ranks > 1; i++)
    device.clusters[i] = find_clusters(2 << i, device);
  return known.emplace(index, device).first->second;
}

}  // namespace lsnn::cuda
