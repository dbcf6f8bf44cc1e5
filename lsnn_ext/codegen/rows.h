// The row functions of neuron.h over a step.
//
// A step is a class that generate.py writes, or the interpreter. Both take their inputs from a list
// of values and leave the results in it:
//
//   inputs:  c [K], states' [S], z', coefficients [C], dL/dstates [S], dL/dz, z, means [M]
//   results: forward: states [S], z           advance: states [S]     (z is an input)
//            replay: states [S], active       (a truth value)
//            adjoint: dL/dc [K], dL/dstates' [S], dL/dz', gradients [G]
//            mean(m): of which mean m is the mean over the neurons of the item
//
// Means are found one after the other, as a mean may read those before it; only adjoint reads those
// from forward_means on. A step with means gets all neurons at once (whole_rows).
//
// A value has Step::vectors vectors, vector v of value i at i * vectors + v. A generated step takes
// one at a time, and the list turns into registers: its sizes are Fixed. Those of the interpreter
// are ints, and it takes `count` vectors at once. advance, replay and adjoint read only states in
// `carried`, and only these are written by the first two.
#pragma once
#include "neuron.h"
#include "ops.h"
#include "values.h"

#define LSNN_FUSE_LAMBDA __attribute__((always_inline))

namespace lsnn::neuron {
namespace {

// Of a generated step: with two at once the adjoint of an LSNN was slower, by measurement.
constexpr int generated_vectors = 1;

// f(0) to f(n - 1), unrolled where n is known.
template <int i, int n, class F> LSNN_FUSE_INLINE void call_each(const F& f) {
  if constexpr (i < n) {
    f(i);
    call_each<i + 1, n>(f);
  }
}
template <int n, class F> LSNN_FUSE_INLINE void for_each(Fixed<n>, const F& f) {
  call_each<0, n>(f);
}
template <class F> LSNN_FUSE_INLINE void for_each(int n, const F& f) {
  for (int i = 0; i < n; i++) f(i);
}

// Lanes [n, n + lanes).
template <class T> LSNN_FUSE_INLINE Vector<T> load_spikes(const Spikes<T>& z, int64_t n) {
  if (z.numbers) return load_n(z.numbers + n, z.numbers_end - n);
  return Operators<T>::number(get_bits<T>(z.bits, n));
}
template <class T> LSNN_FUSE_INLINE Spikes<T> spikes_of(const SpikesOfItems<T>& z, int64_t item) {
  return {z.first.bits ? z.first.bits + item * z.bits_stride : nullptr,
          z.first.numbers ? z.first.numbers + item * z.numbers_stride : nullptr,
          z.first.numbers_end};
}
// 0 in the lanes that belong to no neuron.
template <class T> LSNN_FUSE_INLINE Vector<T> without_padding(Vector<T> x, int64_t left) {
  return left >= lanes<T> ? x : first_lanes<T>(x, left);
}
template <class T> LSNN_FUSE_INLINE unsigned valid_lanes(int64_t left) {
  return left >= lanes<T> ? ~0u >> (32 - lanes<T>) : left > 0 ? (1u << left) - 1 : 0;
}

template <class Step> struct Values : ValuesOf<Step, Vector<typename Step::Number>> {
  using T = typename Step::Number;
  using V = Vector<T>;
  static constexpr int L = lanes<T>, vectors = Step::vectors;
  using ValuesOf<Step, V>::ValuesOf, ValuesOf<Step, V>::step;

  // How many vectors of [n, n1) come next.
  LSNN_FUSE_METHOD static auto count(int64_t n, int64_t n1) {
    if constexpr (Step::is_generated) return Fixed<vectors>{};
    else {
      const int64_t left = (n1 - n + L - 1) / L;
      return left < vectors ? (int)left : vectors;
    }
  }
  LSNN_FUSE_METHOD void load_coefficients(const T* packed, int64_t n, int v) {
    for_each(step.coefficients, [&](int c) LSNN_FUSE_LAMBDA {
      this->coefficient(c, v) = load(packed + n * step.coefficients + c * L);
    });
  }
  // Currents in rows of N numbers, as they were saved.
  LSNN_FUSE_METHOD void load_saved(const Rows<const T>& saved, int64_t n, int64_t left, int v) {
    for_each(step.currents, [&](int k) LSNN_FUSE_LAMBDA {
      this->current(k, v) = load_n(saved.first + k * saved.stride + n, left);
    });
  }
  LSNN_FUSE_METHOD void load_states(const Rows<const T>& read, int64_t n, int v) {
    for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
      if (step.carried >> s & 1) this->state(s, v) = load(read.first + s * read.stride + n);
    });
  }
  LSNN_FUSE_METHOD void store_carried(const Rows<T>& left, int64_t n, int v) {
    for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
      if (step.carried >> s & 1) store(left.first + s * left.stride + n, this->result(s, v));
    });
  }
};

