// Counters of lsnn_ext.profile: the time of each phase, and events. Off unless _C.profile(True) was
// called; while off, a lap only tests a pointer.
//
// The kernels access the clock and the shared sums only through pointers, as they may not call
// other translation units (see platform.h). A meter belongs to one tile and is added to the shared
// sums once, when the tile ends.
#pragma once
#include <cstdint>

#include "../platform.h"

namespace lsnn::cpu {

struct Count {
  enum Name {
    // Nanoseconds of all threads in tiles, by phase, then in total for each pass.
    ns_events,
    ns_sums,
    ns_step,
    ns_readout,
    ns_write,
    ns_wait_forward,
    ns_forward_tiles,
    ns_recompute,
    ns_replay,
    ns_product_dense,
    ns_product_active,
    ns_product_sparse,
    ns_readout_adjoint,
    ns_adjoint,
    ns_gradient,
    ns_gradient_in,
    ns_gradient_out,
    ns_wait_backward,
    ns_backward_tiles,
    ns_processor,  // of both, CPU time of the thread
    // Nanoseconds of the calling threads: the operators, then their work around the tiles.
    ns_forward,
    ns_backward,
    ns_pack_forward,
    ns_pack_backward,
    ns_sum_tiles,
    fresh_bytes,  // of memory that the cache did not provide
    // Of the forward pass. rows: of weights, one for each event; input_rows: those of nonzero
    // inputs.
    forward_calls,
    tiles,
    members,  // of their teams
    items,
    item_steps,
    neuron_steps,
    spikes,
    inputs,
    input_rows,
    rows,
    // Of the backward pass. active: the active ones of the replayed neurons and steps.
    backward_calls,
    replayed,
    active,
    product_steps_dense,
    product_steps_active,
    product_steps_sparse,
    none
  };
};
inline constexpr int n_counters = Count::none;
const char* counter_name(int counter);

struct Hooks {
  int64_t (*clock)();  // nanoseconds
  int64_t (*processor)();  // nanoseconds of CPU time of this thread
  int64_t cost;  // of a call of clock
  void (*add)(const int64_t* sums);  // [n_counters] to the shared ones
};
const Hooks* hooks();  // null while profiling is off

void count(Count::Name what, int64_t amount);  // while profiling is on

bool set_profiling(bool on);  // returns what was set before
void take_counters(int64_t* sums);  // [n_counters] written, and cleared

namespace {  // a copy for each instruction set of the CPU path, see platform.h

// The meter of one tile.
struct Meter {
  const Hooks* hooks;
  int64_t last, last_item;
  bool each_item;  // whether the items of this step are timed separately
  int64_t item_ns[2];  // time of such items by part: sums, step
  int64_t all_items;  // time of both in all steps
  int64_t n[n_counters];

  LSNN_METHOD explicit Meter(const Hooks* h)
      : hooks(h),
        last(0),
        last_item(0),
        each_item(false),
        item_ns{},
        all_items(0),
        n{} {
    if (hooks) last = hooks->clock();
  }
  LSNN_METHOD void add_time_to(int64_t& sum) {
    const int64_t now = hooks->clock();
    sum += now - last;
    last = now;
  }
  // The time since the last lap belongs to this phase.
  LSNN_METHOD void lap(Count::Name phase) {
    if (hooks) add_time_to(n[phase]);
  }
  LSNN_METHOD void count(Count::Name what, int64_t amount) {
    if (hooks) n[what] += amount;
  }

  // Sums and step alternate from item to item, too fast for a clock. They are timed separately in
  // one of 16 steps, or in all steps of a short sequence; finish() divides the time of all steps in
  // proportion.
  LSNN_METHOD void start_items(int64_t t, int64_t T) {
    if (!hooks) return;
    each_item = t % 16 == 15 || T < 128;
    if (each_item) last_item = hooks->clock();
  }
  LSNN_METHOD void split_item(int to) {
    if (!each_item) return;
    const int64_t now = hooks->clock(), spent = now - last_item - hooks->cost;
    item_ns[to] += spent > 0 ? spent : 0;
    last_item = now;
  }
  LSNN_METHOD void end_items() {
    each_item = false;
    if (hooks) add_time_to(all_items);
  }
  LSNN_METHOD void finish() {
    if (!hooks) return;
    const double all = (double)(item_ns[0] + item_ns[1]);
    n[Count::ns_sums] = all > 0 ? (int64_t)((double)item_ns[0] / all * (double)all_items) : 0;
    n[Count::ns_step] = all_items - n[Count::ns_sums];
    hooks->add(n);
  }
};

// Adds the time of a scope to a sum, and 1 to another one.
struct Timed {
  const Hooks* hooks;
  Count::Name time, calls;
  int64_t start, processor;
  LSNN_METHOD explicit Timed(const Hooks* h, Count::Name of, Count::Name number = Count::none)
      : hooks(h),
        time(of),
        calls(number),
        start(h ? h->clock() : 0),
        processor(h ? h->processor() : 0) {}
  LSNN_METHOD ~Timed() {
    if (!hooks) return;
    int64_t sums[n_counters] = {};
    sums[time] = hooks->clock() - start;
    if (time == Count::ns_forward_tiles || time == Count::ns_backward_tiles)
      sums[Count::ns_processor] = hooks->processor() - processor;
    if (calls != Count::none) sums[calls] = 1;
    hooks->add(sums);
  }
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;
};

}  // namespace
}  // namespace lsnn::cpu
