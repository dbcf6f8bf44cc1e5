// Ctrl-C during a long pass: Python's signal handlers run while the kernels do, and an exception of
// theirs ends the pass.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "../alif.h"

namespace lsnn::binding {

// What a signal handler raised during the last pass that finish() has ended, or None; only once.
pybind11::object take_signal_exception();

// Belongs to one call of an operator, made on the thread that makes it. Handlers run on Python's
// main thread alone; a call from any other thread is never interrupted.
class SignalWatch {
 public:
  Interrupt interrupt() { return {wanted, this}; }
  // Throws std::runtime_error where a handler has raised: the results are void.
  // take_signal_exception() has what it raised.
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