// Sets the means of x from `first` on, and stores them in found. load(n, count): sets the inputs at
// the neurons from n on. Partial sums do not depend on the length of a vector.
template <class Step, class T, class Load>
LSNN_FUSE_INLINE void find_means(const Step& step, Values<Step>& x, int means, int64_t N, T* found,
                                 const Load& load) {
  constexpr int L = lanes<T>, parts = (int)row_padding / L;
  for (int m = 0; m < means; m++) {
    Vector<T> sums[parts] = {};
    for (int64_t n = 0; n < N; n += Step::vectors * L) {
      const auto count = x.count(n, N);
      load(n, count);
      if constexpr (Step::is_generated) Step::mean(m, x.values);
      else step.mean(m, x.values, count);
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        Vector<T>& sum = sums[(n / L + v) % parts];
        sum = sum + without_padding<T>(x.result(0, v), N - n - v * L);
      });
    }
    T sum = T(0);
    for (int i = 0; i < parts; i++)
      for (int l = 0; l < L; l++) sum += sums[i][l];
    found[m] = sum / T(N);
    for (int v = 0; v < Step::vectors; v++) x.mean(m, v) = broadcast(found[m]);
  }
}

#define LSNN_FUSE_RUN(function)                                                       \
  do {                                                                                \
    if constexpr (Step::is_generated)                                                 \
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA { Step::function(x.values + v); }); \
    else step.function(x.values, count);                                              \
  } while (0)

