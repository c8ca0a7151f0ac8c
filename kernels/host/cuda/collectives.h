// collectives.h: barriers of a block and collectives of a warp, overloaded for exactly CUDA's scalar types.
//
// The work is in engine/barrier.cpp and engine/warp.cpp. The overloads are written out, not a template: a template
// would take a struct or a bf16, which nvcc refuses, and a kernel would pass here and fail there.
#pragma once

inline void __syncthreads(GRADSTONE_SITE) {
  gradstone_host::block_barrier(gradstone_host::Collective::SyncThreads, 0, GRADSTONE_HERE);
}
inline int __syncthreads_count(int predicate, GRADSTONE_SITE) {
  return gradstone_host::block_barrier(gradstone_host::Collective::SyncThreadsCount, predicate, GRADSTONE_HERE);
}
inline int __syncthreads_and(int predicate, GRADSTONE_SITE) {
  return gradstone_host::block_barrier(gradstone_host::Collective::SyncThreadsAnd, predicate, GRADSTONE_HERE);
}
inline int __syncthreads_or(int predicate, GRADSTONE_SITE) {
  return gradstone_host::block_barrier(gradstone_host::Collective::SyncThreadsOr, predicate, GRADSTONE_HERE);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GRADSTONE_SITE) {
  gradstone_host::warp_barrier(mask, GRADSTONE_HERE);
}

namespace gradstone_host {
template <class T>
inline uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves scalars");
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof(T));
  return word;
}
template <class T>
inline T from_word(uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof(T));
  return value;
}
}  // namespace gradstone_host

#define GRADSTONE_SHUFFLE(T, name, Operand, collective)                                                        \
  inline T name(unsigned mask, T value, Operand operand, int width = 32, GRADSTONE_SITE) {                     \
    return gradstone_host::from_word<T>(                                                                       \
        gradstone_host::warp_shuffle(gradstone_host::Collective::collective, mask,                             \
                                     gradstone_host::to_word(value), unsigned(operand), width, GRADSTONE_HERE)); \
  }
#define GRADSTONE_EXCHANGE(T)                                         \
  GRADSTONE_SHUFFLE(T, __shfl_sync, int, Shuffle)                     \
  GRADSTONE_SHUFFLE(T, __shfl_up_sync, unsigned, ShuffleUp)           \
  GRADSTONE_SHUFFLE(T, __shfl_down_sync, unsigned, ShuffleDown)       \
  GRADSTONE_SHUFFLE(T, __shfl_xor_sync, int, ShuffleXor)              \
  inline unsigned __match_any_sync(unsigned mask, T value, GRADSTONE_SITE) {                                  \
    return gradstone_host::warp_match(gradstone_host::Collective::MatchAny, mask,                             \
                                      gradstone_host::to_word(value), nullptr, GRADSTONE_HERE);               \
  }                                                                                                           \
  inline unsigned __match_all_sync(unsigned mask, T value, int* all_equal, GRADSTONE_SITE) {                  \
    return gradstone_host::warp_match(gradstone_host::Collective::MatchAll, mask,                             \
                                      gradstone_host::to_word(value), all_equal, GRADSTONE_HERE);             \
  }
GRADSTONE_EXCHANGE(int)
GRADSTONE_EXCHANGE(unsigned)
GRADSTONE_EXCHANGE(long)
GRADSTONE_EXCHANGE(unsigned long)
GRADSTONE_EXCHANGE(long long)
GRADSTONE_EXCHANGE(unsigned long long)
GRADSTONE_EXCHANGE(float)
GRADSTONE_EXCHANGE(double)
#undef GRADSTONE_SHUFFLE
#undef GRADSTONE_EXCHANGE

#define GRADSTONE_REDUCE(T, name, collective)                                                                  \
  inline T name(unsigned mask, T value, GRADSTONE_SITE) {                                                      \
    return T(gradstone_host::warp_reduce(gradstone_host::Collective::collective, mask, uint32_t(value),        \
                                         GRADSTONE_HERE));                                                     \
  }
GRADSTONE_REDUCE(unsigned, __reduce_add_sync, ReduceAdd)
GRADSTONE_REDUCE(unsigned, __reduce_min_sync, ReduceMin)
GRADSTONE_REDUCE(unsigned, __reduce_max_sync, ReduceMax)
GRADSTONE_REDUCE(unsigned, __reduce_and_sync, ReduceAnd)
GRADSTONE_REDUCE(unsigned, __reduce_or_sync, ReduceOr)
GRADSTONE_REDUCE(unsigned, __reduce_xor_sync, ReduceXor)
GRADSTONE_REDUCE(int, __reduce_add_sync, ReduceAdd)
GRADSTONE_REDUCE(int, __reduce_min_sync, ReduceMinSigned)
GRADSTONE_REDUCE(int, __reduce_max_sync, ReduceMaxSigned)
#undef GRADSTONE_REDUCE

inline unsigned __ballot_sync(unsigned mask, int predicate, GRADSTONE_SITE) {
  return gradstone_host::warp_reduce(gradstone_host::Collective::Ballot, mask, predicate != 0, GRADSTONE_HERE);
}
inline int __any_sync(unsigned mask, int predicate, GRADSTONE_SITE) {
  return int(gradstone_host::warp_reduce(gradstone_host::Collective::Any, mask, predicate != 0, GRADSTONE_HERE));
}
inline int __all_sync(unsigned mask, int predicate, GRADSTONE_SITE) {
  return int(gradstone_host::warp_reduce(gradstone_host::Collective::All, mask, predicate != 0, GRADSTONE_HERE));
}

/// Stops the launch, as the trap instruction does.
[[noreturn]] inline void __trap(GRADSTONE_SITE) { gradstone_host::fail(GRADSTONE_HERE, "the kernel called __trap()"); }
