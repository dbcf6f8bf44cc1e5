// Checks of the operators' arguments. Every message names the argument, what is wanted and what was given.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <string>
#include <vector>

namespace lsnn::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

inline void check_shape(const Tensor& t, const char* name, const std::vector<int64_t>& want) {
  bool same = t.dim() == (int64_t)want.size();
  for (size_t d = 0; same && d < want.size(); d++) same = t.size(d) == want[d];
  STD_TORCH_CHECK(same, name, " must have shape ", shape_text(want.data(), want.size()), ", got ", shape_text(t));
}

// t: on the device of `other`, the argument called `of`.
inline void check_like_device(const Tensor& t, const char* name, const Tensor& other, const char* of = "current") {
  STD_TORCH_CHECK(t.is_cpu() == other.is_cpu() && t.is_cuda() == other.is_cuda() && t.get_device_index() == other.get_device_index(), name,
                  " must be on the device of ", of);
}
// t: on the device and of the dtype of `other`, the argument called `of`.
inline void check_like(const Tensor& t, const char* name, const Tensor& other, const char* of = "current") {
  check_like_device(t, name, other, of);
  STD_TORCH_CHECK(t.scalar_type() == other.scalar_type(), name, " must have the dtype of ", of);
}

}  // namespace lsnn::binding
