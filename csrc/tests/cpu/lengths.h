// Items of unequal length in one call, against one call for each item with its number of steps.
#pragma once
#include <numeric>

#include "fused.h"

namespace lsnn::test {

// Item b of a case, and how its numbers are copied from those of all items, [rows,B,width]. It has
// fewer rows.
template <class T> struct Alone {
  const Fused<T>& all;
  int64_t b;
  Case c;
  Fused<T> one;

  Alone(const Fused<T>& of, int64_t item, bool ones)
      : all(of),
        b(item),
        c(case_of(of.r.c, item)),
        one(c, of.I, of.O, of.bias, ones) {
    for (int name = 0; name < z; name++)
      if (name != w && name != k) copy(all.r.b[name], c.N, one.r.b[name], size_of(c, name));
    copy(all.in, all.I, one.in, c.T * all.I);
    copy(all.gp, all.O, one.gp, c.T * all.O);
    copy(all.p0, all.O, one.p0, all.O);
    copy(all.gp_last, all.O, one.gp_last, all.O);
  }
  static Case case_of(Case c, int64_t b) {
    c.T = c.length(b);
    c.B = 1;
    c.lengths = {};
    return c;
  }
  int64_t place(int64_t width, int64_t i) const {  // in the batch, of the item's i-th number
    return (i / width * all.r.c.B + b) * width + i % width;
  }
  template <class X> void copy(const Buffer<X>& from, int64_t width, const Buffer<X>& to,
                               int64_t n) const {
    for (int64_t i = 0; i < n; i++) to[i] = from[place(width, i)];
  }
  template <class X>
  void same(const char* what, const Buffer<X>& batch, int64_t width, const Buffer<X>& item,
            int64_t n) const {
    for (int64_t i = 0; i < n; i++)
      if (!(batch[place(width, i)] == item[i]))
        return check(false, text(what, i) + differ(batch[place(width, i)], item[i]));
  }
  void close(const char* what, const Buffer<T>& batch, int64_t width, const Buffer<T>& item,
             int64_t n) const {
    double size = 0;
    for (int64_t i = 0; i < n; i++) size = std::max(size, std::fabs(double(item[i])));
    const double tolerance = (sizeof(T) == 4 ? 1e-4 : 1e-12) * (size + 1e-2);
    for (int64_t i = 0; i < n; i++)
      if (!(std::fabs(batch[place(width, i)] - item[i]) <= tolerance))
        return check(false, text(what, i) + differ(batch[place(width, i)], item[i]));
  }
  std::string text(const char* what, int64_t i) const {
    return "item " + std::to_string(b) + " alone, " + what + "[" + std::to_string(i) + "]";
  }
};

// every: as of Fused::run.
template <class T>
void check_lengths(const Case& c, int64_t I, int64_t O, bool bias, bool ones, int64_t every,
                   Parallel parallel) {
  at_hand = std::string("lengths ") + (sizeof(T) == 4 ? "float " : "double ") + c.text() +
            " I=" + std::to_string(I) + " O=" + std::to_string(O) +
            " every=" + std::to_string(every);
  Fused<T> all(c, I, O, bias, ones);
  std::vector<std::unique_ptr<Alone<T>>> items;
  for (int64_t b = 0; b < c.B; b++) items.push_back(std::make_unique<Alone<T>>(all, b, ones));
  if (ones) all.give_bits();
  all.run(every, parallel);
  const int64_t N = c.N, W = words(N);
  for (const auto& item : items) {
    Fused<T>& one = item->one;
    if (ones) one.give_bits();
    one.run(every, parallel);
    for (int name = z; name < carry; name++)
      if (one.r.written(name, 0) && !(every && name == y))
        item->same(name_text[name], all.r.b[name], N, one.r.b[name], size_of(item->c, name));
    item->same("spike bits", all.r.bits, W, one.r.bits, item->c.T * W);
    item->same("readout", all.p, O, one.p, item->c.T * O);
    item->same("last readout", all.p_last, O, one.p_last, O);
    for (Name name : {gx, gv0, ga0, gi0, gz0})
      if (one.r.written(name, 0))
        item->close(name_text[name], all.r.b[name], N, one.r.b[name], size_of(item->c, name));
    item->close("gradient of the first readout", all.gp0, O, one.gp0, O);
  }
  // Shared gradients: the sum over the calls of single items.
  auto sums = [&](const char* what, int64_t n, const auto& of) {
    std::vector<double> sum(n), size(n);
    for (const auto& item : items)
      for (int64_t i = 0; i < n; i++) {
        const double term = of(item->one)[i];
        sum[i] += term;
        size[i] += std::fabs(term);
      }
    const double largest = std::accumulate(size.begin(), size.end(), 0.0,
                                           [](double a, double b) { return std::max(a, b); });
    for (int64_t i = 0; i < n; i++) near(what, i, of(all)[i], sum[i], largest);
  };
  if (all.r.at(gw))
    sums("gradient of w", size_of(c, gw), [](const Fused<T>& a) { return a.r.b[gw].get(); });
  for (int64_t i = 0; i < n_coefficients; i++)
    if (c.want >> i & 1)
      sums(coefficient_names[i], N, [&](const Fused<T>& a) { return a.r.b[gk].get() + i * N; });
  sums("gradient of w_in", N * I, [](const Fused<T>& a) { return a.gw_in.get(); });
  if (bias) sums("gradient of the bias", N, [](const Fused<T>& a) { return a.gc.get(); });
  sums("gradient of w_out", O * N, [](const Fused<T>& a) { return a.gw_out.get(); });
  // After an item's last step.
  check_ends("backward", all.r);
  for (Name name : {z, trace_v, trace_a, trace_A, smooth_z})
    for (int64_t i = 0; i < c.T * c.item(); i++)
      if (all.r.written(name, i) && c.after_end(i) && all.r.b[name][i] != 0) {
        check(false, place("after the end", name, i) + differ(all.r.b[name][i], 0));
        break;
      }
  for (int64_t model = 0; model < c.T * c.B; model++) {
    if (!c.after_end(model / c.B, model % c.B)) continue;
    for (int64_t i = 0; i < W; i++)
      check(all.r.bits[model * W + i] == 0, "spike bits after the end");
    for (int64_t o = 0; o < O; o++) check(all.p[model * O + o] == 0, "readout after the end");
  }
}

}  // namespace lsnn::test
