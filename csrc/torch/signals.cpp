#include "signals.h"

#include <stdexcept>
#include <utility>

namespace py = pybind11;

namespace lsnn::binding {
namespace {

PyObject* raised = nullptr;  // by a handler; guarded by the GIL

}  // namespace

py::object take_signal_exception() {
  if (!raised) return py::none();
  return py::reinterpret_steal<py::object>(std::exchange(raised, nullptr));
}

bool SignalWatch::wanted(void* watch) {
  auto& self = *static_cast<SignalWatch*>(watch);
  if (!self.stopped_.load(std::memory_order_relaxed) && std::this_thread::get_id() == self.caller_)
    self.look();
  return self.stopped_.load(std::memory_order_relaxed);
}

void SignalWatch::look() {
  const auto now = Clock::now();
  if (now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  if (!Py_IsInitialized()) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  if (PyErr_CheckSignals() != 0) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace) PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    Py_XDECREF(std::exchange(raised, value));
    stopped_.store(true, std::memory_order_relaxed);
  }
  PyGILState_Release(state);
}

void SignalWatch::finish() const {
  if (stopped_.load(std::memory_order_relaxed)) throw std::runtime_error("interrupted by a signal");
}

}  // namespace lsnn::binding
