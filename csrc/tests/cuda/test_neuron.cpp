// The host's side of a generated neuron on a GPU, with a driver that python_tests/cuda/
// test_neuron_driver.py puts in place: test_neuron FILE runs an integrator of one state forwards
// and backwards, v = k v' + c and z = [v > 1] with slope 1, and compares it with sums of its own.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../cuda/neuron.h"

using namespace lsnn;

namespace {

constexpr int64_t T = 19, B = 2, N = 3;
constexpr double k = 0.75;

double difference = 0;
void compare(double got, double wanted) {
  difference = std::fmax(difference, std::fabs(got - wanted));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) return 2;
  cuda::bind_context(3);
  const cuda::NeuronModule module = cuda::load_neuron(argv[1], true);
  std::vector<double> x(T * B * N), w(N * N), coefficients(N, k), z(T * B * N), v(B * N),
      last_z(B * N), currents(T * B * N), carry(2 * B * N);
  std::vector<uint32_t> bits(T * B);
  for (size_t i = 0; i < x.size(); i++) x[i] = 0.3 + 0.1 * double(i * 7 % 11);
  for (size_t i = 0; i < w.size(); i++) w[i] = 0.2 * double(i * 5 % 7) - 0.6;
  const int64_t delay = 0;
  Layer l{};
  l.T = T;
  l.B = B;
  l.N = N;
  l.S = l.D = 1;
  l.delays = &delay;
  l.w = w.data();
  l.w_stride_j = N;
  l.w_stride_k = 1;
  l.coefficients = coefficients.data();
  l.neuron = &module;
  l.options.design = Design::step;  // this driver has no barriers
  l.sizes = {.states = 1, .traces = 1, .currents = 1, .saved = 1, .gradients = 1};
  void *state[] = {v.data()}, *none[] = {nullptr};
  const void* no_traces[] = {nullptr};
  const cuda::Product product{&cuda::add_on_host<double>, nullptr};
  auto memory = [](int64_t bytes) { return std::vector<char>((size_t)bytes + 128); };
  auto aligned = [](std::vector<char>& m) { return m.data() + (-(intptr_t)m.data() & 127); };

  ForwardArgs f{};
  f.layer = l;
  f.x = x.data();
  f.x_stride_t = B * N;
  f.x_stride_b = N;
  f.last = {.z = last_z.data(), .others = state};
  f.first = {.z = nullptr, .others = none};
  f.z = z.data();
  f.other_traces = none;
  f.save = true;
  f.saved = {.y = currents.data(), .bits = bits.data(), .carry = carry.data(), .every = chunk};
  std::vector<char> workspace = memory(cuda::neuron_workspace<double>(f));
  void* const stream = (void*)8;
  cuda::run_neuron<double>(f, aligned(workspace), product, stream);

  // L = sum of z
  std::vector<double> gz(T * B * N, 1), gx(T * B * N), gw(N * N), gk(N), g_last(B * N);
  void* g_states[] = {nullptr};
  BackwardArgs g{};
  g.layer = l;
  g.first = f.first;
  g.saved = f.saved;
  g.gz = gz.data();
  g.gz_stride_t = B * N;
  g.gz_stride_b = N;
  g.gz_stride_n = 1;
  g.other_traces = no_traces;
  g.glast = {.z = nullptr, .others = none};
  g.gfirst = {.z = nullptr, .others = g_states};
  g.want = 1;
  g.gx = gx.data();
  g.gw = gw.data();
  g.gcoefficients = gk.data();
  workspace = memory(cuda::neuron_workspace<double>(g));
  cuda::run_neuron<double>(g, aligned(workspace), product, stream);

  std::vector<double> gw_own(N * N), gk_own(N);
  int64_t spikes = 0;
  for (int64_t b = 0; b < B; b++) {
    double u[T + 1][N] = {}, s[T + 1][N] = {};  // of the step before
    auto at = [&](int64_t t, int64_t n) { return (t * B + b) * N + n; };
    for (int64_t t = 0; t < T; t++)
      for (int64_t n = 0; n < N; n++) {
        double c = x[at(t, n)];
        for (int64_t j = 0; j < N; j++) c += s[t][j] * w[j * N + n];
        u[t + 1][n] = k * u[t][n] + c;
        s[t + 1][n] = u[t + 1][n] > 1;
        spikes += u[t + 1][n] > 1;
        compare(z[at(t, n)], s[t + 1][n]);
        compare(bits[t * B + b] >> n & 1, s[t + 1][n]);
        if (t == T - 1) compare(v[b * N + n], u[T][n]);
        if (t == T - 1) compare(last_z[b * N + n], s[T][n]);
      }
    double du[N] = {}, dc[N] = {};
    for (int64_t t = T - 1; t >= 0; t--) {
      double product_of[N] = {};
      for (int64_t j = 0; j < N; j++)
        for (int64_t n = 0; n < N; n++) product_of[j] += dc[n] * w[j * N + n];
      for (int64_t n = 0; n < N; n++) {
        dc[n] = k * du[n] + 1 + product_of[n];
        du[n] = dc[n];
        gk_own[n] += dc[n] * u[t][n];
        compare(gx[at(t, n)], dc[n]);
        for (int64_t j = 0; j < N; j++) gw_own[j * N + n] += dc[n] * s[t][j];
      }
    }
  }
  for (int64_t i = 0; i < N * N; i++) compare(gw[i], gw_own[i]);
  for (int64_t n = 0; n < N; n++) compare(gk[n], gk_own[n]);
  std::printf("%lld spikes, largest difference %g\n", (long long)spikes, difference);
  return difference < 1e-9 && spikes > 10 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("%s\n", error.what());
  return 3;
}
