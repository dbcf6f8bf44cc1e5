// Threads of the C++ tests: new ones for every call.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

#include "problem.h"

namespace lsnn::test {

inline int n_threads = 1;
inline void run_on_threads(int64_t n, void (*body)(int64_t, void*), void* context) {
  std::atomic<int64_t> next{0};
  auto work = [&] {
    for (int64_t i; (i = next++) < n;) body(i, context);
  };
  std::vector<std::thread> others;
  for (int i = 1; i < n_threads; i++) others.emplace_back(work);
  work();
  for (std::thread& t : others) t.join();
}
// Sets the number of threads and the size of a team for a scope.
struct Threads {
  Threads(int threads, int members) {
    n_threads = threads;
    options.team_size = members;
  }
  ~Threads() {
    n_threads = 1;
    options.team_size = 0;
  }
};
inline Parallel parallel() { return {run_on_threads, n_threads}; }

}  // namespace lsnn::test
