#include "counters.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <iterator>

namespace lsnn::cpu {
namespace {

constexpr const char* names[] = {
    // in the order of Count
    "ns_events",
    "ns_sums",
    "ns_step",
    "ns_readout",
    "ns_write",
    "ns_wait_forward",
    "ns_forward_tiles",
    "ns_recompute",
    "ns_replay",
    "ns_product_dense",
    "ns_product_active",
    "ns_product_sparse",
    "ns_readout_adjoint",
    "ns_adjoint",
    "ns_gradient",
    "ns_gradient_in",
    "ns_gradient_out",
    "ns_wait_backward",
    "ns_backward_tiles",
    "ns_processor",
    "ns_forward",
    "ns_backward",
    "ns_pack_forward",
    "ns_pack_backward",
    "ns_sum_tiles",
    "fresh_bytes",
    "forward_calls",
    "tiles",
    "members",
    "items",
    "item_steps",
    "neuron_steps",
    "spikes",
    "inputs",
    "input_rows",
    "rows",
    "backward_calls",
    "replayed",
    "active",
    "product_steps_dense",
    "product_steps_active",
    "product_steps_sparse",
};
static_assert(std::size(names) == n_counters);

std::atomic<bool> profiling{false};
std::atomic<int64_t> shared[n_counters];

int64_t now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

int64_t processor() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

void add(const int64_t* sums) {
  for (int c = 0; c < n_counters; c++)
    if (sums[c]) shared[c].fetch_add(sums[c], std::memory_order_relaxed);
}

int64_t cost_of_clock() {
  int64_t least = INT64_MAX;
  for (int trial = 0; trial < 8; trial++) {
    const int64_t start = now();
    int64_t end = start;
    for (int i = 0; i < 32; i++) end = now();
    least = std::min(least, (end - start) / 32);
  }
  return least;
}

}  // namespace

const char* counter_name(int counter) { return names[counter]; }

const Hooks* hooks() {
  if (!profiling.load(std::memory_order_relaxed)) return nullptr;
  static const Hooks all = {now, processor, cost_of_clock(), add};
  return &all;
}

void count(Count::Name what, int64_t amount) {
  if (hooks()) shared[what].fetch_add(amount, std::memory_order_relaxed);
}

bool set_profiling(bool on) { return profiling.exchange(on); }

void take_counters(int64_t* sums) {
  for (int c = 0; c < n_counters; c++) sums[c] = shared[c].exchange(0);
}

}  // namespace lsnn::cpu
