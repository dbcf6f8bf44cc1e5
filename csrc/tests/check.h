// How the C++ test programs compare, and count what differs.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "problem.h"

namespace lsnn::test {

inline int failures = 0;
inline std::string at_hand;  // the case that runs
inline void check(bool good, const std::string& what) {
  if (!good && failures++ < 20) std::printf("FAILED %s: %s\n", at_hand.c_str(), what.c_str());
}
inline std::string place(const char* what, int name, int64_t i) {
  return std::string(what) + ", " + name_text[name] + "[" + std::to_string(i) + "]";
}
inline std::string differ(double got, double wanted) {
  char text[80];
  std::snprintf(text, sizeof text, " is %.17g, wanted %.17g", got, wanted);
  return text;
}

// The part of a table of cases that LSNN_CASES=k/n asks for: the k-th of n, k from 0.
struct Part { size_t first = 0, of = 1; };
inline Part requested_part() {
  Part part;
  const char* requested = std::getenv("LSNN_CASES");
  if (!requested) return part;
  const bool read = std::sscanf(requested, "%zu/%zu", &part.first, &part.of) == 2;
  check(read && part.first < part.of, "LSNN_CASES: expected k/n, 0 <= k < n");
  return read && part.of ? part : Part{};
}

// The outputs [from, to) bit for bit. NaN, the poison, equals nothing, so that this also finds what
// was not written.
template <class T> void check_same(const char* what, const Run<T>& got, const Run<T>& wanted,
                                   int from, int to) {
  for (int name = from; name < to; name++)
    for (int64_t i = 0; i < size_of(got.c, name); i++)
      if (got.written(name, i) && !(got.b[name][i] == wanted.b[name][i]))
        return check(false, place(what, name, i) + differ(got.b[name][i], wanted.b[name][i]));
}
template <class T> void check_same_bits(const char* what, const Run<T>& got, const Run<T>& wanted) {
  for (int64_t i = 0; i < got.n_bits(); i++)
    if (got.bits[i] != wanted.bits[i])
      return check(false, std::string(what) + ", word " + std::to_string(i) + " of the spike bits");
}

// No gradient reaches the steps after an item's last one.
template <class T> void check_ends(const char* what, const Run<T>& got) {
  for (int64_t i = 0; i < size_of(got.c, gx); i++)
    if (got.c.after_end(i) && got.b[gx][i] != 0)
      return check(false, place(what, gx, i) + differ(got.b[gx][i], 0));
}

// Gradients number by number, relative to the largest of each.
template <class T, class U> void check_close(const char* what, const Run<T>& got,
                                             const Run<U>& wanted, double tolerance) {
  for (int name = gx; name < n_names; name++) {
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

}  // namespace lsnn::test
