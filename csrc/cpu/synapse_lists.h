// Lists of the synapses of a layer, for products and sums by list. For run.cpp, which is compiled
// once.
#pragma once
#include <algorithm>
#include <vector>

#include "layout.h"
#include "parallel.h"

namespace lsnn::cpu {
namespace {

// Calls body(m, j, row) for all neurons j and matrices m of the weights; row [N], 0 on the diagonal
// without autapses.
template <class T, class F>
void each_row_of_weights(const Layer& l, Parallel parallel, const F& body) {
  constexpr int64_t side = 32;
  const int64_t N = l.N, blocks = (N + side - 1) / side;
  parallel_for(
      serial_if_few(parallel, matrices(l) * N * N), matrices(l) * blocks, [&](int64_t block) {
        const int64_t m = block / blocks, j0 = block % blocks * side, j1 = std::min(N, j0 + side);
        const T* from = matrix<T>(l, m) + j0 * l.w_stride_j;
        std::vector<T> rows;
        if (l.w_stride_k != 1 || !l.autapses) {
          rows.resize((j1 - j0) * N);
          copy_rows({run_serially, 1}, j1 - j0, N, from, l.w_stride_j, l.w_stride_k, rows.data(),
                    N);
          for (int64_t j = j0; !l.autapses && j < j1; j++) rows[(j - j0) * N + j] = T(0);
        }
        for (int64_t j = j0; j < j1; j++)
          body(m, j, rows.empty() ? from + (j - j0) * l.w_stride_j : rows.data() + (j - j0) * N);
      });
}

// The index of a synapse's delay in `delays`, where each synapse has its own delay; -1: not found.
struct DelayIndex {
  const int64_t* delay = nullptr;  // [N,N]
  int64_t N = 0;
  std::vector<int32_t> index;  // [D]

