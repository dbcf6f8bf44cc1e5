// The CPU path without Python: every case of a table, in float and double, on one thread and on
// three.
//
// The forward pass must be bitwise identical to equations.h. Gradients in double must agree with
// its derivatives, and with finite differences of the forward pass if spikes are smooth; those in
// float with the backward pass in double on the same saved tensors. Three threads, with profiling
// on, must give the results of one. LSNN_CPU selects the instruction set; a word on the command
// line selects the cases whose name contains it, LSNN_CASES=k/n the k-th of n parts of the table, k
// from 0. Sanitizer builds run this program, too.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "../../bfloat16.h"
#include "../../cpu/counters.h"
#include "../../cpu/layout.h"
#include "../check.h"
#include "../leaky.h"
#include "../linear.h"
#include "../table.h"
#include "../threads.h"
#include "block_cache.h"
#include "changed_weights.h"
#include "equations.h"
#include "fused.h"
#include "lengths.h"

namespace lsnn::test {

void* allocate(size_t bytes) { return std::malloc(bytes ? bytes : 1); }
void release(void* p) { std::free(p); }

namespace {

// -------------------------------------------------------------------------------------- recurrence
// Compares the gradients of a group of inputs, multiplied with its direction, with the slope of the
// loss.
void check_slope(const char* what, const Run<double>& r, int group, double slope,
                 double tolerance) {
  const int name = gradient_of[std::min<int>(group, k)];
  const int64_t first = group < k ? 0 : (group - k) * r.c.N,
                n = group < k ? size_of(r.c, name) : r.c.N;
  if (!r.written(name, first)) return;
  double sum = 0, size = 1e-3;
  for (int64_t i = 0; i < n; i++) {
    const double term = r.b[name][first + i] * direction(group, i);
    sum += term;
    size += std::fabs(term);
  }
  check(std::fabs(sum - slope) <= tolerance * size,
        place(what, name, first) + ": slope" + differ(sum, slope));
}

double loss(const Run<double>& r) {
  const std::pair<Name, Name> terms[] = {{gz, z},           {gv, trace_v},     {ga, trace_a},
                                         {gA, trace_A},     {gv_last, v_last}, {ga_last, a_last},
                                         {gi_last, i_last}, {gz_last, z_last}};
  double sum = 0;
  for (auto [gradient, name] : terms)
    for (int64_t i = 0; i < size_of(r.c, name); i++) {
      const bool of_steps = name == z || name == trace_v || name == trace_a || name == trace_A;
      if (!of_steps || !r.c.after_end(i)) sum += r.b[gradient][i] * r.b[name][i];
    }
  return sum;
}
void check_finite_differences(const Run<double>& r) {
  for (int group = 0; group < n_groups; group++) {
    double slope = 0;
    for (double h : {1e-5, -1e-5}) {
      const Run<double> moved(r.c);
      const int name = std::min<int>(group, k);
      const int64_t first = group < k ? 0 : (group - k) * r.c.N,
                    n = group < k ? size_of(r.c, name) : r.c.N;
      for (int64_t i = 0; i < n; i++) moved.b[name][first + i] += h * direction(group, i);
      cpu::forward<double>(moved.forward_args(), parallel());
      slope += loss(moved) / (2 * h);
    }
    check_slope("finite differences", r, group, slope, 1e-6);
  }
}

// The backward pass in double on the tensors saved by the forward pass in float.
void check_float(const Run<float>& got) {
  const Run<double> twin(got);
  cpu::backward<double>(twin.backward_args(), parallel());
  check_close("float and double", got, twin, 1e-4);
}

// One algorithm of the backward product, and of the sums in the forward pass, for each case in
// turn: bitwise identical forward, gradients to rounding, and identical on three threads.
template <class T> void check_algorithm(const Run<T>& wanted) {
  static int next = 0;
  // Of each two calls one is in float, one in double. An instruction set without bfloat16 has rows
  // of floats for it.
  const ProductAlgorithm algorithm = ProductAlgorithm(1 + next++ / 2 % (n_products - 1));
  options.product = algorithm;
  options.l1_size = 4096;  // small, so that products come in blocks of columns
  at_hand += std::string(" product=") + product_names[(int)algorithm];
  const Run<T> one(wanted, z), three(wanted, z);
  for (const Run<T>* r : {&one, &three}) {
    const Threads threads(r == &one ? 1 : 3, r == &one ? 1 : 2 + next / 2 % 2);
    cpu::forward<T>(r->forward_args(), parallel());
    cpu::backward<T>(r->backward_args(), parallel());
  }
  check_same("forward", one, wanted, z, gx);
  check_same_bits("forward", one, wanted);
  check_close("backward", one, wanted,
              sizeof(T) == 8                        ? 1e-10
              : algorithm == ProductAlgorithm::bf16 ? 0.03
                                                    : 1e-4);
  check_same("three threads", three, one, z, n_names);
  options = {};
}

// Gradients of nonzero weights only: bitwise identical to those among all; the others are 0.
template <class T> void check_existing(const Case& c, const Run<T>& wanted) {
  const Run<T> one(wanted, z), team(wanted, z);
  for (const Run<T>* r : {&one, &team}) {
    const Threads threads(r == &one ? 1 : 3, r == &one ? 1 : 3);
    cpu::forward<T>(r->forward_args(), parallel());
    BackwardArgs b = r->backward_args();
    b.existing = true;
    cpu::backward<T>(b, parallel());
    check_same("existing", *r, wanted, z, gw);
    check_same("existing", *r, wanted, gv0, n_names);
    const WStrides from = w_strides(c);
    bool same = true;
    for (int64_t s = 0; s < c.matrices() && r->at(gw); s++)
      for (int64_t j = 0; j < c.N; j++)
        for (int64_t n = 0; n < c.N; n++) {
          const int64_t at = (s * c.N + j) * c.N + n;
          const bool exists = r->b[w][from.at(s, j, n)] != T(0);
          same = same && r->b[gw][at] == (exists ? wanted.b[gw][at] : T(0));
        }
    check(same, "gradients of existing synapses");
  }
}

// y saved as bfloat16: identical forward, and gradients as with the rounded numbers.
void check_save_bf16(const Case& c, const Run<float>& wanted) {
  const Run<float> small(wanted, z), large(wanted);
  round_all(large.b[y], size_of(c, y));
  for (const Run<float>* r : {&small, &large}) {
    const Threads threads(3, 1 + (c.N > 32));
    ForwardArgs f = r->forward_args();
    BackwardArgs b = r->backward_args();
    f.saved.y_is_bf16 = b.saved.y_is_bf16 = r == &small;
    if (r == &small) cpu::forward<float>(f, parallel());
    cpu::backward<float>(b, parallel());
  }
  check_same("y as bfloat16", small, wanted, z, y);
  check_same_bits("y as bfloat16", small, wanted);
  for (int64_t i = 0; i < size_of(c, y); i++) {
    const uint32_t bits = (uint32_t)reinterpret_cast<const uint16_t*>(small.b[y].get())[i] << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    if (!(value == large.b[y][i]))
      return check(false, place("y as bfloat16", y, i) + differ(value, large.b[y][i]));
  }
  check_same("gradients of y as bfloat16", small, large, gx, n_names);
}
void check_save_bf16(const Case&, const Run<double>&) {}

// Every upper half of a float with lower halves around the tie: round to nearest even.
void check_bfloat16() {
  at_hand = "bfloat16";
  for (uint32_t upper = 0; upper < 1 << 16; upper++)
    for (uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t all = upper << 16 | lower;
      float x;
      std::memcpy(&x, &all, sizeof x);
      const float got = bfloat16(x), wanted = rounded(x);
      if (std::isnan(x) ? !std::isnan(got)
                        : !(got == wanted) || std::signbit(got) != std::signbit(wanted))
        return check(false, "rounding of " + std::to_string(all) + differ(got, wanted));
    }
}

int64_t n_runs = 0, n_steps = 0, n_spikes = 0, n_tiles = 0, n_members = 0;

template <class T> void run_both(const Run<T>& r) {
  cpu::forward<T>(r.forward_args(), parallel());
  cpu::backward<T>(r.backward_args(), parallel());
}
template <class T> void run_case(const Case& c) {
  at_hand =
      std::string(cpu::instruction_set()) + (sizeof(T) == 4 ? " float " : " double ") + c.text();
  const Run<T> one(c), wanted(one, z), three(one, z), team(one, z), unsaved(one, z);
  cpu::forward<T>(one.forward_args(), parallel());
  const Slopes<T> slopes = equations(one, wanted);
  check_same("forward", one, wanted, z, gx);
  check_same_bits("forward", one, wanted);
  cpu::backward<T>(one.backward_args(), parallel());
  check_ends("backward", one);
  if constexpr (sizeof(T) == 4) check_float(one);
  else {
    for (int group = 0; group < n_groups; group++)
      check_slope("derivatives", one, group, slopes[group], 1e-9);
    if (!c.detach) check_finite_differences(one);
  }
  int64_t spikes = 0;
  for (int64_t i = 0; i < one.n_bits(); i++) spikes += __builtin_popcount(one.bits[i]);
  // A tile on each thread, then all of them in one team.
  for (const Run<T>* r : {&three, &team}) {
    const Threads threads(3, r == &three ? 1 : 3);
    const std::string name = r == &three ? "three threads" : "a team of three";
    int64_t counts[cpu::n_counters];
    cpu::set_profiling(true);
    cpu::forward<T>(r->forward_args(), parallel());
    cpu::backward<T>(r->backward_args(), parallel());
    cpu::set_profiling(false);
    cpu::take_counters(counts);
    check_same(name.c_str(), *r, one, z, n_names);
    check_same_bits(name.c_str(), *r, one);
    check(counts[cpu::Count::neuron_steps] == c.item_steps() * c.N &&
              counts[cpu::Count::spikes] == spikes,
          "counted in the forward pass of " + name);
    check(counts[cpu::Count::replayed] == c.item_steps() * c.N &&
              counts[cpu::Count::active] <= c.item_steps() * c.N,
          "counted in the backward pass of " + name);
    int64_t tile_steps = 0;  // a tile ends with its longest item, which is its first one
    for (int64_t b = 0; b < c.B; b += cpu::tile_items(c.B)) tile_steps += c.length(b);
    check(counts[cpu::Count::product_steps_dense] + counts[cpu::Count::product_steps_active] +
                  counts[cpu::Count::product_steps_sparse] <=
              tile_steps,
          "products counted in the backward pass of " + name);
    if (r == &team && c.N > 64) {
      n_tiles += counts[cpu::Count::tiles];
      n_members += counts[cpu::Count::members];
    }
  }
  if (!c.lengths.empty() && c.length(c.B - 1) == c.T) {  // all alike: as without lengths
    Case alike = c;
    alike.lengths = {};
    const Run<T> without(alike);
    cpu::forward<T>(without.forward_args(), parallel());
    cpu::backward<T>(without.backward_args(), parallel());
    check_same("without lengths", without, one, z, n_names);
  }
  cpu::forward<T>(unsaved.forward_args(false), parallel());
  check_same("nothing saved", unsaved, one, z, y);
  if (c.N < 400) {
    check_synapses(one, run_both<T>);
    check_existing(c, one);
    check_algorithm(one);
    check_save_bf16(c, one);
  }
  n_runs++;
  n_steps += c.item_steps() * c.N;
  n_spikes += spikes;
}

// -------------------------------------------------------------------- fused projection and readout
void check_all_fused() {
  const unsigned paper = 1u << SIGMA | 1u << P | 1u << ETA;
  std::vector<Case> cases;
  for (int model = 0; model < n_models; model++)
    for (bool smooth : {false, true})
      cases.push_back({.model = model,
                       .surrogate = Surrogate(model % n_surrogates),
                       .T = 40,
                       .delays = {0, 3},
                       .n_ref = model % 3,
                       .smooth = smooth});
  for (int64_t B : {1, 5, 9, 33})
    for (int64_t N : {1, 33, 64}) {
      cases.push_back({.T = 140, .B = B, .N = N, .n_ref = B % 2, .want = 0, .zero = paper});
      cases.push_back({.model = int(B % n_models),
                       .T = 20,
                       .B = B,
                       .N = N,
                       .delays = {2},
                       .want = 1u << SIGMA});
    }
  cases.push_back({.T = 0, .B = 3, .N = 5});
  cases.push_back({.T = 4, .B = 0, .N = 5});
  for (const Case& c : synapse_cases_fused()) cases.push_back(c);
  for (const Case& c : table_of_lengths())
    if (!c.layout && !c.absent) cases.push_back(c);
  const Part part = requested_part();
  for (size_t i = part.first; i < cases.size(); i += part.of) {
    const Case& c = cases[i];
    const int64_t I = i % 4 == 0 ? 70 : i % 4, O = 1 + i % 3 * 9;
    // each tile on one thread, or on a team of two or three
    const Threads threads(1 + i % 3, 1 + i % 2 * (i % 3));
    check_fused<float>(c, I + 1, O, i % 2, i % 3 == 0, parallel());
    check_fused<double>(c, I + 1, O, i % 2, i % 3 == 1, parallel());
  }
}

// Each item in its own call, on one thread and on several, with and without saved membranes.
void check_all_lengths() {
  const std::vector<Case> cases = table_of_lengths();
  const Part part = requested_part();
  for (size_t i = part.first; i < cases.size(); i += part.of) {
    const Case& c = cases[i];
    if (c.layout) continue;
    const int64_t I = i % 4 == 0 ? 70 : i % 4, O = 1 + i % 3 * 9, every = i % 3 * chunk;
    // Each tile on one thread, or on a team of two or three.
    const Threads threads(1 + i % 3, 1 + i % 2 * (i % 3));
    check_lengths<float>(c, I + 1, O, i % 2, i % 3 == 0, every, parallel());
    check_lengths<double>(c, I + 1, O, i % 2, i % 3 == 1, every, parallel());
  }
}

int run(const char* word) {
  const char* requested = std::getenv("LSNN_CPU");
  try {
    check(!requested || !*requested || !std::strcmp(requested, cpu::instruction_set()),
          "LSNN_CPU is obeyed");
  } catch (const std::runtime_error& error) {
    const bool lacks = std::strstr(error.what(), "of this processor");
    std::printf("test_cpu: %s: %s\n", lacks ? "SKIPPED" : "FAILED", error.what());
    return lacks ? 0 : 1;
  }
  check_block_cache();
  check_bfloat16();
  check_changed_weights();
  check_all_linear();
  if (!*word || std::strstr("fused", word)) check_all_fused();
  if (!*word || std::strstr("lengths", word)) check_all_lengths();
  for (int64_t threads : {1, 3}) {
    check_leaky_on_cpu<float>({run_on_threads, threads});
    check_leaky_on_cpu<double>({run_on_threads, threads});
  }
  const std::vector<Case> all = cpu_table();
  const Case& last = all.back();
  check(cpu::tiles(last.B) * last.D() * last.N * cpu::padded(last.N) * 8 > 256 << 20,
        "more tiles than sums of weight gradients");
  const Part part = requested_part();
  for (size_t i = part.first; i < all.size(); i += part.of) {
    const Case& c = all[i];
    if (c.text().find(word) == std::string::npos) continue;
    if (c.N < 400) run_case<float>(c);  // the largest case is for sizes in double
    run_case<double>(c);
  }
  at_hand = "the table";
  check(n_members == 3 * n_tiles,
        "teams of three have three members: " + std::to_string(n_members) + " in " +
            std::to_string(n_tiles) + " tiles");
  const double rate = double(n_spikes) / double(std::max<int64_t>(n_steps, 1));
  check(*word || (rate > 0.05 && rate < 0.5),
        "networks of the table fire neither seldom nor always");
  std::printf("test_cpu: %s, %d runs, %.1f %% spikes, %d failures\n", cpu::instruction_set(),
              (int)n_runs, 100 * rate, failures());
  return failures() ? 1 : 0;
}

}  // namespace
}  // namespace lsnn::test

int main(int argc, char** argv) {
  setenv("LSNN_CACHE_MB", "64", 1);  // before the cache is first used
  return lsnn::test::run(argc > 1 ? argv[1] : "");
}
