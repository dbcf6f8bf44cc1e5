// CUDA's atomic functions, relaxed as in CUDA. Another thread may run before each
// (Options::yield_in_256).
#pragma once
#include <type_traits>

#include "device.h"

namespace emulator {

// Replaces *address by change(*address) and returns the old value. Uses integers of the same size,
// since ThreadSanitizer does not recognise GCC's atomics of floats.
template <class T, class F> T atomic_update(T* address, const F& change, Place place) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  using Bits [[gnu::may_alias]] = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  maybe_yield(place);
  Bits* bits = reinterpret_cast<Bits*>(address);
  Bits old_bits = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (true) {
    T old;
    __builtin_memcpy(&old, &old_bits, sizeof(T));
    const T changed = change(old);
    Bits new_bits;
    __builtin_memcpy(&new_bits, &changed, sizeof(T));
    if (__atomic_compare_exchange_n(bits, &old_bits, new_bits, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED))
      return old;
  }
}

}  // namespace emulator

// The operand is converted to the type of the target, as with CUDA's overloads.
template <class T> T atomicAdd(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return T(old + x); }, place);
}
template <class T> T atomicSub(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return T(old - x); }, place);
}
template <class T> T atomicMax(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return old < x ? x : old; }, place);
}
template <class T> T atomicMin(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return x < old ? x : old; }, place);
}
template <class T> T atomicOr(T* address, std::type_identity_t<T> x,
                              emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return T(old | x); }, place);
}
template <class T> T atomicAnd(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return T(old & x); }, place);
}
template <class T> T atomicXor(T* address, std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T old) { return T(old ^ x); }, place);
}
template <class T> T atomicExch(T* address, std::type_identity_t<T> x,
                                emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(address, [x](T) { return x; }, place);
}
template <class T> T atomicCAS(T* address, std::type_identity_t<T> compare,
                               std::type_identity_t<T> x,
                               emulator::Place place = emulator::Place::current()) {
  return emulator::atomic_update(
      address, [compare, x](T old) { return old == compare ? x : old; }, place);
}
