#include "neuron.h"

#include <stdexcept>

#include "shared.h"

namespace lsnn::cuda {
namespace {

using neuron::Job, neuron::steps_of_chunk;
static_assert(steps_of_chunk == chunk);

// Bytes of weights up to which the backward pass runs by `gather`, where each item multiplies by
// all of them. Not measured.
constexpr int64_t most_weights = 256 << 10;

// Rows of [steps,B] whose spikes are unpacked at a time for the weight gradient.
constexpr int64_t rows_at_once = 4096;

// Shared memory that `gather` needs for each of D + 1 steps: spikes as bits; dL/dc.
int64_t forward_bytes(const Layer& l) { return words(l.N) * (int64_t)sizeof(uint32_t); }
template <class T> int64_t backward_bytes(const Layer& l) {
  return l.sizes.currents * l.N * (int64_t)sizeof(T);
}
bool requests_gather(const Layer& l) { return l.options.design == Design::gather; }
bool can_gather(const Layer& l, int64_t bytes_of_step) {
  const int64_t bytes = (l.D + 1) * bytes_of_step;
  const bool fits =
      !l.smooth && l.N <= neuron::most_neurons_of_block && bytes <= shared_of_every_gpu;
  if (requests_gather(l) && !fits)
    throw std::invalid_argument(
        "design: expected one that can run the neuron, got 'gather' for " + std::to_string(l.N) +
        " neurons and " + std::to_string(bytes) + " bytes of " + std::to_string(l.D + 1) +
        " steps; it requires spikes of 0 and 1, at most " +
        std::to_string(neuron::most_neurons_of_block) + " neurons and at most " +
        std::to_string(shared_of_every_gpu) + " bytes");
  return fits && l.options.design != Design::step;
}

// Both directions of a call.
template <class T> struct Run {
  const Layer& l;
  const NeuronModule& module;
  const Product& product;
  void* stream;
  const int64_t K, S, BN, KN;
  const bool gathers;
  T* packed;  // [delays,N,K N], or transposed
  Job<T> job = {};

  Run(const Layer& layer, bool by_gather, Arena& arena, const Product& by, void* on)
      : l(layer),
        module(*(const NeuronModule*)layer.neuron),
        product(by),
        stream(on),
        K(l.sizes.currents),
        S(l.sizes.states),
        BN(l.B * l.N),
        KN(K * l.N),
        gathers(by_gather) {
    packed = arena.take<T>(l.S * l.N * KN);
    job.steps = l.T;
    job.B = l.B;
    job.N = l.N;
    job.D = l.D;
    job.lengths = l.lengths ? arena.take<int32_t>(l.B) : nullptr;
    job.delays_n = l.S;
    job.delays = arena.take<int32_t>(l.S);
    job.autapses = l.autapses;
    job.w_stride_current = l.w_stride_current;
    job.w_stride_j = l.w_stride_j;
    job.w_stride_k = l.w_stride_k;
    job.delay_of = l.delay;
    job.coefficients = (const T*)l.coefficients;
  }

  void launch(NeuronKernel kernel, int64_t threads) const {
    constexpr int of_block = neuron::threads_of_block;
    if (threads > 0)
      launch_neuron(module, kernel, {(threads + of_block - 1) / of_block, of_block}, &job, stream);
  }
  // A block for each item, with memory for D + 1 steps.
  void launch_items(NeuronKernel kernel, int64_t bytes_of_step) const {
    if (l.B > 0)
      launch_neuron(module, kernel, {l.B, int(32 * words(l.N)), (l.D + 1) * bytes_of_step}, &job,
                    stream);
  }
  void launch_at(NeuronKernel kernel, int64_t t, int64_t threads) {
    job.t = t;
    launch(kernel, threads);
  }
  // Copies host numbers to device memory, in the arguments of kernels.
  void copy(const int64_t* from, int64_t n, int32_t* to) {
    job.numbers = to;
    for (int64_t i0 = 0; to && i0 < n; i0 += neuron::numbers_at_once) {
      job.t1 = i0 + neuron::numbers_at_once < n ? i0 + neuron::numbers_at_once : n;
      for (int64_t i = i0; i < job.t1; i++) job.piece[i - i0] = (int32_t)from[i];
      launch_at(NeuronKernel::set_numbers, i0, job.t1 - i0);
    }
  }
  // Selects the matrix of delay d.
  void select(int64_t d, T* to) {
    job.w = matrix<T>(l, d);
    job.delay = l.delays[d];
    job.packed = to;
  }
  T* packed_of(int64_t d) const { return packed + d * l.N * KN; }
  void prepare(bool is_transposed) {
    copy(l.lengths, l.B, job.lengths);
    if (gathers) copy(l.delays, l.S, job.delays);
    job.is_transposed = is_transposed;
    for (int64_t d = 0; d < l.S; d++) {
      select(d, packed_of(d));
      launch(NeuronKernel::pack_weights, l.N * KN);
    }
    job.packed = packed;
  }
};

template <class T> struct Forward : Run<T> {
  Forward(const ForwardArgs& f, Arena& arena, const Product& by, void* on)
      : Run<T>(f.layer, chooses_gather(f), arena, by, on) {
    Job<T>& job = this->job;
    job.x = (const T*)f.x;
    job.x_stride_t = f.x_stride_t;
    job.x_stride_b = f.x_stride_b;
    job.c = arena.take<T>(this->l.B * this->KN);
    for (int64_t s = 0; s < this->S; s++) {
      job.first[s] = (const T*)f.first.of(s);
      job.states[s] = (T*)f.last.of(s);
      job.traces[s] = (T*)f.trace(s);
    }
    job.first_z = (const T*)f.first.z;
    job.last_z = (T*)f.last.z;
    job.z = (T*)f.z;
    job.bits = f.saved.bits;
    if (!f.save) return;
    job.currents = (T*)f.saved.y;
    job.carry = (T*)f.saved.carry;
    job.number_z = (T*)f.saved.z;
  }

  // A requested design must also run the backward pass, which needs more memory.
  static bool chooses_gather(const ForwardArgs& f) {
    const Layer& l = f.layer;
    return can_gather(l, f.save && requests_gather(l) ? backward_bytes<T>(l) : forward_bytes(l));
  }
  void run() {
    const Layer& l = this->l;
    Job<T>& job = this->job;
    this->prepare(false);
    if (this->gathers) return this->launch_items(NeuronKernel::sequence, forward_bytes(l));
    this->launch_at(NeuronKernel::step, -1, this->BN);
    for (int64_t t = 0; t < l.T; t++) {
      if (t < l.longest())
        for (int64_t d = 0; d < l.S; d++) add_spikes(t - 1 - l.delays[d], d);
      this->launch_at(NeuronKernel::step, t, this->BN);
    }
    if (job.bits) this->launch(NeuronKernel::pack_bits, l.T * l.B * words(l.N));
  }
  // (1) for the spikes of step `past` and delay d
  void add_spikes(int64_t past, int64_t d) const {
    const Layer& l = this->l;
    const Job<T>& job = this->job;
    if (l.B == 0 || (past < 0 && !job.first_z)) return;
    const T* z = past < 0 ? job.first_z + (-1 - past) * this->BN : job.z + past * this->BN;
    this->product.add(this->product.context, l.B, l.N, this->KN, {z, l.N, 1},
                      {this->packed_of(d), this->KN, 1}, job.c);
  }
};

template <class T> struct Backward : Run<T> {
  const BackwardArgs& f;
  T* gw_packed;  // [N,K N]

  Backward(const BackwardArgs& args, Arena& arena, const Product& by, void* on)
      : Run<T>(args.layer, chooses_gather(args.layer), arena, by, on),
        f(args),
        gw_packed(f.gw ? arena.take<T>(f.layer.N * this->KN) : nullptr) {
    const Layer& l = this->l;
    Job<T>& job = this->job;
    job.currents = (T*)f.saved.y;
    job.carry = (T*)f.saved.carry;
    job.number_z = (T*)f.saved.z;
    job.bits = f.saved.bits;
    job.first_z = (const T*)f.first.z;
    job.gz = (const T*)f.gz;
    job.gz_stride_t = f.gz_stride_t;
    job.gz_stride_b = f.gz_stride_b;
    job.gz_stride_n = f.gz_stride_n;
    job.g_last_z = (const T*)f.glast.z;
    job.replayed = arena.take<T>(steps_of_chunk * this->S * this->BN);
    for (int64_t s = 0; s < this->S; s++) {
      job.g_traces[s] = (const T*)f.g_trace(s);
      job.g_last[s] = (const T*)f.glast.of(s);
      T* const first = (T*)f.gfirst.of(s);
      job.d_states[s] = first ? first : arena.take<T>(this->BN);
    }
    job.dz = arena.take<T>(this->BN);
    job.gx = (T*)f.gx;
    job.g_first_z = (T*)f.gfirst.z;
    job.want = f.want;
    job.sums = f.want ? arena.take<T>(l.sizes.gradients * this->BN) : nullptr;
    job.g_coefficients = (T*)f.gcoefficients;
    job.existing = f.existing;
    job.gw = (T*)f.gw;
    job.spikes = f.gw ? arena.take<T>(steps_at_once() * this->BN) : nullptr;
  }
  static bool chooses_gather(const Layer& l) {
    const int64_t bytes = backward_bytes<T>(l);
    return can_gather(l, bytes) && (requests_gather(l) || l.S * l.N * bytes <= most_weights);
  }
  int64_t steps_at_once() const {
    const int64_t B = this->l.B, most = B < rows_at_once ? rows_at_once / (B ? B : 1) : 1;
    return most < this->l.T ? most : this->l.T;
  }

  void run() {
    const Layer& l = this->l;
    Job<T>& job = this->job;
    this->prepare(this->gathers);
    if (this->gathers) {
      if (!this->module.has_product) job.delays_n = 0;
      this->launch_items(NeuronKernel::sequence_back, backward_bytes<T>(l));
    } else {
      step_back_all();
    }
    if (f.want) this->launch(NeuronKernel::sum_gradients, l.sizes.gradients * l.N);
    if (f.gw)
      for (int64_t d = 0; d < l.S; d++) weight_gradient(d);
  }
  void step_back_all() {
    const Layer& l = this->l;
    Job<T>& job = this->job;
    this->launch_at(NeuronKernel::adjoint, l.T, this->BN);
    for (int64_t t = l.T - 1; t >= 0; t--) {
      if (t == l.T - 1 || t % steps_of_chunk == steps_of_chunk - 1) {
        job.t1 = t + 1;
        this->launch_at(NeuronKernel::replay, t / steps_of_chunk * steps_of_chunk, this->BN);
      }
      step_back(t);
    }
    for (int64_t t = -1; job.g_first_z && t >= -l.D; t--) step_back(t);
  }
  // The product of step t, which is negative for past spikes, and its adjoint.
  void step_back(int64_t t) {
    const Layer& l = this->l;
    const Job<T>& job = this->job;
    for (int64_t d = 0; d < l.S && l.B && this->module.has_product; d++) {
      const int64_t reached = t + 1 + l.delays[d];
      if (reached >= 0 && reached < l.longest())
        this->product.add(this->product.context, l.B, this->KN, l.N,
                          {job.gx + reached * l.B * this->KN, this->KN, 1},
                          {this->packed_of(d), 1, this->KN}, job.dz);
    }
    this->launch_at(NeuronKernel::adjoint, t, this->BN);
  }
  // The gradient of the weights that act with delay d: a product for some steps at a time.
  void weight_gradient(int64_t d) {
    const Layer& l = this->l;
    Job<T>& job = this->job;
    const int64_t lag = 1 + l.delays[d];
    this->select(d, gw_packed);
    job.gw = (T*)f.gw + (matrices(l) > 1 ? d * l.N * this->KN : 0);
    this->launch(NeuronKernel::clear, l.N * this->KN);
    for (int64_t t0 = 0; t0 < l.longest() && l.B; t0 += steps_at_once()) {
      const int64_t t1 = t0 + steps_at_once() < l.longest() ? t0 + steps_at_once() : l.longest();
      job.t1 = t1 - lag;
      this->launch_at(NeuronKernel::unpack_spikes, t0 - lag, (t1 - t0) * this->BN);
      this->product.add(this->product.context, l.N, (t1 - t0) * l.B, this->KN, {job.spikes, 1, l.N},
                        {job.gx + t0 * l.B * this->KN, this->KN, 1}, gw_packed);
    }
    this->launch(NeuronKernel::weight_gradient, l.N * this->KN);
  }
};

template <class Pass, class Args> int64_t workspace_of(const Args& f) {
  Arena counted;
  Pass(f, counted, {}, nullptr);
  return counted.used;
}
template <class Pass, class Args> void run_pass(const Args& f, void* workspace,
                                                const Product& product, void* stream) {
  Arena arena(workspace);
  Pass(f, arena, product, stream).run();
}

}  // namespace

#define LSNN_NEURON_PASSES(T)                                                                    \
  template <> int64_t neuron_workspace<T>(const ForwardArgs& f) {                                \
    return workspace_of<Forward<T>>(f);                                                          \
  }                                                                                              \
  template <> int64_t neuron_workspace<T>(const BackwardArgs& f) {                               \
    return workspace_of<Backward<T>>(f);                                                         \
  }                                                                                              \
  template <> void run_neuron<T>(const ForwardArgs& f, void* workspace, const Product& product,  \
                                 void* stream) {                                                 \
    run_pass<Forward<T>>(f, workspace, product, stream);                                         \
  }                                                                                              \
  template <> void run_neuron<T>(const BackwardArgs& f, void* workspace, const Product& product, \
                                 void* stream) {                                                 \
    run_pass<Backward<T>>(f, workspace, product, stream);                                        \
  }
LSNN_NEURON_PASSES(float)
LSNN_NEURON_PASSES(double)
#undef LSNN_NEURON_PASSES

}  // namespace lsnn::cuda
