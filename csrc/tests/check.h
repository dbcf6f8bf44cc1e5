// Comparisons of the C++ test programs, and the count of failed cases.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>

#include "problem.h"

namespace lsnn::test {

inline std::string at_hand;           // the case that runs
inline std::set<std::string> failed;  // the cases that failed: each prints its first failure only
inline void check(bool good, const std::string& what) {
  if (good || !failed.insert(at_hand).second) return;
  std::printf("FAILED %s: %s\n", at_hand.c_str(), what.c_str());
  std::fflush(stdout);  // keeps the output if the program is stopped
}
inline int failures() { return (int)failed.size(); }
inline std::string place(const char* what, int name, int64_t i) {
  return std::string(what) + ", " + name_text[name] + "[" + std::to_string(i) + "]";
}
inline std::string differ(double got, double wanted) {
  char text[80];
  std::snprintf(text, sizeof text, " is %.17g, wanted %.17g", got, wanted);
  return text;
}

// The part of a table of cases selected by LSNN_CASES=k/n: the k-th of n, k from 0.
struct Part { size_t first = 0, of = 1; };
inline Part requested_part() {
  Part part;
  const char* requested = std::getenv("LSNN_CASES");
  if (!requested) return part;
  at_hand = "LSNN_CASES";
  const bool read = std::sscanf(requested, "%zu/%zu", &part.first, &part.of) == 2;
  check(read && part.first < part.of, "expected k/n, 0 <= k < n");
  return read && part.of ? part : Part{};
}

// Outputs [from, to) must be bitwise identical. The poison NaN equals nothing, so that unwritten
// outputs fail.
template <class T> void check_same(const char* what, const Run<T>& got, const Run<T>& wanted,
                                   int from, int to) {
  for (int name = from; name < to; name++)
    for (int64_t i = 0, n = size_of(got.c, name); i < n; i++)
      if (got.written(name, i) && !(got.b[name][i] == wanted.b[name][i]))
        return check(false, place(what, name, i) + differ(got.b[name][i], wanted.b[name][i]));
}
template <class T> void check_same_bits(const char* what, const Run<T>& got, const Run<T>& wanted) {
  for (int64_t i = 0; i < got.n_bits(); i++)
    if (got.bits[i] != wanted.bits[i])
      return check(false, std::string(what) + ", word " + std::to_string(i) + " of the spike bits");
}

// Gradients of steps after an item's last one must be 0.
template <class T> void check_ends(const char* what, const Run<T>& got) {
  for (int64_t i = 0, n = size_of(got.c, gx); i < n; i++)
    if (got.c.after_end(i) && got.b[gx][i] != 0)
      return check(false, place(what, gx, i) + differ(got.b[gx][i], 0));
}

// Outputs [from, to), by default gradients, must be close, relative to the largest number of each.
template <class T, class U>
void check_close(const char* what, const Run<T>& got, const Run<U>& wanted, double tolerance,
                 int from = gx, int to = n_names) {
  for (int name = from; name < to; name++) {
    const int64_t n = size_of(got.c, name);
    double size = 1e-3;
    for (int64_t i = 0; i < n; i++)
      size = got.written(name, i) ? std::max(size, std::fabs(double(wanted.b[name][i]))) : size;
    for (int64_t i = 0; i < n; i++)
      if (got.written(name, i) &&
          !(std::fabs(got.b[name][i] - wanted.b[name][i]) <= tolerance * size))
        return check(false, place(what, name, i) + differ(got.b[name][i], wanted.b[name][i]));
  }
}

// Tolerance of a kernel's forward pass against that of the CPU, relative to the largest number of
// each output. Smooth spikes depend on exp, erf or atan, which differ on a GPU; all else must be
// bitwise identical.
template <class T> double forward_tolerance(const Case& c) {
  const bool is_arithmetic = c.surrogate == Surrogate::triangle ||
                             c.surrogate == Surrogate::boxcar ||
                             c.surrogate == Surrogate::fast_sigmoid;
  if (!has_other_libm || !c.smooth || is_arithmetic) return 0;
  return sizeof(T) == 4 ? 1e-5 : 1e-12;
}
// The outputs of the forward pass up to `to` against those of the CPU.
template <class T> void check_forward(const char* what, const Run<T>& got, const Run<T>& wanted,
                                      int to) {
  const double tolerance = forward_tolerance<T>(got.c);
  if (tolerance > 0) check_close(what, got, wanted, tolerance, z, to);
  else check_same(what, got, wanted, z, to);
}

}  // namespace lsnn::test
