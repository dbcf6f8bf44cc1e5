// The CUDA kernels against the CPU path, on the table of cases: under the emulator, or compiled by
// nvcc on a GPU.
//
// Every design that can run a case must be bitwise identical to the CPU forward, except smooth
// spikes if exp, erf and atan differ. Gradients must agree to rounding: those of float with the CPU
// in double on the same saved tensors. Under the emulator each design of a case runs in one thread
// order, in turn forward, reverse and random. A second run must be bitwise identical.
//
// Arguments: a word that the name of a case must contain. LSNN_DESIGN selects one route, see
// kernel_routes.h: a design, or kernels of the paper's network. LSNN_CASES=k/n selects the k-th of
// n parts of the table, k from 0. LSNN_OTHER_LIBM=1 changes the last bits of exp, erf and atan in
// the emulated kernels, as on a GPU. The exit status is 0 if all cases passed, 1 if not, 2 without
// a GPU.
#include <cstdlib>
#include <cstring>

#include "../../cpu/run.h"
#include "../../cuda/device.h"
#include "../check.h"
#include "../leaky.h"
#include "../linear.h"
#include "../table.h"
#include "coefficient_sources.h"
#include "device_memory.h"
#include "kernel_routes.h"
#include "other_devices.h"
#if !LSNN_NVCC
#include "launch_limits.h"
#include "neurons.h"
#endif
#include "orders.h"
#include "readout.h"

