// Tests of the emulator: correct kernels in all orders of their threads, and the planted bugs of
// emulator_bugs.h.
//
// Without arguments: all kernels without data races, also under sanitizers. `list`: the bugs, and
// which builds must catch them. `bug NAME`: one bug; returns 1 and prints its symptom if it is
// caught, else 0. `speed`: time of a switch between threads. emulator_bugs.sh runs all of these.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>

#include "emulator_bugs.h"
#include "emulator_kernels.h"

namespace emulator::test {
namespace {

int checks = 0;
std::set<std::string> failed;
void check(bool good, const std::string& what) {
  checks++;
  if (!good && failed.insert(what).second) std::printf("FAILED %s\n", what.c_str());
}

// ------------------------------------------------------------------------------------------ checks
void check_blocks(const std::string& order) {
  std::vector<int> out(128, -1);
  launch({.block = 128, .shared = 400}, [&] { early_exit(out.data(), 100); });
  for (int i = 0; i < 128; i++) check(out[i] == (i < 100 ? 99 - i : -1), order + "early_exit");
  launch({.block = 64}, [&] { votes(out.data()); });
  for (int i = 0; i < 64; i++) check(out[i] == 22 + 100 + 10000, order + "votes");
  launch({.block = 128, .shared = 512}, [&] { two_groups(out.data()); });
  for (int i = 0; i < 128; i++)
    check(out[i] == i / 64 * 64 + 63 - i % 64 + (i < 64 ? 2 : 4), order + "two_groups");
  launch({.block = 40, .shared = 160}, [&] { part_of_a_block(out.data()); });
  for (int i = 0; i < 40; i++) check(out[i] == 39 - i, order + "part_of_a_block");
  std::vector<float> poison(32);
  launch({.block = 32, .shared = 128}, [&] { uninitialised(poison.data()); });
  for (float x : poison) check(std::isnan(x), order + "poison");
  std::vector<uint3> places(4 * 3 * 2 * 30);
  launch({.grid = {4, 3, 2}, .block = {5, 3, 2}}, [&] { indices(places.data()); });
  for (unsigned i = 0; i < places.size(); i++)
    check(places[i].x == i / 30 / 12 && places[i].y == i % 30 / 15 && places[i].z == i % 15 / 5,
          order + "indices");
}

void check_warps(const std::string& order) {
  std::vector<int> out(64);
  launch({.block = 64}, [&] { warp_scan(out.data()); });
  for (int i = 0, sum = 0; i < 64; i++)
    check(out[i] == (sum = i % 32 ? sum + i : i), order + "warp_scan");
  launch({.block = 64, .shared = 256}, [&] { exchange_in_warp(out.data()); });
  for (int i = 0; i < 64; i++) check(out[i] == i, order + "exchange_in_warp");
  std::vector<unsigned> masks(32);
  launch({.block = 32}, [&] { disjoint_masks(masks.data()); });
  for (unsigned i = 0; i < 32; i++)
    check(masks[i] == (i % 2 ? 0xaaaa0000 : 0x55550000), order + "disjoint_masks");
  std::vector<double> values(128);
  launch({.block = 32}, [&] { shuffles(values.data()); });
  for (int i = 0; i < 32; i++) {
    check(values[i] == i / 8 * 8 + 3.25, order + "shfl");
    check(values[32 + i] == (i ^ 5) + 0.25, order + "shfl_xor");
    check(values[64 + i] == (i % 16 + 3 < 16 ? i + 3 : i) + 0.25, order + "shfl_down");
    check(values[96 + i] == (i % 16 >= 3 ? i - 3 : i) + 0.25, order + "shfl_up");
  }
  launch({.block = 32}, [&] { rounds(masks.data()); });
  unsigned even = 0, odd = 0;
  for (unsigned round = 0; round < 20; round++) {
    even += round * round;
    for (unsigned i = 1; i < 32; i += 2) odd += i > round;
  }
  for (unsigned i = 0; i < 32; i++) check(masks[i] == even + (i % 2 ? odd : 0), order + "rounds");
}

void check_copies(const std::string& order) {
  constexpr unsigned width = 64;
  for (int n : {0, 1, 2, 3, 4, 9}) {
    std::vector<float> rows(width * 9), out(width * 9, -1);
    for (unsigned i = 0; i < rows.size(); i++) rows[i] = float(i);
    launch({.block = width, .shared = 4 * width * stages},
           [&] { staged(rows.data(), n, out.data()); });
    for (unsigned i = 0; i < out.size(); i++)
      check(out[i] == (i < width * unsigned(n) ? float(i) : -1), order + "staged");
  }
}

void check_products(const std::string& order) {
  check(fragments_are_right(false), order + "fragments of a product");
  check(counted_stores_are_right(bugs::Sending::right), order + "stores that a barrier counts");
}

void check_grids(const std::string& order) {
  std::vector<unsigned> bins(8);
  float sum = 0;
  double largest = 0;
  launch({.grid = 10, .block = 64}, [&] { histogram(bins.data(), &sum, &largest); });
  for (unsigned n : bins) check(n == 80, order + "histogram");
  check(sum == 320 && largest == 9063, order + "histogram's sum and maximum");
  int data = 0, seen = 0;
  unsigned flag = 0;
  launch({.grid = 2, .cooperative = true}, [&] { wait_for_flag(&data, &flag, &seen); });
  check(seen == 42, order + "wait_for_flag");
  std::vector<uint64_t> words(12);
  std::vector<int> sums(2);
  launch({.grid = 2, .cooperative = true}, [&] { tagged_words(words.data(), sums.data()); });
  check(sums[0] == 155 && sums[1] == 150, order + "tagged_words");
  std::vector<int> out(8 * 32), memory(4 * 32);
  launch({.grid = 8, .block = 32, .shared = 128, .cluster = 4}, [&] { cluster_push(out.data()); });
  for (int i = 0; i < 8 * 32; i++)
    check(out[i] == (i / 128 * 4 + (i / 32 + 3) % 4) * 100 + i % 32, order + "cluster_push");
  launch({.grid = 8, .block = 32, .shared = 256, .cluster = 4}, [&] { split_barrier(out.data()); });
  for (int i = 0; i < 8 * 32; i++)
    check(out[i] == 150 + 6 * ((i / 32 + 3) % 4), order + "split_barrier");
  launch({.grid = 4, .block = 32, .cooperative = true},
         [&] { grid_steps(memory.data(), out.data()); });
  for (int i = 0; i < 128; i++) check(out[i] == (127 - i) * 3, order + "grid_steps");
}

const char* name_of(Order order) {
  return order == Order::forward ? "forward" : order == Order::reverse ? "reverse" : "random";
}

template <class F> void in_all_orders(const F& f) {
  for (Order order : {Order::forward, Order::reverse, Order::random})
    for (unsigned yields : {0u, 64u})
      for (uint64_t seed = 1; seed <= (order == Order::random ? 5 : 1); seed++) {
        options() = {.order = order, .seed = seed, .yield_in_256 = yields, .spin_limit = 100'000};
        f(std::string(name_of(order)) + " " + std::to_string(yields) + " " + std::to_string(seed) +
          ": ");
      }
}

void check_bug(const Bug& bug, const std::string& order) {
  std::string said = "nothing";
  try {
    bug.good();
  } catch (const Error& e) {
    said = e.what();
  }
  check(said.find(bug.error) != said.npos, order + bug.name + " said " + said);
  check(said.find("_bugs.h:") != said.npos, order + bug.name + " names no line: " + said);
}

int run_all() {
  in_all_orders([](const std::string& order) {
    try {
      check_blocks(order);
      check_warps(order);
      check_copies(order);
      check_products(order);
      check_grids(order);
    } catch (const Error& e) {
      check(false, order + e.what());
    }
    for (const Bug& bug : all_bugs)
      if (bug.error) check_bug(bug, order);
  });
  std::printf("test_emulator: %d checks, %d failures\n", checks, (int)failed.size());
  return failed.empty() ? 0 : 1;
}

int run_bug(const std::string& name) {
  int noticed = 0;
  for (const Bug& bug : all_bugs)
    if (name == bug.name)
      in_all_orders([&](const std::string& order) {
        std::string what;
        try {
          if (!bug.good()) what = "wrong result";
        } catch (const Error& e) {
          what = e.what();
        }
        if (!what.empty() && !noticed++) std::printf("%s%s\n", order.c_str(), what.c_str());
      });
  return noticed ? 1 : 0;
}

// ------------------------------------------------------------------------------------------- speed
template <class F> double seconds(const F& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int measure() {
  for (Order order : {Order::forward, Order::random})
    for (unsigned threads : {32u, 256u, 1024u}) {
      options() = {.order = order};
      const unsigned steps = 3'000'000 / threads;
      const double t = seconds([=] {
        launch({.block = threads}, [=] {
          for (unsigned i = 0; i < steps; i++) __syncthreads();
        });
      });
      std::printf("%s, %u threads: %.1f ns a switch\n", name_of(order), threads,
                  t * 1e9 / steps / threads);
    }
  options() = {};
  const double t = seconds([] { launch({.grid = 2000, .block = 256}, [] {}); });
  std::printf("start and end of a thread: %.1f ns\n", t * 1e9 / 2000 / 256);
  constexpr unsigned n = 256, steps = 5000;
  std::vector<float> weights(n * n, 0.001f), v(n);
  std::vector<unsigned> spikes(n);
  for (unsigned i = 0; i < n; i++) v[i] = float(i) / n;
  const double r = seconds([&] {
    launch({.block = n, .shared = n / 8},
           [&] { recurrent(weights.data(), v.data(), spikes.data(), steps); });
  });
  unsigned total = 0;
  for (unsigned count : spikes) total += count;
  std::printf("%u neurons, a spike in %.2f of their steps: %.1f million thread-steps a second\n", n,
              total / double(n * steps), n * steps / r / 1e6);
  return 0;
}

}  // namespace
}  // namespace emulator::test

int main(int n, char** arguments) {
  using namespace emulator::test;
  const std::string what = n > 1 ? arguments[1] : "";
  if (what == "bug" && n > 2) return run_bug(arguments[2]);
  if (what == "speed") return measure();
  if (what != "list") return run_all();
  for (const Bug& bug : all_bugs) std::printf("%s %s\n", bug.name, bug.builds);
  return 0;
}
