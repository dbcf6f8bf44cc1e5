// The backward operator: checks, allocation, call.
#include <torch/csrc/stable/library.h>

#include <array>

#include "arguments.h"

namespace lsnn::binding {
namespace {

// A contiguous gradient of this shape, with device and dtype of `like`, or none.
Maybe gradient(const Maybe& g, const char* name, const Ints& sizes, const Tensor& like) {
  if (!g) return g;
  check_like(*g, name, like, "carry");
  check_shape(*g, name, sizes);
  return dense(g);
}

// dL/dx of the inputs [T,B,I] from that of the current [T,B,N]: a product with w_in.
Tensor input_gradient(const Tensor& g_current, const Tensor& w_in, const Tensor& x) {
  const int64_t rows = x.size(0) * x.size(1), N = w_in.size(0), I = w_in.size(1);
  const Tensor out = empty(x, {x.size(0), x.size(1), I}, x.scalar_type());
  const Tensor flat = torch::stable::view(out, {rows, I}),
               g = torch::stable::view(g_current, {rows, N});
  std::array<StableIValue, 3> stack{torch::stable::detail::from(g),
                                    torch::stable::detail::from(w_in),
                                    torch::stable::detail::from(flat)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);
  return out;
}

// Gradients of the outputs of alif_forward, each may be none: g_state v, a, i, z; g_readout p, p
// after the last step. x is read where y was not saved, and for the gradients of a projection.
// Gradients that are not wanted have the shape (0,).
std::tuple<Tensor, Tensors, Tensor, Tensors, Tensors, Tensors> alif_backward(
    Maybe g_spikes, Maybes g_traces, Maybes g_state, Maybes g_readout, Maybe x, Tensors state,
    Tensor coefficients, Maybes recurrence, Ints delays, Maybes projection, Maybes readout,
    Tensors saved, Ints constants, std::vector<double> numbers, Ints options, Maybe lengths,
    int64_t key) {
  LSNN_EXPECT(saved.size() == 4 || saved.size() == 5,
              "saved: expected four tensors y, bits, z, carry, and packed weights or none, got ",
              saved.size());
  const auto& [y, bits, smooth_z, carry] = std::tie(saved[0], saved[1], saved[2], saved[3]);
  LSNN_EXPECT(bits.dim() == 3, "bits: expected three dimensions, got shape ", shape_text(bits));
  const RegisteredNeuron* const other = find_neuron(key, carry, "carry");
  const int64_t n_gradients = other ? other->sizes.gradients : +n_coefficients;
  const Constants c = read_constants(constants, numbers, n_gradients);
  const ScalarType type = carry.scalar_type();
  LSNN_EXPECT(is_real(type), "carry: expected float32 or float64, got ", dtype_text(carry));
  check_checkpoint(c.checkpoint, carry);
  const bool save_bf16 = y.scalar_type() == ScalarType::BFloat16 && !c.checkpoint,
             on_cpu = has_cpu_kernels(carry);
  const int64_t T = bits.size(0), B = bits.size(1),
                every = c.checkpoint ? c.checkpoint
                        : other      ? chunk
                                     : segment;
  const LayerHolder h =
      make_layer(T, B, carry, "carry", lengths, coefficients, recurrence, delays, c, other);
  Layer l = h.layer;
  l.options = read_options(options);
  if (c.bf16_parts) l.bf16_parts = (int)c.bf16_parts;
  const int64_t N = l.N, K = l.sizes.currents, S = l.sizes.states;
  LSNN_EXPECT(save_bf16 ? type == ScalarType::Float : c.checkpoint || y.scalar_type() == type,
              "y: expected the dtype of carry, or bfloat16 for float32, got ", dtype_text(y));
  check_like_device(y, "y", carry, "carry");
  check_shape(y, "y", c.checkpoint ? Ints{0} : Ints{T, B, K * N});
  check_shape(carry, "carry", {S * segments(T, every), B, N});
  LSNN_EXPECT(bits.scalar_type() == ScalarType::Int, "bits: expected int32, got ",
              dtype_text(bits));
  check_like_device(bits, "bits", carry, "carry");
  if (l.smooth) {
    check_like(smooth_z, "smooth_z", carry, "carry");
    check_shape(smooth_z, "smooth_z", {T, B, N});
  }
  const bool whole = y.is_contiguous() && bits.is_contiguous() && carry.is_contiguous() &&
                     (!l.smooth || smooth_z.is_contiguous());
  LSNN_EXPECT(whole, "saved: expected contiguous tensors, got one that is not");
  check_bits(bits, "bits", T, B, N);
  const bool has_packed = saved.size() > 4;
  if (has_packed) {
    LSNN_EXPECT(!on_cpu && !other,
                "saved: expected no packed weights for the CPU kernels or a "
                "registered neuron, got some");
    check_like(saved[4], "packed", carry, "carry");
    check_shape(saved[4], "packed", {cuda::packed_numbers(l)});
    LSNN_EXPECT(saved[4].is_contiguous(), "packed: expected a contiguous tensor, got another");
  }

  const Maybe w_in = at(projection, 0);
  LSNN_EXPECT(x.has_value() || !(c.checkpoint || w_in),
              "x: expected a tensor with w_in or checkpoint, got None");
  const bool as_bits = at(projection, 2).has_value();
  if (x) {
    LSNN_EXPECT(!w_in || w_in->dim() == 2, "w_in: expected shape (N, I), got ", shape_text(*w_in));
    check_like(*x, "x", carry, "carry");
    check_shape(*x, "x", {T, B, w_in ? w_in->size(1) : K * N});
    if (x->stride(2) != 1 && x->size(2) > 1 && !as_bits) x = dense(*x);
  }
  const StateHolder first = make_state(carry, "carry", l, state);
  const ProjectionHolder in = x ? make_projection(*x, projection, l) : ProjectionHolder{};
  const ReadoutHolder out = make_readout(carry, "carry", readout, c.k_out, l);
  const int64_t O = out.readout.O, I = in.projection.I;
  if (h.coefficients.is_cpu() && !other)
    check_kappa(l, c.coefficient_gradients, type == ScalarType::Double);
  Maybe gz = g_spikes;
  if (gz) {
    check_like(*gz, "gradient of spikes", carry, "carry");
    check_shape(*gz, "gradient of spikes", {T, B, N});
    if (gz->stride(2) > 1) gz = dense(*gz);
  }
  static constexpr const char* trace_names[] = {"gradient of trace v", "gradient of trace a",
                                                "gradient of trace threshold"};
  static constexpr const char* state_names[] = {"gradient of v", "gradient of a", "gradient of i"};
  // r has no gradient
  const size_t n_g = other ? (size_t)S : 3, n_traces = (size_t)l.sizes.traces;
  Maybes of_traces, of_states;
  const void* g_trace_rows[neuron::max_states] = {};
  void *g_last[neuron::max_states] = {}, *g_first_states[neuron::max_states] = {};
  for (size_t k = 0; k < n_traces; k++) {
    const char* name = other ? "gradient of a trace" : trace_names[k];
    of_traces.push_back(gradient(at(g_traces, k), name, {T, B, N}, carry));
    g_trace_rows[k] = data(of_traces.back());
  }
  for (size_t k = 0; k < n_g; k++) {
    const char* name = other ? "gradient of a state" : state_names[k];
    of_states.push_back(gradient(at(g_state, k), name, {B, N}, carry));
    g_last[k] = (void*)data(of_states.back());
  }
  const Maybe g_past = gradient(at(g_state, n_g), "gradient of z", {l.D, B, N}, carry);
  const Maybe gp = gradient(at(g_readout, 0), "gradient of p", {T, B, O}, carry);
  const Maybe gp_last = gradient(at(g_readout, 1), "gradient of the last p", {B, O}, carry);

  auto empty_unless = [&](bool wanted, const Ints& sizes) {
    return empty(carry, wanted ? sizes : Ints{0}, type);
  };
  const bool want_current = c.has(Gradient::x) || !on_cpu, want_w = c.has(Gradient::w_rec) && l.S,
             want_kernel = c.has(Gradient::delay_kernel) && l.n_taps;
  const bool is_by_delay = l.S && at(recurrence, 0)->dim() == (K > 1 ? 4 : 3);
  const bool want_in = I && (c.has(Gradient::w_in) || c.has(Gradient::bias)),
             want_bias = want_in && in.bias;
  const bool has_state = !state.empty();
  const bool want_out = O && c.has(Gradient::w_out),
             want_b_out = out.bias && c.has(Gradient::b_out),
             want_z = has_state && (c.has(Gradient::z) || !on_cpu);
  const bool want_k = c.coefficient_gradients != 0;
  const Tensor g_current = empty_unless(want_current, {T, B, K * N}),
               gk = empty_unless(want_k, {n_gradients, N});
  Ints w_shape = K > 1 ? Ints{K, N, N} : Ints{N, N};
  if (is_by_delay) w_shape.insert(w_shape.begin(), l.S);
  const Tensor gw = empty_unless(want_w, w_shape),
               gkernel = empty_unless(want_kernel, {l.n_taps, N});
  const Tensor gw_in = empty_unless(want_in, {N, I}), gbias = empty_unless(want_bias, {N}),
               gw_out = empty_unless(want_out, {O, N}), gp0 = empty_unless(O, {B, O}),
               gb_out = empty_unless(want_b_out, {O});
  Tensors g_first;
  for (size_t k = 0; k < n_g; k++) {
    g_first.push_back(empty_unless(has_state, {B, N}));
    g_first_states[k] = pointer_if(has_state, g_first.back());
  }
  // steps of the given z, at least l.D
  const int64_t past = has_state ? state.back().size(0) : 0;
  Tensor gz0 = empty_unless(want_z, {past, B, N});
  if (want_z && past > l.D) torch::stable::zero_(gz0);
  g_first.push_back(gz0);

  BackwardArgs f{};
  f.layer = l;
  f.first = first.state();
  f.saved = {.y = c.checkpoint ? nullptr : (void*)data(y),
             .bits = (uint32_t*)data(bits),
             .z = l.smooth ? (void*)data(smooth_z) : nullptr,
             .carry = (void*)data(carry),
             .y_is_bf16 = save_bf16,
             .every = every,
             .packed = has_packed ? (void*)data(saved[4]) : nullptr};
  f.gz = data(gz);
  if (gz) {
    f.gz_stride_t = gz->stride(0);
    f.gz_stride_b = gz->stride(1);
    f.gz_stride_n = gz->stride(2);
  }
  f.gv = g_trace_rows[0];
  f.ga = g_trace_rows[1];
  f.gA = g_trace_rows[2];
  f.other_traces = other ? g_trace_rows : nullptr;
  f.glast = {.v = g_last[0],
             .a = g_last[1],
             .i = g_last[2],
             .r = nullptr,
             .z = (void*)data(g_past),
             .others = other ? g_last : nullptr};
  f.existing = c.existing != 0;
  f.want = (unsigned)c.coefficient_gradients;
  f.gx = pointer_if(want_current, g_current);
  f.gw = pointer_if(want_w, gw);
  f.gkernel = pointer_if(want_kernel, gkernel);
  f.gcoefficients = pointer_if(want_k, gk);
  f.gfirst = {.v = g_first_states[0],
              .a = g_first_states[1],
              .i = g_first_states[2],
              .r = nullptr,
              .z = pointer_if(want_z, gz0),
              .others = other ? g_first_states : nullptr};
  if (x) {
    f.x = data(*x);
    f.x_stride_t = x->stride(0);
    f.x_stride_b = x->stride(1);
  }
  f.projection = in.projection;
  f.gw_in = pointer_if(want_in, gw_in);
  f.gbias = pointer_if(want_bias, gbias);
  f.readout = out.readout;
  f.gp = data(gp);
  f.gp_last = data(gp_last);
  f.gw_out = pointer_if(want_out, gw_out);
  f.gp_first = pointer_if(O, gp0);
  f.gbias_out = pointer_if(want_b_out, gb_out);
  run(f, carry, cuda::HostCoefficients{.zero = (unsigned)c.zero_coefficients});
  const Tensor gx = I && want_current ? input_gradient(g_current, *in.w, *x) : g_current;
  return {gx, {gw, gkernel}, gk, g_first, {gw_in, gbias}, {gw_out, gp0, gb_out}};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lsnn, m) { m.def(LSNN_BACKWARD_SCHEMA); }
STABLE_TORCH_LIBRARY_IMPL(lsnn, CPU, m) { m.impl("alif_backward", TORCH_BOX(&alif_backward)); }
STABLE_TORCH_LIBRARY_IMPL(lsnn, CUDA, m) { m.impl("alif_backward", TORCH_BOX(&alif_backward)); }

}  // namespace lsnn::binding