namespace lsnn::test {

namespace {

void run_serially(int64_t n, void (*body)(int64_t, void*), void* context) {
  for (int64_t i = 0; i < n; i++) body(i, context);
}
constexpr Parallel serial{run_serially, 1};

template <class T> struct Kernels {
  cuda::Plan plan;
  bool save = true, save_bf16 = false;  // save_bf16: y is stored as bfloat16
  void* packed = nullptr;  // see Saved

  ForwardArgs forward_args(const Run<T>& r) const {
    ForwardArgs f = r.forward_args(save);
    f.saved.y_is_bf16 = save_bf16;
    f.saved.packed = packed;
    return f;
  }
  void forward(const Run<T>& r) const { run(forward_args(r), &cuda::forward); }
  void backward(const Run<T>& r) const {
    BackwardArgs f = r.backward_args();
    f.saved.y_is_bf16 = save_bf16;
    f.saved.packed = packed;
    run(f, &cuda::backward);
  }
  int64_t workspace_of(const ForwardArgs& f) const { return cuda::forward_workspace(f, plan); }
  int64_t workspace_of(const BackwardArgs& f) const { return cuda::backward_workspace(f, plan); }
  template <class Args, class Pass> void run(Args f, const Pass& pass) const {
    const Buffer<char> workspace = poisoned(workspace_of(f));
    DeviceMemory device;
    device.translate(f);
    char* own = workspace.get();
    device.translate(own);
    cuda::Plan there = plan;
    device.translate(there.host);
    device.send();
    pass(f, there, own, {&add_product<T>, nullptr}, nullptr);
    device.copy_back();
  }
  static Buffer<char> poisoned(int64_t bytes) {
    Buffer<char> b = buffer<char>(bytes);
    std::memset(b.get(), 0xff, (size_t)bytes);  // NaN
    return b;
  }
};

// Runs a case. An error of the emulator fails only this case; after a fault of a GPU nothing more
// can run.
template <class Body> void run_guarded(const Body& body) {
  try {
    body();
  } catch (const std::exception& error) {
    check(false, error.what());
    if (LSNN_NVCC) throw;
  }
}

int64_t n_runs = 0, n_of[n_routes] = {}, n_backward_by_lsnn = 0;

// Sets the layer's options for a route and returns whether the route can run it. only: the
// requested route, 0: all.
template <class T> bool takes(int route, int only, const Run<T>& r, const cuda::Device& device,
                              Layer& layer) {
  constexpr bool wide = sizeof(T) == 8;
  layer = r.layer();
  layer.options.design = routes[route].design;
  layer.options.kernels = routes[route].kernels;
  layer.bf16_parts = routes[route].bf16_parts;
  const Design design = layer.options.design, forward = cuda::requested_design(layer, true);
  if ((only && only != route) ||
      (forward != Design::automatic && !cuda::forward_pass(forward, device, layer, wide).yes) ||
      !cuda::backward_pass(design, device, layer, wide).yes)
    return false;
  // With all traces this would run the general kernels again; with some it must.
  const ForwardArgs f = r.forward_args();
  if (!routes[route].is_lsnn()) return true;
  const cuda::Plan plan = cuda::choose(device, layer, wide, {});
  if (routes[route].kernels == lsnn::Kernels::matrices && !plan.lsnn_backward) return false;
  return (plan.lsnn || plan.lsnn_backward) && !(f.trace_v && f.trace_a && f.trace_A);
}

// save_bf16: y is stored as bfloat16.
template <class T> void run_case(const Case& c, const cuda::Device& device, bool save_bf16,
                                 int order, int only) {
  constexpr bool wide = sizeof(T) == 8;
  const Run<T> wanted(c);
  cpu::forward<T>(wanted.forward_args(), serial);
  for (int d = 1; d < n_routes; d++) {
    Layer layer;
    if (!takes(d, only, wanted, device, layer)) continue;
    at_hand = std::string(routes[d].name) + (sizeof(T) == 8 ? " double " : " float ") +
              (save_bf16 ? "y as bfloat16 " : "") + "order " + std::to_string(order % 3) + " on " +
              std::to_string(device.sms) + ", " + c.text();
    Kernels<T> kernels{cuda::choose(device, layer, wide, {})};
    const cuda::Pass passes[] = {kernels.plan.forward, kernels.plan.backward};
    for (const cuda::Pass& pass : passes)
      check(pass.quads == 1 || pass.design == Design::gather,
            "only gather has kernels for several quads of a lane");
    const int64_t workspace = cuda::forward_workspace(wanted.forward_args(), kernels.plan) +
                              cuda::backward_workspace(wanted.backward_args(), kernels.plan);
    const bool small = workspace < c.N * c.N * (int64_t)sizeof(T);
    check(c.S() || c.N < 1024 || small, "no memory for weights that are not there");
    set_order(order);
    const Run<T> got(wanted, z), second(wanted, z);
    run_guarded([&] {
      kernels.forward(got);
      check_forward("forward", got, wanted, gx);
      check_same_bits("forward", got, wanted);
      const Run<double> twin(got);  // with the same saved tensors
      // except y: then compare gradients with rounded y, too
      if (save_bf16) {
        kernels.save_bf16 = true;
        kernels.forward(got);
        const auto* small = reinterpret_cast<const uint16_t*>(got.b[y].get());
        for (int64_t i = 0, n = size_of(c, y); i < n; i++) {
          twin.b[y][i] = rounded((float)twin.b[y][i]);
          const uint32_t bits = (uint32_t)small[i] << 16;
          float value;
          std::memcpy(&value, &bits, sizeof value);
          if (!(value == twin.b[y][i]))
            check(false, place("y as bfloat16", y, i) + differ(value, twin.b[y][i]));
        }
      }
      kernels.backward(got);
      BackwardArgs args = got.backward_args();
      args.saved.y_is_bf16 = kernels.save_bf16;
      n_backward_by_lsnn += cuda::by_lsnn(args, kernels.plan);
      cpu::backward<double>(twin.backward_args(), serial);
      check_ends("gradients", got);
      check_close("gradients", got, twin, sizeof(T) == 4 ? routes[d].tolerance() : 1e-11);
      if (routes[d].is_exact() && !save_bf16) {  // only sums round, as with rows of active neurons
        layer.options.design = Design::automatic;
        layer.options.kernels = lsnn::Kernels::rows;
        const Kernels<T> rows{cuda::choose(device, layer, wide, {})};
        const Run<T> by_rows(wanted, z);
        rows.forward(by_rows);
        rows.backward(by_rows);
        const Run<double> numbers(by_rows);
        for (int name = gx; name < n_names; name++)
          std::copy_n(by_rows.b[name].get(), size_of(c, (Name)name), numbers.b[name].get());
        check_close("matrices and rows", got, numbers, 1e-6);
      }
      set_order(order + 1);
      kernels.save = true;
      // weights are packed once for both directions
      const Buffer<char> packed = kernels.poisoned(cuda::packed_numbers(layer) * sizeof(T));
      kernels.packed = packed.get();
      kernels.forward(second);
      kernels.backward(second);
      check_same("another run", second, got, z, y);
      check_same("another run", second, got, gx, n_names);
      kernels.save = false;
      const Run<T> unsaved(wanted, z);
      kernels.forward(unsaved);
      check_forward("nothing saved", unsaved, wanted, y);
      if (c.smooth) return;
      kernels.save = order % 2;  // spikes as bits only
      const Run<T> of_bits(wanted, z);
      ForwardArgs bits_only = kernels.forward_args(of_bits);
      bits_only.z = nullptr;
      bits_only.saved.bits = of_bits.bits.get();
      kernels.run(bits_only, &cuda::forward);
      check_same("bits only", of_bits, wanted, trace_v,
                 kernels.save && !kernels.save_bf16 ? gx : y);
      check_same_bits("bits only", of_bits, wanted);
    });
    n_runs++;
    n_of[d]++;
  }
}

// Results are bitwise identical without a first state and with zeros, and with coefficients from
// the host, 0 or made of sources, and from memory.
void check_no_state(const Case& c, const cuda::Device& device, int order, int only) {
  using T = float;
  const std::initializer_list<Name> state = {v0, a0, i0, z0, r0};
  const Run<T> zeros(c);
  for (Name name : state) std::fill_n(zeros.b[name].get(), size_of(c, name), T(0));
  const CoefficientSources<T> source(c, zeros.b[k], c.zero & ~(1u << Q));
  Case absent = c;
  absent.absent |= set_of(v0, a0, i0, z0, r0, gv0, ga0, gi0, gz0);
  for (int d = 1; d < n_routes; d++) {
    Layer layer;
    if (!takes(d, only, zeros, device, layer)) continue;
    at_hand = std::string("no state, ") + routes[d].name + ", " + c.text();
    Kernels<T> kernels{cuda::choose(device, layer, false, {})};
    set_order(order++);
    const Run<T> wanted(zeros), got(absent);
    std::fill_n(got.b[k].get(), size_of(c, k), T(NAN));
    run_guarded([&] {
      kernels.plan.host = source.host;
      if (c.B) kernels.forward(got);
      else std::copy_n(zeros.b[k].get(), size_of(c, k), source.made.get());
      kernels.plan.host = cuda::HostCoefficients{.zero = source.host.zero};
      for (int64_t i = 0; i < size_of(c, k); i++) {
        const T made = source.made[i], other = zeros.b[k][i];  // another exp has another last bit
        const bool near = i / c.N > KAPPA ? made == other : std::abs(made - other) < T(1e-6);
        if (!near) check(false, place("a coefficient", k, i) + differ(made, other));
      }
      for (const Run<T>* r : {&wanted, &got})
        std::copy_n(source.made.get(), size_of(c, k), r->b[k].get());
      kernels.forward(wanted);
      kernels.backward(wanted);
      kernels.backward(got);
      check_same("no state", got, wanted, z, n_names);
      check_same_bits("no state", got, wanted);
    });
    n_runs++;
    n_of[d]++;
  }
}

// The leaky integrator, in every order of the threads.
template <class T> void check_all_leaky() {
  int order = 0;
  for_leaky_sizes([&](int64_t steps, int64_t n, bool from_zero) {
    set_order(order++);
    auto run = [&](auto f, const auto& kernel) {
      DeviceMemory device;
      device.translate(f);
      device.send();
      kernel(f, sizeof(T) == 8, nullptr);
      device.copy_back();
    };
    auto forward = [&](const LeakyForward& f) { run(f, &cuda::leaky_forward); };
    auto backward = [&](const LeakyBackward& f) { run(f, &cuda::leaky_backward); };
    run_guarded([&] { check_leaky<T>("CUDA", steps, n, from_zero, forward, backward); });
    n_runs++;
  });
}

// The projection of inputs as bits, in every order of the threads: one item of steps and one row
// too many, several tiles and slices, sums of more items than a tensor core adds at a time, columns
// that are not full quads, and empty inputs. Bits beyond the last input are set and must be
// ignored.
void check_all_projections(const cuda::Device& device) {
  const int64_t shapes[][3] = {{0, 3, 2},     {5, 0, 4},      {1, 1, 1},     {17, 31, 33},
                               {64, 64, 132}, {65, 33, 7},    {300, 65, 64}, {40, 140, 220},
                               {601, 80, 36}, {270, 257, 20}, {4300, 5, 7}};
  int order = 0;
  for (auto [R, I, N] : shapes)
    for (bool bias : {false, true}) {
      auto on_device = [&](const auto& pass, bool backward) {
        return [&, backward](Linear l, int run) {
          set_order(order + run);
          for (int64_t r = 0; r < R && I % 32; r++)
            const_cast<uint32_t*>(l.bits)[(r + 1) * words(I) - 1] |= ~0u << I % 32;
          const int64_t bytes = cuda::linear_workspace(l, device, backward);
          const Buffer<char> workspace = Kernels<float>::poisoned(bytes);
          DeviceMemory memory;
          memory.translate(l);
          char* own = workspace.get();
          memory.translate(own);
          memory.send();
          pass(l, device, own, nullptr);
          memory.copy_back();
        };
      };
      run_guarded([&] {
        check_linear<float>("CUDA", {R, I, N, R, bias, false, !bias, true},
                            on_device(cuda::linear_forward, false),
                            on_device(cuda::linear_backward, true));
      });
      order++;
      n_runs++;
    }
}

// The readout of a layer, in every order of the threads.
template <class T> void check_all_readouts(const cuda::Device& device) {
  int order = 0;
  for (const ReadoutCase& c : readout_cases()) {
    set_order(order++);
    const Run<T> layer(c.layer);
    const Kernels<T> kernels{cuda::choose(device, layer.layer(), sizeof(T) == 8, {})};
    run_guarded([&] {
      check_readout<T>(
          c, serial, [&](const ForwardArgs& f) { kernels.run(f, &cuda::forward); },
          [&](const BackwardArgs& f) { kernels.run(f, &cuda::backward); });
    });
    n_runs++;
  }
}

// Runs the cases selected by a word and a part of the table. only: the route, 0: all.
void run_all(const char* word, const Part& part, const cuda::Device& device, int only) {
  if (std::strstr("leaky", word)) {
    check_all_leaky<float>();
    check_all_leaky<double>();
  }
  if (std::strstr("projection", word)) check_all_projections(device);
  if (std::strstr("readout", word)) {
    check_all_readouts<float>(device);
    check_all_readouts<double>(device);
  }
#if !LSNN_NVCC
  if (std::strstr("neurons", word) && !routes[only].is_lsnn())
    n_runs += check_all_neurons(routes[only].design);
#endif
  const std::array<cuda::Device, 4> devices = with_variants(device);
  const std::vector<Case> all = kernel_table();
  for (size_t i = part.first; i < all.size(); i += part.of) {
    const Case& c = all[i];
    if (c.text().find(word) == std::string::npos) continue;
    const int order = int(i);
    const cuda::Device& shape = devices[i % 4];
    run_case<float>(c, shape, i % 3 == 2, order, only);
    if (i % 3 == 2) run_case<float>(c, device, false, order + 1, only);
    if (c.N < 300) run_case<double>(c, device, false, order + 2, only);
    Case plain = c;  // the paper's kernels support no traces
    plain.absent |= set_of(trace_v, trace_a, trace_A, gv, ga, gA);
    for (int route = 1; route < n_routes && plain.absent != c.absent; route++)
      if (routes[route].is_lsnn() && (!only || only == route))
        run_case<float>(plain, shape, false, order, route);
    if (i % 5) continue;
    check_no_state(c, shape, order, only);
  }
  at_hand = routes[only].name;
  if (only && routes[only].is_lsnn() && routes[only].design != Design::gather && !*word)
    check(n_backward_by_lsnn * 2 > n_of[only], "most cases go backwards by the paper's kernel");
}

int run(const char* word) {
  const char* requested = std::getenv("LSNN_DESIGN");
  const Part part = requested_part();
  int only = 0;
  const bool is_asked = requested && *requested;
  for (int d = 1; is_asked && d < n_routes; d++)
    if (!std::strcmp(requested, routes[d].name)) only = d;
  at_hand = "LSNN_DESIGN";
  check(!is_asked || only, "expected the name of a route, see kernel_routes.h");

  const char* other_libm = std::getenv("LSNN_OTHER_LIBM");
#ifdef LSNN_OTHER_LIBM
  has_other_libm = other_libm && *other_libm;
#else
  at_hand = "LSNN_OTHER_LIBM";
  check(!other_libm || !*other_libm, "expected a build that has it, see platform.h");
#endif

  cuda::Device device;
  try {
    device = cuda::current_device();
  } catch (const std::runtime_error& error) {
    std::printf("test_kernels: no GPU, so nothing was run: %s\n", error.what());
    return 2;  // neither a pass nor a failure
  }
  check_older_code();
#if !LSNN_NVCC
  use_launch_limits();
#endif
  try {
    run_all(word, part, device, only);
  } catch (const std::exception&) {  // reported by its case
    std::printf("test_kernels: the GPU is lost, nothing more was run\n");
  }
  std::printf("test_kernels: %d runs", (int)n_runs);
  for (int d = 1; d < n_routes; d++) std::printf(", %s %d", routes[d].name, (int)n_of[d]);
  std::printf(", lsnn backwards %d, %d failures\n", (int)n_backward_by_lsnn, failures());
  return failures() || !n_runs ? 1 : 0;
}

}  // namespace
}  // namespace lsnn::test

int main(int argc, char** argv) { return lsnn::test::run(argc > 1 ? argv[1] : ""); }
