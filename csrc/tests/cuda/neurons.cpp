#include "neurons.h"

#include <cstring>

#include "../../../lsnn_ext/codegen/cuda_threads.h"
#include "../../cuda/neuron.h"
#include "../check.h"
#include "orders.h"

namespace lsnn::test {
namespace {

using neuron::Block, neuron::Fixed, neuron::Job, neuron::Operators;
using Numbers = std::vector<double>;

// Classes as generate.py writes them; the order of their values is that of rows.h.
//
//   u = k0 u' + c0,  v = k1 (v' - z') + u + c1,  z = [v > 1] with the slope (1 + z) / 4
struct Branches : Operators<double> {
  static constexpr Fixed<2> currents{}, states{}, coefficients{}, gradients{};
  static constexpr Fixed<0> means{};
  static constexpr int n_values = 18, vectors = 1;
  static constexpr bool is_spike = true, has_product = true;
  static constexpr uint32_t carried = 3;

  LSNN_FUSE_INLINE void advance(V* x) {
    x[11] = x[5] * x[2] + x[0];
    x[12] = x[6] * (x[3] - x[4]) + x[11] + x[1];
  }
  LSNN_FUSE_INLINE void forward(V* x) {
    advance(x);
    x[13] = number(x[12] > 1);
  }
  LSNN_FUSE_INLINE void adjoint_alone(V* x) {
    x[12] = x[8] + x[9] * (1 + x[10]) / 4;
    x[11] = x[7] + x[12];
    x[13] = x[5] * x[11];
    x[14] = x[6] * x[12];
    x[15] = -x[14];
  }
  LSNN_FUSE_INLINE void adjoint(V* x) {
    adjoint_alone(x);
    x[16] = x[11] * x[2];
    x[17] = x[12] * (x[3] - x[4]);
  }
};

//   v = k0 v' + c0 + 0.3 z',  w = 2 v,  z = sigmoid(v); w' is not read
struct Analog : Operators<double> {
  static constexpr Fixed<1> currents{}, coefficients{}, gradients{};
  static constexpr Fixed<2> states{};
  static constexpr Fixed<0> means{};
  static constexpr int n_values = 14, vectors = 1;
  static constexpr bool is_spike = false, has_product = true;
  static constexpr uint32_t carried = 1;

