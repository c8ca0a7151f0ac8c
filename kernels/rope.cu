// rope.cu: rotary positions, forward and (by the opposite angle) backward.
//
// Contract   args/rope.h. Each output pair depends on its own input pair and angle alone. Angles come from the caller,
//            made once for all heads and layers: their sines are exact to the last bit of f32, a device's fast ones
//            at position 100000 are not.
// Floor      x read and written once; the angles (8 bytes a pair and token) are shared by the heads, from a cache.
// Algorithm  A thread takes a group of N dimensions (16 bytes of the storage type): with halves, N pairs at once, from
//            both halves of the head; interleaved, N / 2 pairs that lie side by side. Groups behind the last pair copy.
//            The grid is the stride. No product is fused into a sum (_rn): the CPU's bits, and memory is waited for anyway.
// Hazards    An interleaved group may hold the last pairs and the first copied dimensions; it decides for each pair. The
//            second half starts at element `pairs`: with 36 pairs of bf16 it is not aligned although the head is.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/rope.h"

template <class T>
__device__ __forceinline__ void turn(T& p, T& q, float cosine, float sine) {
  const float first = to_float(p), second = to_float(q);
  p = from_float<T>(__fsub_rn(__fmul_rn(first, cosine), __fmul_rn(second, sine)));
  q = from_float<T>(__fadd_rn(__fmul_rn(second, cosine), __fmul_rn(first, sine)));
}

template <class T>
__device__ __forceinline__ void rope(const RopeArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const int64_t turned = a.interleaved ? 0 : (a.pairs + N - 1) / N;  // groups of halves in a head
  const int64_t first_plain = a.interleaved ? 0 : 2 * a.pairs;
  const int64_t groups = turned + (a.head_dim - first_plain + N - 1) / N, heads = a.tokens * a.heads;
  const float sign = a.inverse ? -1.0f : 1.0f;
  for (int64_t i = thread_in_grid(); i < heads * groups; i += threads_in_grid()) {
    const int64_t head = quotient(i, groups), group = i - head * groups;
    const float* cosines = a.angles + quotient(head, a.heads) * 2 * a.pairs;
    const float* sines = cosines + a.pairs;
    const T* x = static_cast<const T*>(a.x) + head * a.head_dim;
    T* out = static_cast<T*>(a.out) + head * a.head_dim;
    if (group < turned) {
      const int64_t at = group * N, count = a.pairs - at;
      Group<T, N> p = load_group<N>(x + at, count, a.aligned), q = load_group<N>(x + a.pairs + at, count, a.aligned);
      const Group<float, N> cosine = load_group<N>(cosines + at, count, a.aligned);
      const Group<float, N> sine = load_group<N>(sines + at, count, a.aligned);
#pragma unroll
      for (int j = 0; j < N; j++) turn(p.at[j], q.at[j], cosine.at[j], sign * sine.at[j]);
      store_group<N>(out + at, p, count, a.aligned);
      store_group<N>(out + a.pairs + at, q, count, a.aligned);
    } else {
      const int64_t at = first_plain + (group - turned) * N, count = a.head_dim - at;
      Group<T, N> both = load_group<N>(x + at, count, a.aligned);
      if (a.interleaved) {
#pragma unroll
        for (int j = 0; j < N; j += 2) {
          const int64_t pair = (at + j) / 2;
          if (pair < a.pairs) turn(both.at[j], both.at[j + 1], cosines[pair], sign * sines[pair]);
        }
      }
      store_group<N>(out + at, both, count, a.aligned);
    }
  }
}

KERNEL(rope_f32, RopeArgs, ROW_BLOCK) { rope<float>(a); }
KERNEL(rope_bf16, RopeArgs, ROW_BLOCK) { rope<bf16>(a); }
KERNEL(rope_f16, RopeArgs, ROW_BLOCK) { rope<f16>(a); }
