// Sources of coefficients, and the numbers that the kernels compute from them.
#pragma once
#include <algorithm>
#include <cmath>
#include <utility>

#include "../../cuda/plan.h"
#include "../problem.h"

namespace lsnn::test {

// Sources of coefficients [n_coefficients,N]: a decay by a tau for each neuron, and 1 minus it; 1
// minus a tensor; a tensor of one number, and a number without a tensor. k: the resulting numbers.
template <class T> struct CoefficientSources {
  Buffer<T> tensors[n_coefficients], made;
  cuda::HostCoefficients host;

  CoefficientSources(const Case& c, const Buffer<T>& k, unsigned zero)
      : made(buffer<T>(size_of(c, Name::k))) {
    const int64_t N = c.N;
    auto row = [&](int of) { return &k[of * N]; };
    const double dt = 0.7;
    std::fill_n(made.get(), size_of(c, Name::k), T(NAN));
    host.zero = zero;
    host.made = made.get();
    for (int of = 0; of < n_coefficients; of++) {
      tensors[of] = buffer<T>(of == BETA ? 1 : N);
      std::copy_n(row(of), of == BETA ? 1 : N, tensors[of].get());
      cuda::Row& row_of = host.rows[of];
      row_of.tensor = tensors[of].get();
      row_of.stride = of != BETA;
      row_of.sign = 1;
    }
    for (int64_t n = 0; n < N; n++) {
      T& tau = tensors[ALPHA][n];
      tau = T(drawn(94, (uint64_t)n, 2, 20));
      row(ALPHA)[n] = std::exp(T(1) / tau * T(-dt));
      row(KAPPA)[n] = T(1) - row(ALPHA)[n];
      row(Q)[n] = T(1) - row(RHO)[n];
      row(BETA)[n] = tensors[BETA][0];
      row(WIDTH)[n] = T(0.9);
    }
    host.rows[ALPHA].dt = dt;
    host.rows[WIDTH] = cuda::Row();
    host.rows[WIDTH].number = 0.9;
    for (const auto& [one, other] : {std::pair{KAPPA, ALPHA}, std::pair{Q, RHO}}) {
      host.rows[one] = host.rows[other];
      host.rows[one].number = 1;
      host.rows[one].sign = -1;
    }
  }
};

}  // namespace lsnn::test