  LSNN_FUSE_INLINE void advance(V* x) { x[9] = x[4] * x[1] + x[0] + 0.3 * x[3]; }
  LSNN_FUSE_INLINE void forward(V* x) {
    advance(x);
    x[10] = 2 * x[9];
    x[11] = sigmoid_(x[9]);
  }
  LSNN_FUSE_INLINE void adjoint_alone(V* x) {
    x[9] = x[5] + 2 * x[6] + x[7] * x[8] * (1 - x[8]);
    x[10] = x[4] * x[9];
    x[11] = 0;
    x[12] = 0.3 * x[9];
  }
  LSNN_FUSE_INLINE void adjoint(V* x) {
    adjoint_alone(x);
    x[13] = x[9] * x[1];
  }
};

template <class Step> cuda::NeuronModule module_of() {
  using Body = void (*)(const void*, const Block&);
#define LSNN_BODY(name)                                                        \
  [](const void* job, const Block& block) {                                    \
    neuron::Threads<Step>::name(*static_cast<const Job<double>*>(job), block); \
  },
  const Body bodies[] = {LSNN_NEURON_KERNELS(LSNN_BODY)};
#undef LSNN_BODY
  cuda::NeuronModule module{{}, Step::has_product};
  for (int i = 0; i < (int)cuda::NeuronKernel::count; i++) module.functions[i] = (void*)bodies[i];
  return module;
}

struct NeuronCase {
  const char* name;
  int64_t T = 20, B = 2, N = 35;
  std::vector<int64_t> delays = {0};
  bool own_delays = false;  // of each synapse; else with several delays a matrix for each
  std::vector<int64_t> lengths = {};
  bool autapses = true, existing = false, has_state = true, has_traces = true, save = true;
  unsigned want = 3;
};

const NeuronCase cases[] = {
    {.name = "one delay", .delays = {2}, .autapses = false},
    {.name = "words", .N = 70, .has_state = false},
    {.name = "delays of the synapses", .delays = {0, 2, 3}, .own_delays = true},
    {.name = "a matrix for each delay", .delays = {0, 5}, .want = 2},
    {.name = "lengths", .delays = {0, 3}, .lengths = {20, 17, 2, 0}, .existing = true},
    {.name = "no weights", .delays = {}, .has_traces = false},
    {.name = "nothing wanted", .has_state = false, .has_traces = false, .want = 0},
    {.name = "nothing saved", .T = 5, .save = false},
    {.name = "many items", .T = 33, .N = 1, .delays = {1}, .lengths = drawn_lengths(33, 130)},
    {.name = "one neuron", .T = 1, .B = 1, .N = 1},
    {.name = "no steps", .T = 0},
    {.name = "no items", .B = 0},
};

void expect_close(const char* name, const Numbers& got, const Numbers& wanted) {
  double size = 1e-3;
  for (double number : wanted) size = std::fmax(size, std::fabs(number));
  for (size_t i = 0; i < wanted.size(); i++)
    if (!(std::fabs(got[i] - wanted[i]) <= 1e-12 * size))
      return check(false,
                   std::string(name) + "[" + std::to_string(i) + "]" + differ(got[i], wanted[i]));
}
Numbers draw(int stream, int64_t n, double low = -1, double high = 1) {
  Numbers found((size_t)n);
  for (int64_t i = 0; i < n; i++) found[(size_t)i] = drawn(400 + stream, i, low, high);
  return found;
}
Numbers unwritten(int64_t n) { return Numbers((size_t)n, NAN); }

// Arrays [n,...], with pointers to each.
struct List {
  std::vector<Numbers> each;
  std::vector<void*> pointers;
  List(int n, bool exists, const auto& make) : pointers((size_t)n, nullptr) {
    for (int i = 0; i < n; i++) each.push_back(make(i));
    for (int i = 0; i < n && exists; i++) pointers[(size_t)i] = each[(size_t)i].data();
  }
};

State state(Numbers* z, List& states) {
  State found{};
  found.z = z ? z->data() : nullptr;
  found.others = states.pointers.data();
  return found;
}

template <class Step> struct NeuronRun {
  static constexpr int K = Step::currents, S = Step::states, C = Step::coefficients,
                       G = Step::gradients;
  const NeuronCase& c;
  const int64_t T = c.T, B = (int64_t)(c.lengths.empty() ? c.B : c.lengths.size()), N = c.N,
                n_delays = (int64_t)c.delays.size(), D = n_delays ? 1 + c.delays.back() : 1,
                matrices = c.own_delays ? 1 : n_delays, row = K * N + 3;
  const cuda::NeuronModule module = module_of<Step>();
  const cuda::Product product{&cuda::add_on_host<double>, nullptr};
  Numbers x = draw(0, T * B * row, -0.5, 1.5), w = draw(1, matrices * K * N * N, -0.3, 0.3),
          k = draw(2, C* N, 0.3, 0.9), first_z = draw(3, D * B * N, -1, 2);
  std::vector<int64_t> delay_of;
  List first{S, c.has_state, [&](int s) { return draw(10 + s, B * N); }};

  NeuronRun(const NeuronCase& of) : c(of) {
    for (int64_t i = 0; c.own_delays && i < K * N * N; i++)
      delay_of.push_back(c.delays[size_t(drawn(401, i, 0, double(n_delays)))]);
    for (double& z : first_z) z = !c.has_state || z < 0 ? 0 : z > 1 ? 1 : z;
    for (Numbers& state : first.each)
      if (!c.has_state) state.assign(state.size(), 0);
    if (c.existing)
      for (size_t i = 0; i < w.size(); i += 3) w[i] = 0;
  }

  int64_t length(int64_t b) const { return c.lengths.empty() ? T : c.lengths[(size_t)b]; }
  int64_t at(int64_t t, int64_t b, int64_t n) const { return (t * B + b) * N + n; }
  int64_t at(int64_t t, int64_t b, int k, int64_t n) const { return ((t * B + b) * K + k) * N + n; }
  // The matrix of delay d, stored transposed.
  double weight(int64_t d, int k, int64_t j, int64_t n) const {
    const int64_t of = matrices > 1 ? d : 0;
    return w[size_t(((of * K + k) * N + n) * N + j)];
  }
  bool acts(int64_t d, int k, int64_t j, int64_t n) const {
    return (c.autapses || j != n) &&
           (!c.own_delays || delay_of[size_t((k * N + j) * N + n)] == c.delays[(size_t)d]);
  }
  Layer layer(Design design) const {
    Layer l{};
    l.T = T;
    l.B = B;
    l.N = N;
    l.S = n_delays;
    l.D = D;
    l.delays = c.delays.data();
    l.delay = c.own_delays ? delay_of.data() : nullptr;
    l.w = w.data();
    l.w_stride_s = K * N * N;
    l.w_stride_current = N * N;
    l.w_stride_j = 1;
    l.w_stride_k = N;
    l.coefficients = k.data();
    l.autapses = c.autapses;
    l.lengths = c.lengths.empty() ? nullptr : c.lengths.data();
    l.smooth = !Step::is_spike;
    l.options.design = design;
    l.neuron = &module;
    l.sizes = {.states = S, .traces = S, .currents = K, .saved = K, .gradients = G};
    return l;
  }
  void launch(const auto& args) const {
    const int64_t bytes = cuda::neuron_workspace<double>(args);
    const Buffer<char> workspace = buffer<char>(bytes);
    std::memset(workspace.get(), 0xff, (size_t)bytes);  // NaN
    cuda::run_neuron<double>(args, workspace.get(), product, nullptr);
  }

  void check_all(Design design) {
    // ------------------------------------------------------------------------------------- forward
    auto rows = [&](int) { return unwritten(T * B * N); };
    auto items = [&](int) { return unwritten(B * N); };
    Numbers z = rows(0), last_z = unwritten(D * B * N), y = unwritten(T * B * K * N),
            carry = unwritten(segments(T, chunk) * S * B * N), number_z = rows(0);
    List traces(S, c.has_traces, rows), last(S, true, items);
    std::vector<uint32_t> bits(size_t(T * B * words(N)), ~0u);
    ForwardArgs f{};
    f.layer = layer(design);
    f.x = x.data();
    f.x_stride_t = B * row;
    f.x_stride_b = row;
    f.first = state(c.has_state ? &first_z : nullptr, first);
    f.last = state(&last_z, last);
    f.z = z.data();
    f.other_traces = traces.pointers.data();
    f.save = c.save;
    if (c.save)
      f.saved = {.y = y.data(),
                 .bits = bits.data(),
                 .z = Step::is_spike ? nullptr : number_z.data(),
                 .carry = carry.data(),
                 .every = chunk};
    launch(f);

    Numbers wanted_z(z.size()), wanted_y(y.size()), wanted_last_z(last_z.size());
    std::vector<Numbers> before = first.each, wanted_traces((size_t)S, Numbers(z.size()));
    std::vector<Numbers> past((size_t)S, Numbers(z.size()));  // states before each step
    auto spike = [&](int64_t t, int64_t b, int64_t n) {
      return t < 0 ? first_z[size_t(at(-1 - t, b, n))] : wanted_z[size_t(at(t, b, n))];
    };
    for (int64_t b = 0; b < B; b++) {
      for (int64_t t = 0; t < length(b); t++)
        for (int64_t n = 0; n < N; n++) {
          double v[Step::n_values];
          for (int k = 0; k < K; k++) v[k] = x[size_t((t * B + b) * row + k * N + n)];
          for (int64_t d = 0; d < n_delays; d++)
            for (int64_t j = 0; j < N; j++)
              if (const double z_j = spike(t - 1 - c.delays[(size_t)d], b, j); z_j != 0)
                for (int k = 0; k < K; k++)
                  if (acts(d, k, j, n)) v[k] += z_j * weight(d, k, j, n);
          for (int k = 0; k < K; k++) wanted_y[size_t(at(t, b, k, n))] = v[k];
          for (int s = 0; s < S; s++)
            past[s][size_t(at(t, b, n))] = v[K + s] = before[s][size_t(b * N + n)];
          v[K + S] = spike(t - 1, b, n);
          for (int i = 0; i < C; i++) v[K + S + 1 + i] = k[size_t(i * N + n)];
          Step::forward(v);
          const double* result = v + K + 2 * S + 3 + C;
          for (int s = 0; s < S; s++)
            before[s][size_t(b * N + n)] = wanted_traces[s][size_t(at(t, b, n))] = result[s];
          wanted_z[size_t(at(t, b, n))] = result[S];
        }
      for (int64_t i = 0; i < D * N; i++)
        wanted_last_z[size_t(at(i / N, b, i % N))] = spike(length(b) - 1 - i / N, b, i % N);
    }
    expect_close("z", z, wanted_z);
    expect_close("last z", last_z, wanted_last_z);
    for (int s = 0; s < S; s++) {
      expect_close("last state", last.each[s], before[s]);
      if (c.has_traces) expect_close("trace", traces.each[s], wanted_traces[s]);
    }
    if (!c.save) return;
    expect_close("saved currents", y, wanted_y);
    if (!Step::is_spike) expect_close("saved spikes", number_z, wanted_z);
    for (int64_t i = 0; i < T * B * 32 * words(N) && Step::is_spike; i++) {
      const int64_t n = i % (32 * words(N)), step = i / (32 * words(N));
      const bool fires = n < N && wanted_z[size_t(step * N + n)] > 0;
      check((bits[size_t(i / 32)] >> i % 32 & 1) == fires, "bits, word " + std::to_string(i / 32));
    }

    // ------------------------------------------------------------------------------------ backward
    Numbers gz = draw(20, T * B * (N + 2)), gx = unwritten(T * B * K * N), g_last_z(last_z.size()),
            gw = unwritten(matrices * K * N * N), gk = unwritten(G * N),
            g_first_z = unwritten(D * B * N);
    if (c.has_state) g_last_z = draw(21, D * B * N);
    auto given = [&](int stream, int64_t n, bool exists) {
      return exists ? draw(stream, n) : Numbers((size_t)n);
    };
    List g_traces(S, c.has_traces, [&](int s) { return given(22 + s, T * B * N, c.has_traces); });
    List g_last(S, c.has_state, [&](int s) { return given(26 + s, B * N, c.has_state); });
    List g_first(S, c.has_state, items);
    const std::vector<const void*> of_traces(g_traces.pointers.begin(), g_traces.pointers.end());
    BackwardArgs g{};
    g.layer = f.layer;
    g.first = f.first;
    g.saved = f.saved;
    g.gz = gz.data();
    g.gz_stride_t = B * (N + 2);
    g.gz_stride_b = N + 2;
    g.gz_stride_n = 1;
    g.other_traces = of_traces.data();
    g.glast = state(c.has_state ? &g_last_z : nullptr, g_last);
    g.gfirst = state(c.has_state ? &g_first_z : nullptr, g_first);
    g.want = c.want & ((1u << G) - 1);
    g.existing = c.existing;
    g.gx = gx.data();
    g.gw = n_delays && c.want ? gw.data() : nullptr;
    g.gcoefficients = gk.data();
    launch(g);

    Numbers wanted_x(gx.size()), wanted_w(gw.size()), wanted_k(gk.size()), wanted_first_z(first_z);
    std::vector<Numbers> d_states = g_last.each;
    for (int64_t b = 0; b < B; b++) {
      const int64_t end = length(b);
      Numbers local((size_t)N);  // dL/dz but for the product
      for (int64_t t = end - 1; t >= -D; t--)
        for (int64_t n = 0; n < N; n++) {
          double dz = local[(size_t)n];
          for (int64_t d = 0; d < n_delays; d++)
            if (const int64_t reached = t + 1 + c.delays[(size_t)d]; reached >= 0 && reached < end)
              for (int64_t i = 0; i < K * N; i++)
                if (acts(d, int(i / N), n, i % N))
                  dz += weight(d, int(i / N), n, i % N) *
                        wanted_x[size_t(at(reached, b, int(i / N), i % N))];
          if (end - 1 - t < D) dz += g_last_z[size_t(at(end - 1 - t, b, n))];
          local[(size_t)n] = 0;
          if (t < 0) {
            wanted_first_z[size_t(at(-1 - t, b, n))] = dz;
            continue;
          }
          double v[Step::n_values];
          const size_t here = size_t(at(t, b, n)), item = size_t(b * N + n);
          for (int s = 0; s < S; s++) v[K + s] = past[s][here];
          v[K + S] = spike(t - 1, b, n);
          double* const d = v + K + S + 1 + C;
          for (int i = 0; i < C; i++) v[K + S + 1 + i] = k[size_t(i * N + n)];
          for (int s = 0; s < S; s++) d[s] = d_states[s][item] + g_traces.each[s][here];
          d[S] = dz + gz[size_t((t * B + b) * (N + 2) + n)];
          d[S + 1] = spike(t, b, n);
          Step::adjoint(v);
          const double* result = d + S + 2;
          for (int k = 0; k < K; k++) wanted_x[size_t(at(t, b, k, n))] = result[k];
          for (int s = 0; s < S; s++) d_states[s][item] = result[K + s];
          local[(size_t)n] = result[K + S];
          for (int i = 0; i < G; i++) wanted_k[size_t(i * N + n)] += result[K + S + 1 + i];
          for (int64_t d = 0; d < n_delays; d++)
            for (int64_t i = 0; i < K * N; i++) {
              const int k = int(i / N);
              const int64_t j = i % N, of = matrices > 1 ? d : 0;
              if (acts(d, k, j, n) && (!c.existing || weight(d, k, j, n) != 0))
                wanted_w[size_t(((of * K + k) * N + j) * N + n)] +=
                    spike(t - 1 - c.delays[(size_t)d], b, j) * result[k];
            }
        }
    }
    expect_close("gradient of x", gx, wanted_x);
    if (g.gw) expect_close("gradient of w", gw, wanted_w);
    for (int i = 0; i < G; i++) {
      auto part = [&](const Numbers& of) {
        return Numbers(of.begin() + i * N, of.begin() + (i + 1) * N);
      };
      if (g.want >> i & 1) expect_close("gradient of a coefficient", part(gk), part(wanted_k));
    }
    for (int s = 0; s < S && c.has_state; s++)
      expect_close("gradient of the first state", g_first.each[s], d_states[s]);
    if (c.has_state) expect_close("gradient of the first z", g_first_z, wanted_first_z);
  }
};

// `step` has no barriers: one order suffices.
template <class Step> void check_neuron(const char* name, Design only, int64_t& runs) {
  for (const NeuronCase& c : cases)
    for (Design design : {Design::gather, Design::step})
      for (int i = 0; i < (design == Design::gather ? 3 : 1); i++) {
        if ((design == Design::gather && !Step::is_spike) ||
            (only != Design::automatic && only != design))
          continue;
        const int order = int(runs++);
        set_order(order);
        at_hand = std::string("neurons, ") + name + ", " + c.name +
                  (design == Design::gather ? ", gather" : ", step") + ", order " +
                  std::to_string(order % 3);
        try {
          NeuronRun<Step>(c).check_all(design);
        } catch (const std::exception& error) {
          check(false, error.what());
        }
      }
}

}  // namespace

int64_t check_all_neurons(Design only) {
  int64_t runs = 0;
  check_neuron<Branches>("branches", only, runs);
  check_neuron<Analog>("analog", only, runs);
  return runs;
}

}  // namespace lsnn::test
