// Lists of synapses whose weights another thread changes between counting and listing: each row
// must stay within its own entries, with ascending columns.
#pragma once
#include "../../cpu/synapse_lists.h"
#include "../check.h"

namespace lsnn::test {

// Whether the lists have exactly the counted entries, with synapses or zeros.
inline bool keeps_to_its_places(const Layer& l, const cpu::Sparse<float>& rows, uint32_t counted) {
  bool good = rows.start[l.S * l.N] == counted;
  for (int64_t r = 0; r < l.S * l.N; r++)
    for (uint32_t i = rows.start[r]; i < rows.start[r + 1]; i++) {
      const int64_t k = rows.column[i], j = r % l.N;
      const float weight = matrix<float>(l, l.delay ? 0 : r / l.N)[j * l.N + k];
      good = good && k < l.N && (i == rows.start[r] || rows.column[i - 1] <= k) &&
             (rows.value[i] == 0 || rows.value[i] == weight);
    }
  return good;
}

inline void check_changed_weights() {
  const int64_t N = 37, delays[] = {0, 2};
  std::vector<int64_t> delay(N * N);
  for (int64_t i = 0; i < N * N; i++) delay[i] = delays[i % 2];
  // N more than a row has, for a loop that would run past it
  const std::vector<float> few(2 * N * N + N, 0), many(2 * N * N + N, 1);
  for (bool own_delays : {false, true})
    for (bool become_many : {false, true}) {
      at_hand = std::string("weights that become ") + (become_many ? "many" : "few") +
                (own_delays ? ", with delays of their own" : "");
      std::vector<float> w = become_many ? few : many;
      for (int64_t i = 0; i < 2 * N * N; i += 5) w[i] = 2;
      Layer l{};
      l.N = N;
      l.S = 2;
      l.D = 3;
      l.delays = delays;
      l.delay = own_delays ? delay.data() : nullptr;
      l.w = w.data();
      l.w_stride_s = N * N;
      l.w_stride_j = N;
      l.w_stride_k = 1;
      cpu::SynapseLists<float> lists;
      lists.count(l, false, {cpu::run_serially, 1});
      const auto counted = (uint32_t)lists.entries();
      std::copy_n((become_many ? many : few).begin(), 2 * N * N, w.begin());
      for (int64_t i = 2 * N * N; i < (int64_t)w.size(); i++) w[i] = 1;
      lists.list(l, {cpu::run_serially, 1});
      check(counted > 0 && keeps_to_its_places(l, lists.rows(), counted),
            "a list keeps to its places");
    }
}

}  // namespace lsnn::test