template <class Step> struct RowFunctions {
  using T = typename Step::Number;
  using V = Vector<T>;
  static constexpr int L = lanes<T>, width = Step::vectors * L;

  // ----------------------------------------------------------------------------------------- step
  static void step_row(const void* settings, const StepRow<T>& given) {
    const Step step(settings);
    const StepRow<T> row = given;  // a store through a pointer cannot change a local
    Values<Step> x(step);
    bool traced = false;
    if (row.traces)
      for (int s = 0; s < step.states; s++) traced = traced || row.traces[s];
    const auto load_inputs = [&](int64_t n, auto count) LSNN_FUSE_LAMBDA {
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L;
        for_each(step.currents, [&](int k) LSNN_FUSE_LAMBDA {
          x.current(k, v) = load(row.c.first + k * row.c.stride + m);
        });
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          x.state(s, v) = load(row.states.first + s * row.states.stride + m);
        });
        x.before(v) = load_spikes(row.before, m);
        x.load_coefficients(row.coefficients, m, v);
      });
    };
    T means[max_means];
    find_means(step, x, step.forward_means, row.N, means, load_inputs);
    for (int64_t n = row.n0; n < row.n1; n += width) {
      const auto count = x.count(n, row.n1);
      load_inputs(n, count);
      LSNN_FUSE_RUN(forward);
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L, left = row.N - m;
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          store(row.states.first + s * row.states.stride + m, x.result(s, v));
        });
        const V z = x.result(step.states, v);
        if (row.bits) put_bits<T>(row.bits, m, to_bits(z > T(0)) & valid_lanes<T>(left));
        if (!step.is_spike && row.z_numbers) store(row.z_numbers + m, without_padding<T>(z, left));
        if (row.z) store(row.z + m, without_padding<T>(z, left));
        if (!traced) return;
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          if (row.traces[s]) store_n(row.traces[s] + m, x.result(s, v), left);
        });
      });
    }
  }

  // --------------------------------------------------------------------------------------- replay
  static void replay_steps(const void* settings, const ReplaySteps<T>& given) {
    const Step step(settings);
    const ReplaySteps<T> rows = given;
    if (step.forward_means && rows.steps) return replay_rows(settings, rows);
    Values<Step> x(step);
    for (int64_t n = rows.n0; n < rows.n1; n += width) {
      const auto count = x.count(n, rows.n1);
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L;
        x.load_states(rows.read, m, v);
        x.before(v) = load_spikes(rows.before, m);
        x.load_coefficients(rows.coefficients, m, v);
      });
      Spikes<T> after = rows.after;
      Rows<const T> saved = rows.saved;
      for (int64_t t = 0; t < rows.steps; t++) {
        for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
          const int64_t m = n + v * L;
          x.load_saved(saved, m, rows.N - m, v);
          x.after(v) = load_spikes(after, m);
        });
        LSNN_FUSE_RUN(advance);
        for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
          for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
            if (step.carried >> s & 1) x.state(s, v) = x.result(s, v);
          });
          x.before(v) = x.after(v);
        });
        if (after.bits) after.bits += rows.bits_stride;
        if (after.numbers) after.numbers += rows.numbers_stride;
        saved.first += rows.saved_stride;
      }
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          if (step.carried >> s & 1)
            store(rows.left.first + s * rows.left.stride + n + v * L, x.state(s, v));
        });
      });
    }
  }

  // The same step by step.
  static void replay_rows(const void* settings, const ReplaySteps<T>& rows) {
    ReplayRow<T> row = {.coefficients = rows.coefficients,
                        .n0 = rows.n0,
                        .n1 = rows.n1,
                        .N = rows.N,
                        .before = rows.before,
                        .after = rows.after,
                        .saved = rows.saved,
                        .read = rows.read,
                        .left = rows.left,
                        .active = nullptr};
    for (int64_t t = 0; t < rows.steps; t++) {
      replay_row(settings, row);
      row.before = row.after;
      if (row.after.bits) row.after.bits += rows.bits_stride;
      if (row.after.numbers) row.after.numbers += rows.numbers_stride;
      row.saved.first += rows.saved_stride;
      row.read = {row.left.first, row.left.stride};
    }
  }

  // One step. Returns how many neurons are active.
  static int64_t replay_row(const void* settings, const ReplayRow<T>& given) {
    const Step step(settings);
    const ReplayRow<T> row = given;
    Values<Step> x(step);
    int64_t n_active = 0;
    const auto load_inputs = [&](int64_t n, auto count) LSNN_FUSE_LAMBDA {
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L;
        x.load_states(row.read, m, v);
        x.before(v) = load_spikes(row.before, m);
        x.load_coefficients(row.coefficients, m, v);
        x.load_saved(row.saved, m, row.N - m, v);
        x.after(v) = load_spikes(row.after, m);
      });
    };
    T means[max_means];
    find_means(step, x, step.forward_means, row.N, means, load_inputs);
    for (int64_t n = row.n0; n < row.n1; n += width) {
      const auto count = x.count(n, row.n1);
      load_inputs(n, count);
      if (step.has_slopes) LSNN_FUSE_RUN(replay);
      else LSNN_FUSE_RUN(advance);
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L;
        x.store_carried(row.left, m, v);
        if (!step.has_slopes) return;
        const unsigned active =
            to_bits(x.result(step.states, v) != T(0)) & valid_lanes<T>(row.N - m);
        row.active[m / 16 * max_items] |= (uint16_t)(active << m % 16);
        n_active += __builtin_popcount(active);
      });
    }
    return n_active;
  }

  // -------------------------------------------------------------------------------------- adjoint
  // Items inside, so that coefficients and the sums of their gradients stay in registers.
  template <bool has_gradients>
  LSNN_FUSE_INLINE void adjoint_of(const void* settings, const AdjointRows<T>& given) {
    const Step step(settings);
    const AdjointRows<T> rows = given;
    Values<Step> x(step);
    V sums[Step::n_sums * Step::vectors];
    bool traced = false;
    if (rows.g_traces)
      for (int s = 0; s < step.states; s++) traced = traced || rows.g_traces[s];
    const auto load_coefficients = [&](int64_t n, auto count) LSNN_FUSE_LAMBDA {
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        x.load_coefficients(rows.coefficients, n + v * L, v);
      });
    };
    const auto load_item = [&](int64_t b, int64_t n, auto count) LSNN_FUSE_LAMBDA {
      const Spikes<T> before = spikes_of(rows.before, b), after = spikes_of(rows.after, b);
      for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
        const int64_t m = n + v * L, left = rows.N - m, at = b * rows.NP + m;
        const int64_t at_z = b * rows.dz_stride + m;
        x.load_saved(rows.saved, b * rows.saved_items + m, left, v);
        x.load_states(rows.read, at, v);
        x.before(v) = load_spikes(before, m);
        x.after(v) = load_spikes(after, m);
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          x.d_state(s, v) = load(rows.d_states.first + s * rows.d_states.stride + at);
        });
        V d_z = load(rows.dz + at_z);
        if (rows.gz) {
          const int64_t at_g = b * rows.gz_stride_b + m * rows.gz_stride_n;
          if (rows.gz_next) __builtin_prefetch(rows.gz_next + at_g);
          d_z = d_z + (rows.gz_stride_n ? load_n(rows.gz + at_g, left) : broadcast(rows.gz[at_g]));
        }
        x.d_z(v) = d_z;
        if (!traced) return;
        for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
          if (rows.g_traces[s])
            x.d_state(s, v) = x.d_state(s, v) + load_n(rows.g_traces[s] + b * rows.N + m, left);
        });
      });
    };
    T means[max_items][max_means];
    for (int64_t b = 0; step.means && b < rows.items; b++)
      find_means(step, x, step.means, rows.N, means[b],
                 [&](int64_t n, auto count) LSNN_FUSE_LAMBDA {
                   load_coefficients(n, count);
                   load_item(b, n, count);
                 });
    for (int64_t n = rows.n0; n < rows.n1; n += width) {
      const auto count = x.count(n, rows.n1);
      load_coefficients(n, count);
      if constexpr (has_gradients)
        for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
          for_each(step.gradients,
                   [&](int g) LSNN_FUSE_LAMBDA { sums[g * Step::vectors + v] = V{}; });
        });
      for (int64_t b = 0; b < rows.items; b++) {
        load_item(b, n, count);
        for_each(step.means, [&](int m) LSNN_FUSE_LAMBDA {
          for_each(count, [&](int v) LSNN_FUSE_LAMBDA { x.mean(m, v) = broadcast(means[b][m]); });
        });
        if constexpr (has_gradients) LSNN_FUSE_RUN(adjoint);
        else LSNN_FUSE_RUN(adjoint_alone);
        for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
          const int64_t m = n + v * L, left = rows.N - m;
          const int64_t at_z = b * rows.dz_stride + m;
          for_each(step.currents, [&](int k) LSNN_FUSE_LAMBDA {
            const V d_c = without_padding<T>(x.result(k, v), left);
            store(rows.dc.first + k * rows.dc.stride + at_z, d_c);
            if (rows.gx.first)
              store_n(rows.gx.first + k * rows.gx.stride + b * rows.gx_items + m, d_c, left);
          });
          for_each(step.states, [&](int s) LSNN_FUSE_LAMBDA {
            store(rows.d_states.first + s * rows.d_states.stride + b * rows.NP + m,
                  x.result(step.currents + s, v));
          });
          const int first_gradient = step.currents + step.states + 1;
          store(rows.dz + at_z, x.result(first_gradient - 1, v));
          if constexpr (has_gradients)
            for_each(step.gradients, [&](int g) LSNN_FUSE_LAMBDA {
              V& sum = sums[g * Step::vectors + v];
              sum = sum + x.result(first_gradient + g, v);
            });
        });
      }
      if constexpr (has_gradients)
        for_each(step.gradients, [&](int g) LSNN_FUSE_LAMBDA {
          T* to = rows.sums + g * rows.NP + n;
          if (rows.want >> g & 1)
            for_each(count, [&](int v) LSNN_FUSE_LAMBDA {
              store(to + v * L, load(to + v * L) + sums[g * Step::vectors + v]);
            });
        });
    }
  }
  static void adjoint_rows(const void* settings, const AdjointRows<T>& given) {
    if constexpr (Step::n_sums > 1)
      if (given.sums && given.want) return adjoint_of<true>(settings, given);
    adjoint_of<false>(settings, given);
  }
};

