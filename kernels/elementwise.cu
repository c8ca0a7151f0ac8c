// elementwise.cu: arithmetic on one element at a time, and its gradients.
//
// Contract   args/elementwise.h. Element i depends on element i of each operand alone (i mod period of a repeated
//            one), so bits do not depend on the launch. Outputs may be the first operand's memory.
// Floor      the bytes of the operands and outputs: 3 len sizeof(T) for a binary function of unrepeated operands.
// Algorithm  A thread takes 16 bytes of the storage type at a time, the grid as stride; where an array is not aligned the
//            same elements come one by one. A repeated operand is read so too while its period is a multiple of the
//            group. The function is a run-time number that is the same for all threads: it chooses a loop, so that
//            there is one kernel a type instead of one a function and an element is asked nothing.
//            The grid is as large as the device can hold at once; the loop does the rest, for any length.
// Hazards    `i mod period` is a 64-bit division: it is skipped when the period is the length, and short where it can be.
//            A group of an operand is read whole before it is written: the output may be its memory.
//            exp and tanh are the accurate ones: they stand in for the CPU's in tests to a few units in the last place.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/elementwise.h"

__device__ __forceinline__ int64_t remainder_of(int64_t n, int64_t d) { return n - quotient(n, d) * d; }

// The elements of a repeated operand that stand beside those of the others from `at` on.
template <int N, class T>
__device__ __forceinline__ Group<float, N> load_repeated(const T* y, int64_t at, int64_t len, int64_t period, bool aligned) {
  if (period == len) return load_wide<N>(y + at, len - at, aligned);
  const int64_t first = remainder_of(at, period);
  if (period % N == 0) return load_wide<N>(y + first, period - first, aligned);
  Group<float, N> group;
  int64_t place = first;
#pragma unroll
  for (int i = 0; i < N; i++) {
    group.at[i] = at + i < len ? to_float(y[place]) : 0.0f;
    place = place + 1 < period ? place + 1 : 0;
  }
  return group;
}

template <uint32_t OP>
__device__ __forceinline__ float binary_value(float left, float right) {
  switch (OP) {
    case BINARY_ADD: return left + right;
    case BINARY_SUB: return left - right;
    case BINARY_MUL: return left * right;
    default: return left / right;
  }
}

template <class T, uint32_t OP>
__device__ __forceinline__ void binary(const BinaryArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<float, N> left = load_wide<N>(x + at, count, a.aligned);
    const Group<float, N> right = load_repeated<N>(y, at, a.len, a.period, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) left.at[i] = binary_value<OP>(left.at[i], right.at[i]);
    store_rounded(static_cast<T*>(a.out) + at, left, count, a.aligned);
  }
}

template <class T, uint32_t OP>
__device__ __forceinline__ void binary_gradient(const BinaryGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<float, N> dx = load_group<N>(a.gradient + at, count, a.aligned), dy = dx;
    if constexpr (OP >= BINARY_MUL) {
      const Group<float, N> of_x = load_wide<N>(x + at, count, a.aligned);
      const Group<float, N> of_y = load_repeated<N>(y, at, a.len, a.period, a.aligned);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float g = dx.at[i], left = of_x.at[i], right = of_y.at[i];
        dx.at[i] = OP == BINARY_MUL ? g * right : g / right;
        dy.at[i] = OP == BINARY_MUL ? g * left : g * (-left / (right * right));
      }
    } else if constexpr (OP == BINARY_SUB) {
#pragma unroll
      for (int i = 0; i < N; i++) dy.at[i] = -dy.at[i];
    }
    if (a.dx) store_group<N>(a.dx + at, dx, count, a.aligned);
    if (a.dy) store_group<N>(a.dy + at, dy, count, a.aligned);
  }
}

template <uint32_t OP>
__device__ __forceinline__ float unary_value(float constant, float x) {
  switch (OP) {
    case UNARY_SCALE: return x * constant;
    case UNARY_SHIFT: return x + constant;
    case UNARY_EXP: return expf(x);
    case UNARY_LOG: return logf(x);
    case UNARY_SQRT: return sqrtf(x);
    case UNARY_TANH: return tanhf(x);
    default: return constant * tanhf(x / constant);
  }
}

template <class T, uint32_t OP>
__device__ __forceinline__ void unary(const UnaryArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<float, N> x = load_wide<N>(static_cast<const T*>(a.x) + at, count, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) x.at[i] = unary_value<OP>(a.constant, x.at[i]);
    store_rounded(static_cast<T*>(a.out) + at, x, count, a.aligned);
  }
}

template <uint32_t OP>
__device__ __forceinline__ float unary_slope(float constant, float saved) {
  switch (OP) {
    case UNARY_SCALE: return constant;
    case UNARY_SHIFT: return 1.0f;
    case UNARY_EXP: return saved;
    case UNARY_LOG: return 1.0f / saved;
    case UNARY_SQRT: return 0.5f / saved;
    case UNARY_TANH: return 1.0f - saved * saved;
    default: return 1.0f - (saved / constant) * (saved / constant);
  }
}

template <class T, uint32_t OP>
__device__ __forceinline__ void unary_gradient(const UnaryGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Group<float, N> saved = load_wide<N>(static_cast<const T*>(a.saved) + at, count, a.aligned);
    Group<float, N> dx = load_group<N>(a.gradient + at, count, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) dx.at[i] *= unary_slope<OP>(a.constant, saved.at[i]);
    store_group<N>(a.dx + at, dx, count, a.aligned);
  }
}

#define OF_BINARY(walk, T)                               \
  switch (a.op) {                                        \
    case BINARY_ADD: walk<T, BINARY_ADD>(a); break;      \
    case BINARY_SUB: walk<T, BINARY_SUB>(a); break;      \
    case BINARY_MUL: walk<T, BINARY_MUL>(a); break;      \
    default: walk<T, BINARY_DIV>(a);                     \
  }
#define OF_UNARY(walk, T)                                \
  switch (a.op) {                                        \
    case UNARY_SCALE: walk<T, UNARY_SCALE>(a); break;    \
    case UNARY_SHIFT: walk<T, UNARY_SHIFT>(a); break;    \
    case UNARY_EXP: walk<T, UNARY_EXP>(a); break;        \
    case UNARY_LOG: walk<T, UNARY_LOG>(a); break;        \
    case UNARY_SQRT: walk<T, UNARY_SQRT>(a); break;      \
    case UNARY_TANH: walk<T, UNARY_TANH>(a); break;      \
    default: walk<T, UNARY_SOFTCAP>(a);                  \
  }
#define ELEMENTWISE(T, suffix)                                                                         \
  KERNEL(binary_##suffix, BinaryArgs, ROW_BLOCK) { OF_BINARY(binary, T) }                              \
  KERNEL(binary_gradient_##suffix, BinaryGradientArgs, ROW_BLOCK) { OF_BINARY(binary_gradient, T) }    \
  KERNEL(unary_##suffix, UnaryArgs, ROW_BLOCK) { OF_UNARY(unary, T) }                                  \
  KERNEL(unary_gradient_##suffix, UnaryGradientArgs, ROW_BLOCK) { OF_UNARY(unary_gradient, T) }
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
ELEMENTWISE(f16, f16)
