// Ctrl-C during a long pass: Python's signal handlers run during the pass, and their exceptions end
// it.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../alif.h"

namespace lsnn::binding {

// The exception of a signal handler that ended the last pass in finish(), or None; returned once.
pybind11::object take_signal_exception();

// For one call of an operator, on its thread. Handlers run only on Python's main thread; calls from
// other threads are never interrupted.
class SignalWatch {
 public:
  Interrupt interrupt() { return {wanted, this}; }
  // Throws std::runtime_error if a handler raised: the results are void. take_signal_exception()
  // returns the exception.
  void finish() const;

 private:
  using Clock = std::chrono::steady_clock;
  static bool wanted(void* watch);
  void look();

  const std::thread::id caller_ = std::this_thread::get_id();
  std::atomic<bool> stopped_{false};
  Clock::time_point last_ = Clock::now();  // of the caller
};

}  // namespace lsnn::binding
