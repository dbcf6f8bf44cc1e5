// The forward operator: checks, allocation, call. Through the stable ABI one binary serves every
// torch from 2.11 on.
#include <torch/csrc/stable/library.h>

#include "arguments.h"

namespace lsnn::binding {
namespace {

// The coefficients that kernels compute from `sources`, tensors of 1 or N numbers. rows: number,
// sign, index of the source and dt of each, see cuda/plan.h. made: [11,N] written by the kernels.
cuda::HostCoefficients read_rows(const Tensors& sources, const std::vector<double>& rows,
                                 const Tensor& x, const Tensor& made) {
  cuda::HostCoefficients host;
  LSNN_EXPECT(!has_cpu_kernels(x), "rows: expected none for the CPU kernels, got ", rows.size(),
              " numbers");
  constexpr size_t of_row = 4;
  LSNN_EXPECT(rows.size() == of_row * n_coefficients, "rows: expected ", of_row * n_coefficients,
              " numbers, got ", rows.size());
  const int64_t N = made.size(1);
  for (const Tensor& source : sources) {
    check_like(source, "sources", x, "x");
    LSNN_EXPECT(source.dim() <= 1 && (source.numel() == 1 || source.numel() == N),
                "sources: expected tensors of 1 number or of ", N, ", got shape ",
                shape_text(source));
  }
  for (int c = 0; c < n_coefficients; c++) {
    const double *row = &rows[of_row * c], number = row[0], sign = row[1], place = row[2],
                 dt = row[3];
    LSNN_EXPECT(std::isfinite(number) && (sign == 0 || sign == 1 || sign == -1) &&
                    std::isfinite(dt) && dt >= 0,
                "rows: expected finite numbers, signs -1, 0 or 1, and dt >= 0 for ",
                coefficient_names[c], ", got ", number, ", ", sign, " and ", dt);
    cuda::Row& to = host.rows[c];
    to = {.number = number, .dt = dt, .sign = (int)sign};
    if (sign == 0) continue;
    LSNN_EXPECT(place >= 0 && place < (double)sources.size() && place == std::floor(place),
                "rows: expected an index below ", sources.size(), " into sources for ",
                coefficient_names[c], ", got ", place);
    const Tensor& source = sources[(size_t)place];
    to.tensor = data(source);
    to.stride = source.numel() == 1 ? 0 : source.stride(0);
  }
  host.made = made.mutable_data_ptr();
  return host;
}

// x [T,B,N] is the current, or [T,B,I] the inputs of a projection; with inputs as bits only its
// shape and dtype are read. state: none for zeros. lengths [B]: the steps of each item, descending;
// none: T. Outputs that are not wanted have the shape (0,). Without coefficients the CUDA kernels
// compute them from sources and rows, see read_rows, and return them after the saved tensors; the
// packed weights follow on request.
// neuron: the key of a registered neuron, see neurons.h; then x is [T,B,K N], y the same, state S
// tensors and z, traces S tensors, coefficients [C,N].
std::tuple<Tensor, Tensors, Tensors, Tensors, Tensors> alif_forward(
    Tensor x, Tensors state, Maybe coefficients, Maybes recurrence, Ints delays, Maybes projection,
    Maybes readout, Ints constants, std::vector<double> numbers, Ints options, Maybe lengths,
    std::optional<Tensors> sources, std::vector<double> rows, int64_t key) {
  const RegisteredNeuron* const other = find_neuron(key, x, "x");
  const int64_t n_gradients = other ? other->sizes.gradients : +n_coefficients;
  const Constants c = read_constants(constants, numbers, n_gradients);
  LSNN_EXPECT(x.dim() == 3, "x: expected three dimensions, got shape ", shape_text(x));
  const ScalarType type = x.scalar_type();
  LSNN_EXPECT(is_real(type), "x: expected float32 or float64, got ", dtype_text(x));
  const int64_t T = x.size(0), B = x.size(1);
  LSNN_EXPECT(coefficients.has_value() == rows.empty(),
              "coefficients: expected a tensor or rows, got ", rows.empty() ? "neither" : "both");
  const bool is_made = !rows.empty();
  LSNN_EXPECT(!is_made || !other, "rows: expected none for a registered neuron, got ", rows.size(),
              " numbers");
  const Maybe w_rec = at(recurrence, 0);
  const Tensor k = is_made ? empty(x, {n_coefficients, w_rec ? w_rec->size(-1) : x.size(2)}, type)
                           : *coefficients;
  const LayerHolder h = make_layer(T, B, x, "x", lengths, k, recurrence, delays, c, other, is_made);
  Layer l = h.layer;
  l.options = read_options(options);
  const int64_t N = l.N, K = l.sizes.currents;
  const bool has_projection = at(projection, 0).has_value(), on_cpu = has_cpu_kernels(x);
  LSNN_EXPECT(!has_projection || K == 1, "w_in: expected None for a neuron with ", K,
              " currents, got a tensor");
  LSNN_EXPECT(has_projection || K * N == x.size(2), "x: expected shape (T, B, ", K * N,
              ") without w_in, got ", shape_text(x));
  check_checkpoint(c.checkpoint, x);
  const bool spikes = c.has(Output::spikes), traces = c.has(Output::traces),
             save = c.has(Output::saved);
  const bool bits_asked = c.has(Output::bits), save_bf16 = c.has(Output::saved_bf16),
             save_packed = c.has(Output::packed);
  LSNN_EXPECT(spikes || on_cpu || !other,
              "outputs: expected spikes for the CUDA kernels of a registered neuron, got none");
  LSNN_EXPECT(!save_bf16 || (type == ScalarType::Float && !other),
              "outputs: expected no saved_bf16 for float64 or a registered neuron, got it");
  LSNN_EXPECT(
      !save_packed || (save && !on_cpu && !other),
      "outputs: expected packed only with saved and for the CUDA kernels of a model, got it");
  const StateHolder first = make_state(x, "x", l, state);
  const ProjectionHolder in = make_projection(x, projection, l);
  const ReadoutHolder out = make_readout(x, "x", readout, c.k_out, l);
  const Tensor from = in.bits || x.stride(2) == 1 || x.size(2) == 1 ? x : dense(x);

  auto empty_unless = [&](bool wanted, const Ints& sizes) {
    return empty(x, wanted ? sizes : Ints{0}, type);
  };
  // States of a registered neuron cost more to recompute.
  const int64_t every = c.checkpoint ? c.checkpoint
                        : other      ? chunk
                                     : segment,
                O = out.readout.O, S = l.sizes.states;
  // Saved: the state of every `every` steps and the spike bits; without checkpoint y, in bfloat16
  // with saved_bf16; smooth spikes as numbers. The CUDA kernels need spikes in memory, as bits or,
  // if smooth, as numbers.
  const bool save_y = save && !c.checkpoint, save_z = save && l.smooth,
             own_spikes = !on_cpu && !spikes && !save,
             keep_bits = save || bits_asked || (own_spikes && !l.smooth);
  const Tensor z = empty_unless(spikes, {T, B, N});
  Tensors last, trace;
  last.reserve(S + 1);
  trace.reserve(l.sizes.traces);
  void *last_states[neuron::max_states] = {}, *trace_rows[neuron::max_states] = {};
  for (int64_t s = 0; s < S; s++) {
    last.push_back(empty_unless(true, {B, N}));
    last_states[s] = last.back().mutable_data_ptr();
  }
  const Tensor last_z = empty_unless(true, {l.D, B, N});
  last.push_back(last_z);
  for (int64_t k = 0; k < l.sizes.traces; k++) {
    trace.push_back(empty_unless(traces, {T, B, N}));
    trace_rows[k] = pointer_if(traces, trace.back());
  }
  const Tensors p = {empty_unless(O, {T, B, O}), empty_unless(O, {B, O})};
  const Tensor y =
      empty(x, save_y ? Ints{T, B, K * N} : Ints{0}, save_bf16 ? ScalarType::BFloat16 : type);
  const Tensor bits = empty(x, keep_bits ? Ints{T, B, words(N)} : Ints{0}, ScalarType::Int);
  const Tensor smooth_z = empty_unless(save_z || (own_spikes && l.smooth), {T, B, N});
  const Tensor carry = empty_unless(save, {S * segments(T, every), B, N});
  const Tensor packed = empty_unless(save_packed, {cuda::packed_numbers(l)});

  ForwardArgs f{};
  f.layer = l;
  f.x = data(from);
  f.x_stride_t = from.stride(0);
  f.x_stride_b = from.stride(1);
  f.first = first.state();
  f.last = {.v = last_states[0],
            .a = last_states[1],
            .i = last_states[2],
            .r = last_states[3],
            .z = pointer_if(true, last_z),
            .others = other ? last_states : nullptr};
  f.z = spikes ? pointer_if(true, z) : pointer_if(!on_cpu && l.smooth, smooth_z);
  f.trace_v = trace_rows[0];
  f.trace_a = trace_rows[1];
  f.trace_A = trace_rows[2];
  f.other_traces = other ? trace_rows : nullptr;
  f.save = save;
  f.saved = {.y = pointer_if(save_y, y),
             .bits = (uint32_t*)pointer_if(keep_bits, bits),
             .z = pointer_if(save_z, smooth_z),
             .carry = pointer_if(save, carry),
             .y_is_bf16 = save_y && save_bf16,
             .every = every,
             .packed = pointer_if(save_packed, packed)};
  f.projection = in.projection;
  f.readout = out.readout;
  f.readout_p = pointer_if(O, p[0]);
  f.readout_last = pointer_if(O, p[1]);
  cuda::HostCoefficients host =
      is_made ? read_rows(sources.value_or(Tensors{}), rows, x, k) : cuda::HostCoefficients{};
  host.zero = (unsigned)c.zero_coefficients;
  run(f, x, host);
  Tensors saved = {y, bits, smooth_z, carry};
  if (!save && !bits_asked) saved[1] = empty(x, {0}, ScalarType::Int);
  if (!save) saved[2] = empty(x, {0}, type);
  if (is_made) saved.push_back(k);
  if (save_packed) saved.push_back(packed);
  return {z, last, trace, p, saved};
}

}  // namespace

STABLE_TORCH_LIBRARY(lsnn, m) { m.def(LSNN_FORWARD_SCHEMA); }
STABLE_TORCH_LIBRARY_IMPL(lsnn, CPU, m) { m.impl("alif_forward", TORCH_BOX(&alif_forward)); }
// Registered without CUDA kernels too: then it raises an error.
STABLE_TORCH_LIBRARY_IMPL(lsnn, CUDA, m) { m.impl("alif_forward", TORCH_BOX(&alif_forward)); }

}  // namespace lsnn::binding