// settings: what Step is made of, or null.
template <class Step>
LSNN_FUSE_INLINE constexpr NeuronTable<typename Step::Number> table_of(const Step& step,
                                                                       const void* settings) {
  using Functions = RowFunctions<Step>;
  NeuronTable<typename Step::Number> table = {};
  table.abi_version = abi_version;
  table.number_bytes = sizeof(typename Step::Number);
  table.lanes = lanes<typename Step::Number>;
  table.states = step.states;
  table.currents = step.currents;
  table.packed = step.coefficients;
  table.gradients = step.gradients;
  table.traces = step.states;
  table.saved = step.currents;
  table.saves_currents = true;
  table.has_number_spikes = !step.is_spike;
  table.has_inactive = step.has_slopes;
  table.replays = true;
  table.has_product = step.has_product;
  table.whole_rows = step.means > 0;
  table.carried = step.carried;
  table.settings = settings;
  table.step = Functions::step_row;
  table.replay_steps = Functions::replay_steps;
  table.replay = Functions::replay_row;
  table.adjoint = Functions::adjoint_rows;
  return table;
}

#undef LSNN_FUSE_RUN

}  // namespace
}  // namespace lsnn::neuron

// Defines what the kernels look up in the shared object of a generated step.
#define LSNN_DEFINE_NEURON(Step)                                                  \
  extern "C" __attribute__((visibility("default"))) const void* lsnn_neuron();    \
  const void* lsnn_neuron() {                                                     \
    static constexpr auto table = lsnn::neuron::table_of(Step(nullptr), nullptr); \
    return &table;                                                                \
  }
