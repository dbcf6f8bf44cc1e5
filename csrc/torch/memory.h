// Tensors in reused memory, their pointers, and the threads of torch.
#pragma once
#include <algorithm>
#include <atomic>
#include <exception>
#include <optional>

#include "../cpu/block_cache.h"
#include "checks.h"

namespace lsnn::binding {

using Ints = std::vector<int64_t>;

// A tensor from torch's allocator. The stable interface loses the text of its exception.
template <class Make> Tensor allocated(const Ints& sizes, int64_t bytes, const Make& make) {
  try {
    return make();
  } catch (const std::exception&) {
    refuse("not enough memory: ", bytes, " bytes requested for a tensor of shape ",
           shape_text(sizes.data(), sizes.size()));
  }
}

// Uninitialised, on the device of `like`.
inline Tensor empty(const Tensor& like, const Ints& sizes, ScalarType type) {
  int64_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Byte ? 1 : 4;
  bool fits = true;
  for (int64_t s : sizes) fits = fits && !__builtin_mul_overflow(bytes, s, &bytes);
  LSNN_EXPECT(fits, "not enough memory: the bytes of a tensor of shape ",
              shape_text(sizes.data(), sizes.size()), " exceed int64");
  if (!like.is_cpu())
    return allocated(sizes, bytes, [&] { return torch::stable::new_empty(like, sizes, type); });
  Ints strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;)
    strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  void* block = cpu::take_block(std::max<int64_t>(bytes, 1));
  return torch::stable::from_blob(block, sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
                                  [](void* p) { cpu::give_block(p); });
}

// Zeros on the device of `like`.
inline Tensor zeros(const Tensor& like, const Ints& sizes) {
  Tensor t = empty(like, sizes, like.scalar_type());
  torch::stable::zero_(t);
  return t;
}

inline Tensor dense(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Ints sizes;
  for (int64_t d = 0; d < t.dim(); d++) sizes.push_back(t.size(d));
  return allocated(sizes, t.numel() * t.element_size(),
                   [&] { return torch::stable::contiguous(t); });
}
inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const std::optional<Tensor>& t) {
  return t ? t->const_data_ptr() : nullptr;
}
// Pointer to an output of the kernels; null: not wanted.
inline void* pointer_if(bool is_wanted, const Tensor& t) {
  return is_wanted ? t.mutable_data_ptr() : nullptr;
}

// The threads of torch. Through the stable interface its parallel_for loses the text of an
// exception, so the first exception of a body is kept and rethrown here.
inline Parallel parallel() {
  auto run = [](int64_t n, void (*body)(int64_t, void*), void* context) {
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure;
    torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      try {
        for (int64_t i = begin; i < end; i++) body(i, context);
      } catch (...) {
        if (!failed.test_and_set()) failure = std::current_exception();
      }
    });
    if (failure) std::rethrow_exception(failure);
  };
  return {run, (int64_t)torch::stable::get_num_threads()};
}

}  // namespace lsnn::binding
