#include "prepared_layer.h"

#include <cstring>

#include "arguments.h"

namespace lsnn::binding {

PreparedLayer::Memory PreparedLayer::copy(Address from, int64_t bytes) {
  Memory memory(cpu::take_block(std::max<int64_t>(bytes, 1)));
  if (from) std::memcpy(memory.get(), (const void*)from, bytes);
  return memory;
}

PreparedLayer::PreparedLayer(bool is_wide, int64_t N, const std::vector<int64_t>& constants,
                             const std::vector<double>& numbers, std::vector<int64_t> all_delays,
                             Address given, Address weights, Address each_delay,
                             Address stored_weights, bool with_autapses,
                             std::vector<std::pair<Address, int64_t>> from, bool recorded)
    : wide(is_wide),
      stored(stored_weights),
      autapses(with_autapses),
      delays(std::move(all_delays)),
      sources(std::move(from)),
      layer{} {
  const Constants c = read_constants(constants, numbers, n_coefficients);
  check_choices(c);
  LSNN_EXPECT(N >= 1, "N: expected at least 1, got ", N);
  LSNN_EXPECT((weights != 0) == !delays.empty(),
              "delays: expected at least one with w and none without it, got ", delays.size());
  const int64_t size = wide ? 8 : 4, NP = cpu::padded(N);
  if (wide) check_coefficients((const double*)given, N, c.dampening, 0);
  else check_coefficients((const float*)given, N, c.dampening, 0);
  coefficients = copy(given, n_coefficients * N * size);
  if (weights) {
    w = copy(0, N * NP * size);
    for (int64_t j = 0; j < N; j++) {  // packed rows, padded with zeros
      char* row = (char*)w.get() + j * NP * size;
      std::memcpy(row, (const char*)weights + j * N * size, N * size);
      std::memset(row + N * size, 0, (NP - N) * size);
    }
  }
  if (stored) as_stored = copy(stored, N * N * size);
  if (each_delay) delay = copy(each_delay, N * N * (int64_t)sizeof(int64_t));
  int64_t sum = 0;
  for (auto [_, n] : sources) sum += n;
  bytes = copy(0, sum);
  char* to = (char*)bytes.get();
  for (auto [address, n] : sources) {
    std::memcpy(to, (const void*)address, n);
    to += n;
  }
  layer = {.T = 0,
           .B = 0,
           .N = N,
           .model = models[c.dynamics],
           .surrogate = (Surrogate)c.surrogate,
           .dampening = c.dampening,
           .n_ref = c.refractory,
           .smooth = false,
           .delays = delays.data(),
           .S = (int64_t)delays.size(),
           .D = delays.empty() ? 1 : 1 + delays.back(),
           .delay = (const int64_t*)delay.get(),
           .w = w.get(),
           .w_stride_j = NP,
           .w_stride_k = 1,
           .coefficients = coefficients.get(),
           .cutoff = c.cutoff};
  if (recorded && wide) one_step = cpu::pack_for_steps<double>(layer, parallel());
  else if (recorded) one_step = cpu::pack_for_steps<float>(layer, parallel());
  layer.w_in_place = weights != 0;
}

// Whether the weights of all neurons that spiked, in before [D,B,N] and spikes [T,B,N], are bitwise
// those of the caller. A few rows of the stored matrix at a time, as cache lines run along its rows
// and along those of w.
template <class Bits> bool PreparedLayer::weights_hold(int64_t B, int64_t items, const void* before,
                                                       const void* spikes) const {
  const int64_t N = layer.N, NP = layer.w_stride_j;
  std::vector<Bits> any(N, 0);
  auto add = [&](const Bits* z, int64_t n) {
    for (int64_t row = 0; row < n; row++, z += N)
      for (int64_t j = 0; j < N; j++) any[j] |= z[j];
  };
  add((const Bits*)before, layer.D * B);
  add((const Bits*)spikes, items);
  std::vector<int64_t> active;
  for (int64_t j = 0; j < N; j++)
    if (any[j]) active.push_back(j);
  const size_t most = layer.N / 16;  // above it a sequential comparison of all is faster
  if (active.size() > most)
    return !std::memcmp((const void*)stored, as_stored.get(), N * N * sizeof(Bits));
  constexpr int64_t few = 8;
  for (int64_t first = 0; first < N; first += few) {
    Bits other = 0;
    for (int64_t j : active)
      for (int64_t n = first; n < std::min(N, first + few); n++)
        other |= (j != n || autapses ? ((const Bits*)stored)[n * N + j] : Bits(0)) ^
                 ((const Bits*)layer.w)[j * NP + n];
    if (other) return false;
  }
  return true;
}

namespace {
// A state from addresses of v, a, i, r, z.
State state_at(const std::vector<Address>& of) {
  void* at[5];
  for (size_t k = 0; k < 5; k++) at[k] = (void*)of[k];
  const auto [v, a, i, r, z] = at;
  return {.v = v, .a = a, .i = i, .r = r, .z = z};
}
}  // namespace

bool PreparedLayer::sources_hold() const {
  const char* kept = (const char*)bytes.get();
  for (auto [address, n] : sources) {
    if (std::memcmp(kept, (const void*)address, n)) return false;
    kept += n;
  }
  return true;
}

ForwardArgs PreparedLayer::forward_args(int64_t T, int64_t B, Address current,
                                        const std::vector<Address>& first,
                                        const std::vector<Address>& last, Address spikes) const {
  LSNN_EXPECT(first.size() == 5 && last.size() == 5, "first, last: expected 5 addresses each, got ",
              first.size(), " and ", last.size());
  ForwardArgs f{};
  f.layer = layer;
  f.layer.T = T;
  f.layer.B = B;
  f.layer.options = default_options();
  f.x = (const void*)current;
  f.x_stride_t = B * layer.N;
  f.x_stride_b = layer.N;
  f.first = state_at(first);
  f.last = state_at(last);
  f.z = (void*)spikes;
  f.saved.every = segment;
  return f;
}

bool PreparedLayer::run(int64_t T, int64_t B, Address current, const std::vector<Address>& first,
                        const std::vector<Address>& last, Address spikes) const {
  const ForwardArgs f = forward_args(T, B, current, first, last, spikes);
  if (!sources_hold()) return false;
  if (wide) cpu::forward<double>(f, parallel());
  else cpu::forward<float>(f, parallel());
  if (!stored) return true;
  // The spikes of the last step have not been multiplied yet.
  const int64_t items = T > 1 ? (T - 1) * B : 0;
  return wide ? weights_hold<uint64_t>(B, items, f.first.z, (void*)spikes)
              : weights_hold<uint32_t>(B, items, f.first.z, (void*)spikes);
}

bool PreparedLayer::is_current() const {
  const int64_t n = layer.N * layer.N * (wide ? 8 : 4);
  return sources_hold() && (!stored || !std::memcmp((const void*)stored, as_stored.get(), n));
}

void PreparedLayer::record(int64_t B, Address current, const std::vector<Address>& first,
                           const std::vector<Address>& last, Address spikes, Address y,
                           Address bits) const {
  LSNN_EXPECT(one_step, "recorded: expected a layer prepared with it, got one without");
  ForwardArgs f = forward_args(1, B, current, first, last, spikes);
  f.saved.y = (void*)y;
  f.saved.bits = (uint32_t*)bits;
  one_step->forward(f, parallel());
}

void PreparedLayer::adjoint(int64_t B, int64_t want, const std::vector<Address>& first, Address y,
                            Address bits, const std::vector<Address>& g,
                            const std::vector<Address>& to,
                            const std::vector<Address>& sums) const {
  LSNN_EXPECT(one_step, "recorded: expected a layer prepared with it, got one without");
  LSNN_EXPECT(first.size() == 5 && g.size() == 5 && to.size() == 5 && sums.size() == 3 && to[0],
              "first, g, to, sums: expected 5, 5, 5 and 3 addresses, to[0] not 0, got ",
              first.size(), ", ", g.size(), ", ", to.size(), " and ", sums.size());
  check_kappa(layer, want, wide);
  BackwardArgs f{};
  f.layer = layer;
  f.layer.T = 1;
  f.layer.B = B;
  f.layer.options = default_options();
  f.first = state_at(first);
  f.saved.y = (void*)y;
  f.saved.bits = (uint32_t*)bits;
  f.saved.every = segment;
  f.gz = (const void*)g[0];
  f.gz_stride_t = B * layer.N;
  f.gz_stride_b = layer.N;
  f.gz_stride_n = 1;
  f.glast = state_at({g[1], g[2], g[3], 0, g[4]});
  f.want = (unsigned)want;
  f.gx = (void*)to[0];
  f.gfirst = state_at({to[1], to[2], to[3], 0, to[4]});
  f.gw = (void*)sums[0];
  f.gbias = (void*)sums[1];
  f.gcoefficients = (void*)sums[2];
  one_step->backward(f, parallel());
}

}  // namespace lsnn::binding
