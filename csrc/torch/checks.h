// Checks of the operators' arguments. Messages have the form "name: expected X, got Y"; ranges and
// sizes of each argument are checked in arguments.h.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace lsnn::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts> [[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Throws std::runtime_error with the message, whose parts are evaluated only then. STD_TORCH_CHECK
// would put the name of this file and a line number before the text.
#define LSNN_EXPECT(holds, ...)        \
  do {                                 \
    if (!(holds)) refuse(__VA_ARGS__); \
  } while (false)

// Whether the product of these factors, all >= 0, is less than the limit, without overflow.
inline bool is_below(int64_t limit, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors) {
    if (factor == 0) return limit > 0;
    if (factor < 0 || __builtin_mul_overflow(product, factor, &product)) return false;
  }
  return product < limit;
}

inline std::string shape_text(const int64_t* sizes, size_t n) {
  std::string s = "(";
  for (size_t d = 0; d < n; d++) s += (d ? ", " : "") + std::to_string(sizes[d]);
  return s + ")";
}
inline std::string shape_text(const Tensor& t) {
  std::vector<int64_t> s;
  for (int64_t d = 0; d < t.dim(); d++) s.push_back(t.size(d));
  return shape_text(s.data(), s.size());
}

inline const char* dtype_text(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return "another dtype";
  }
}
inline std::string device_text(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another device";
}

inline void check_shape(const Tensor& t, const char* name, const std::vector<int64_t>& want) {
  bool same = t.dim() == (int64_t)want.size();
  for (size_t d = 0; same && d < want.size(); d++) same = t.size(d) == want[d];
  LSNN_EXPECT(same, name, ": expected shape ", shape_text(want.data(), want.size()), ", got ",
              shape_text(t));
}

// Expects t on the device of `other`, the argument named `of`.
inline void check_like_device(const Tensor& t, const char* name, const Tensor& other,
                              const char* of = "current") {
  const bool same = t.is_cpu() == other.is_cpu() && t.is_cuda() == other.is_cuda() &&
                    t.get_device_index() == other.get_device_index();
  LSNN_EXPECT(same, name, ": expected the device of ", of, ", ", device_text(other), ", got ",
              device_text(t));
}
// Expects t with the device and dtype of `other`, the argument named `of`.
inline void check_like(const Tensor& t, const char* name, const Tensor& other,
                       const char* of = "current") {
  check_like_device(t, name, other, of);
  LSNN_EXPECT(t.scalar_type() == other.scalar_type(), name, ": expected the dtype of ", of, ", ",
              dtype_text(other), ", got ", dtype_text(t));
}

}  // namespace lsnn::binding
