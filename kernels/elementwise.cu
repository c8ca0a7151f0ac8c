// elementwise.cu: arithmetic on one element at a time, and its gradients.
//
// Contract   args/elementwise.h. Element i depends on element i of each operand alone (i mod period of a repeated
//            one), so bits do not depend on the launch. Outputs may be the first operand's memory.
// Floor      the bytes of the operands and outputs: 3 len sizeof(T) for a binary function of unrepeated operands.
// Algorithm  A thread takes 16 bytes of the storage type at a time, the grid as stride; where an array is not aligned the
//            same elements come one by one. A repeated operand is read so too while its period is a multiple of the
//            group. The function is chosen by a run-time number that is the same for all threads: one kernel a type
//            instead of one a function, and a branch that never diverges.
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
__device__ __forceinline__ Group<T, N> load_repeated(const T* y, int64_t at, int64_t len, int64_t period, bool aligned) {
  if (period == len) return load_group<N>(y + at, len - at, aligned);
  const int64_t first = remainder_of(at, period);
  if (period % N == 0) return load_group<N>(y + first, period - first, aligned);
  Group<T, N> group;
  int64_t place = first;
#pragma unroll
  for (int i = 0; i < N; i++) {
    group.at[i] = at + i < len ? y[place] : T{};
    place = place + 1 < period ? place + 1 : 0;
  }
  return group;
}

__device__ __forceinline__ float binary_value(uint32_t op, float left, float right) {
  switch (op) {
    case BINARY_ADD: return left + right;
    case BINARY_SUB: return left - right;
    case BINARY_MUL: return left * right;
    default: return left / right;
  }
}

template <class T>
__device__ __forceinline__ void binary(const BinaryArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<T, N> left = load_group<N>(x + at, count, a.aligned);
    const Group<T, N> right = load_repeated<N>(y, at, a.len, a.period, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) {
      left.at[i] = from_float<T>(binary_value(a.op, to_float(left.at[i]), to_float(right.at[i])));
    }
    store_group<N>(static_cast<T*>(a.out) + at, left, count, a.aligned);
  }
}

template <class T>
__device__ __forceinline__ void binary_gradient(const BinaryGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<float, N> dx = load_group<N>(a.gradient + at, count, a.aligned), dy = dx;
    if (a.op >= BINARY_MUL) {
      const Group<T, N> of_x = load_group<N>(x + at, count, a.aligned);
      const Group<T, N> of_y = load_repeated<N>(y, at, a.len, a.period, a.aligned);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float g = dx.at[i], left = to_float(of_x.at[i]), right = to_float(of_y.at[i]);
        dx.at[i] = a.op == BINARY_MUL ? g * right : g / right;
        dy.at[i] = a.op == BINARY_MUL ? g * left : g * (-left / (right * right));
      }
    } else if (a.op == BINARY_SUB) {
#pragma unroll
      for (int i = 0; i < N; i++) dy.at[i] = -dy.at[i];
    }
    if (a.dx) store_group<N>(a.dx + at, dx, count, a.aligned);
    if (a.dy) store_group<N>(a.dy + at, dy, count, a.aligned);
  }
}

__device__ __forceinline__ float unary_value(uint32_t op, float constant, float x) {
  switch (op) {
    case UNARY_SCALE: return x * constant;
    case UNARY_SHIFT: return x + constant;
    case UNARY_EXP: return expf(x);
    case UNARY_LOG: return logf(x);
    case UNARY_SQRT: return sqrtf(x);
    case UNARY_TANH: return tanhf(x);
    default: return constant * tanhf(x / constant);
  }
}

template <class T>
__device__ __forceinline__ void unary(const UnaryArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    Group<T, N> x = load_group<N>(static_cast<const T*>(a.x) + at, count, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) x.at[i] = from_float<T>(unary_value(a.op, a.constant, to_float(x.at[i])));
    store_group<N>(static_cast<T*>(a.out) + at, x, count, a.aligned);
  }
}

__device__ __forceinline__ float unary_slope(uint32_t op, float constant, float saved) {
  switch (op) {
    case UNARY_SCALE: return constant;
    case UNARY_SHIFT: return 1.0f;
    case UNARY_EXP: return saved;
    case UNARY_LOG: return 1.0f / saved;
    case UNARY_SQRT: return 0.5f / saved;
    case UNARY_TANH: return 1.0f - saved * saved;
    default: return 1.0f - (saved / constant) * (saved / constant);
  }
}

template <class T>
__device__ __forceinline__ void unary_gradient(const UnaryGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Group<T, N> saved = load_group<N>(static_cast<const T*>(a.saved) + at, count, a.aligned);
    Group<float, N> dx = load_group<N>(a.gradient + at, count, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) dx.at[i] *= unary_slope(a.op, a.constant, to_float(saved.at[i]));
    store_group<N>(a.dx + at, dx, count, a.aligned);
  }
}

#define ELEMENTWISE(T, suffix)                                                               \
  KERNEL(binary_##suffix, BinaryArgs, ROW_BLOCK) { binary<T>(a); }                           \
  KERNEL(binary_gradient_##suffix, BinaryGradientArgs, ROW_BLOCK) { binary_gradient<T>(a); } \
  KERNEL(unary_##suffix, UnaryArgs, ROW_BLOCK) { unary<T>(a); }                              \
  KERNEL(unary_gradient_##suffix, UnaryGradientArgs, ROW_BLOCK) { unary_gradient<T>(a); }
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
ELEMENTWISE(f16, f16)