  DelayIndex() = default;
  explicit DelayIndex(const Layer& l) : delay(l.delay), N(l.N), index(l.D, -1) {
    for (int64_t s = 0; s < l.S; s++) index[l.delays[s]] = (int32_t)s;
  }
  int64_t operator()(int64_t j, int64_t k) const {
    const int64_t d = delay[j * N + k];
    return d >= 0 && d < (int64_t)index.size() ? index[d] : -1;
  }
};

// Synapses of a layer, in rows of [S * N]: nonzero ones, or all that act. They are counted first,
// then listed, as a list needs the starts of its rows.
template <class T> class SynapseLists {
 public:
  // Counts; all: zero ones too, where each synapse has its own delay.
  void count(const Layer& l, bool all, Parallel parallel) {
    const int64_t N = l.N, rows = l.S * N;
    all_ = all;
    start_.assign(rows + 1, 0);
    if (matrices(l) != l.S) delay_index_ = DelayIndex(l);
    each_row_of_weights<T>(l, parallel, [&](int64_t m, int64_t j, const T* row) {
      uint32_t* const n = start_.data() + 1 + m * N + j;
      if (matrices(l) == l.S) {
        uint32_t n_entries = 0;
        for (int64_t k = 0; k < N; k++) n_entries += row[k] != T(0);
        *n = n_entries;
      } else {
        each_entry(N, j, row, [&](int64_t s, int64_t) { n[s * N]++; });
      }
    });
    for (int64_t r = 0; r < rows; r++) start_[r + 1] += start_[r];
  }
  int64_t entries() const { return start_.empty() ? 0 : start_.back(); }

  // Another thread, such as an optimizer, may change weights meanwhile: a row keeps its counted
  // size; excess entries are dropped, missing ones are zeros.
  void list(const Layer& l, Parallel parallel) {
    const int64_t N = l.N;
    column_.resize(entries());
    value_.resize(all_ ? 0 : entries());
    each_row_of_weights<T>(l, parallel, [&](int64_t m, int64_t j, const T* row) {
      if (matrices(l) == l.S) {
        uint32_t at = start_[m * N + j];
        const uint32_t end = start_[m * N + j + 1];
        for (int64_t k = 0; k < N && at < end; k++) {
          // overwritten unless it is an entry
          column_[at] = (uint16_t)k;
          value_[at] = row[k];
          at += row[k] != T(0);
        }
        return fill(at, end, N);
      }
      std::vector<uint32_t> to(l.S);
      for (int64_t s = 0; s < l.S; s++) to[s] = start_[s * N + j];
      each_entry(N, j, row, [&](int64_t s, int64_t k) {
        if (to[s] == start_[s * N + j + 1]) return;
        const uint32_t at = to[s]++;
        column_[at] = (uint16_t)k;
        if (!all_) value_[at] = row[k];
      });
      for (int64_t s = 0; s < l.S; s++) fill(to[s], start_[s * N + j + 1], N);
    });
  }

  // Groups of consecutive delays whose columns fit in 16 bits; the first of each.
  static std::vector<int64_t> first_of_groups(const Layer& l) {
    std::vector<int64_t> first;
    for (int64_t s = 0; s < l.S; s++)
      if (first.empty() || (l.delays[s] - l.delays[first.back()] + 1) * l.N > 1 << 16)
        first.push_back(s);
    return first;
  }
  static int64_t count_groups(const Layer& l) { return (int64_t)first_of_groups(l).size(); }

  // Concatenates the rows of a neuron for the delays of each group.
  void group(const Layer& l, Parallel parallel) {
    const int64_t N = l.N;
    std::vector<int64_t> first = first_of_groups(l);
    const int64_t groups = (int64_t)first.size();
    for (int64_t s : first) group_delay_.push_back(l.delays[s]);
    first.push_back(l.S);
    for (int64_t g = 0; g < groups; g++)
      span_ = std::max(span_, l.delays[first[g + 1] - 1] - group_delay_[g] + 1);
    if (groups == l.S) return;  // a group is a row
    group_start_.assign(groups * N + 1, 0);
    for (int64_t g = 0, at = 0; g < groups; g++)
      for (int64_t j = 0; j < N; j++) {
        for (int64_t s = first[g]; s < first[g + 1]; s++)
          at += start_[s * N + j + 1] - start_[s * N + j];
        group_start_[g * N + j + 1] = (uint32_t)at;
      }
    place_.resize(entries());
    group_value_.resize(entries());
    parallel_for(serial_if_few(parallel, entries()), groups * N, [&](int64_t r) {
      const int64_t g = r / N, j = r % N;
      uint32_t at = group_start_[r];
      for (int64_t s = first[g]; s < first[g + 1]; s++)
        for (uint32_t i = start_[s * N + j]; i < start_[s * N + j + 1]; i++, at++) {
          place_[at] = (uint16_t)((l.delays[s] - group_delay_[g]) * N + column_[i]);
          group_value_[at] = value_[i];
        }
    });
  }

  Sparse<T> rows() const { return {start_.data(), column_.data(), value_.data()}; }
  SparseGroups<T> groups() const {
    const Sparse<T> own{group_start_.data(), place_.data(), group_value_.data()};
    return {(int64_t)group_delay_.size(), span_, group_delay_.data(),
            group_start_.empty() ? rows() : own};
  }

 private:
  bool all_ = false;
  DelayIndex delay_index_;
  std::vector<uint32_t> start_, group_start_;
  std::vector<uint16_t> column_, place_;
  std::vector<T> value_, group_value_;
  std::vector<int64_t> group_delay_;
  int64_t span_ = 1;

  // Fills the entries [at, end) of a row of N columns with zeros, keeping the ascending order.
  void fill(uint32_t at, uint32_t end, int64_t N) {
    for (; at < end; at++) {
      column_[at] = (uint16_t)(N - 1);
      if (!all_) value_[at] = T(0);
    }
  }

  // Calls body(s, k) for the entries of a row of the single matrix, with delays[s].
  template <class F>
  void each_entry(int64_t N, int64_t j, const T* row, const F& body) const {
    for (int64_t k = 0; k < N; k++) {
      if (!all_ && row[k] == T(0)) continue;
      const int64_t s = delay_index_(j, k);
      if (s >= 0) body(s, k);
    }
  }
};

}  // namespace
}  // namespace lsnn::cpu
