// atomics.h: atomics for exactly CUDA's types, and the fences that order them.
//
// An atomic of CUDA is relaxed; __threadfence() before it makes earlier writes visible to whoever reads it and has a
// fence of his own ("last block done"). In the plain build everything is sequentially consistent: nothing to model.
// ThreadSanitizer knows no fences, so there an atomic acquires and releases once its thread has fenced, and is relaxed
// before: counters alone order nothing, a fenced counter does, and a forgotten fence is reported as the race it is.
// (The flag is never taken back, so a fence forgotten in a later round of a loop is not found.)
//
// Float sums are here because CUDA has them. Our kernels do not use them: their order, and so their bits, are chance.
#pragma once

inline void __threadfence() {
  gradstone_host::current_thread->fenced = true;
#if !defined(GRADSTONE_HOST_TSAN)
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
/// Orders nothing between blocks, and within a block it is the barrier that orders: no flag.
inline void __threadfence_block() {
#if !defined(GRADSTONE_HOST_TSAN)
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

namespace gradstone_host {
template <class T>
inline bool exchange_if(T* address, T* expected, T desired) {
#if defined(GRADSTONE_HOST_TSAN)
  if (!current_thread->fenced) {
    return __atomic_compare_exchange(address, expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  }
  return __atomic_compare_exchange(address, expected, &desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
#else
  return __atomic_compare_exchange(address, expected, &desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
#endif
}
/// Replaces *address by next(*address) and gives the value before, as every CUDA atomic does.
template <class T, class Next>
inline T atomic_update(T* address, Next next) {
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  while (!exchange_if(address, &before, T(next(before)))) {
  }
  return before;
}
}  // namespace gradstone_host

#define GRADSTONE_ATOMIC(T, name, expression)                                                  \
  inline T name(T* address, T value) {                                                         \
    return gradstone_host::atomic_update(address, [=](T before) -> T { return (expression); }); \
  }
#define GRADSTONE_ATOMIC_INTEGER(T)                                       \
  GRADSTONE_ATOMIC(T, atomicMin, before < value ? before : value)         \
  GRADSTONE_ATOMIC(T, atomicMax, before > value ? before : value)         \
  GRADSTONE_ATOMIC(T, atomicAnd, before & value)                          \
  GRADSTONE_ATOMIC(T, atomicOr, before | value)                           \
  GRADSTONE_ATOMIC(T, atomicXor, before ^ value)                          \
  GRADSTONE_ATOMIC(T, atomicExch, (static_cast<void>(before), value))     \
  inline T atomicCAS(T* address, T compare, T value) {                    \
    gradstone_host::exchange_if(address, &compare, value);                \
    return compare;                                                       \
  }
GRADSTONE_ATOMIC_INTEGER(int)
GRADSTONE_ATOMIC_INTEGER(unsigned)
GRADSTONE_ATOMIC_INTEGER(unsigned long long)
// Through unsigned: the device wraps around, a signed sum here would be undefined.
GRADSTONE_ATOMIC(int, atomicAdd, int(unsigned(before) + unsigned(value)))
GRADSTONE_ATOMIC(int, atomicSub, int(unsigned(before) - unsigned(value)))
GRADSTONE_ATOMIC(unsigned, atomicAdd, before + value)
GRADSTONE_ATOMIC(unsigned, atomicSub, before - value)
GRADSTONE_ATOMIC(unsigned, atomicInc, before >= value ? 0u : before + 1u)
GRADSTONE_ATOMIC(unsigned, atomicDec, before == 0u || before > value ? value : before - 1u)
GRADSTONE_ATOMIC(unsigned long long, atomicAdd, before + value)
GRADSTONE_ATOMIC(float, atomicAdd, before + value)
GRADSTONE_ATOMIC(float, atomicExch, (static_cast<void>(before), value))
GRADSTONE_ATOMIC(double, atomicAdd, before + value)
GRADSTONE_ATOMIC(long long, atomicMin, before < value ? before : value)
GRADSTONE_ATOMIC(long long, atomicMax, before > value ? before : value)
#undef GRADSTONE_ATOMIC
#undef GRADSTONE_ATOMIC_INTEGER
