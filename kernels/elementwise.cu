// elementwise.cu: arithmetic on one element at a time, and its gradients.
//
// Contract   args/elementwise.h. Element i depends on element i of each operand alone (i mod period of a repeated
//            one), so bits do not depend on the launch. Outputs may be the first operand's memory.
// Floor      the bytes of the operands and outputs: 3 len sizeof(T) for a binary function of unrepeated operands.
// Algorithm  A thread handles single elements with the grid as its stride: neighbouring threads touch neighbouring
//            addresses, so loads coalesce whatever the alignment. The function is chosen by a run-time number that is
//            the same for all threads: one kernel a type instead of one a function, and a branch that never diverges.
//            The grid is as large as the device can hold at once; the loop does the rest, for any length.
// Hazards    `i mod period` is a 64-bit division: it is skipped when the period is the length.
//            exp and tanh are the accurate ones: they stand in for the CPU's in tests to a few units in the last place.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/elementwise.h"

template <class T>
__device__ __forceinline__ void binary(const BinaryArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  T* out = static_cast<T*>(a.out);
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    const float left = to_float(x[i]), right = to_float(y[a.period == a.len ? i : i % a.period]);
    float value;
    switch (a.op) {
      case BINARY_ADD: value = left + right; break;
      case BINARY_SUB: value = left - right; break;
      case BINARY_MUL: value = left * right; break;
      default: value = left / right;
    }
    out[i] = from_float<T>(value);
  }
}

template <class T>
__device__ __forceinline__ void binary_gradient(const BinaryGradientArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* y = static_cast<const T*>(a.y);
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    const float g = a.gradient[i];
    float dx = g, dy = g;
    if (a.op == BINARY_SUB) dy = -g;
    if (a.op >= BINARY_MUL) {
      const float left = to_float(x[i]), right = to_float(y[a.period == a.len ? i : i % a.period]);
      dx = a.op == BINARY_MUL ? g * right : g / right;
      dy = a.op == BINARY_MUL ? g * left : g * (-left / (right * right));
    }
    if (a.dx) a.dx[i] = dx;
    if (a.dy) a.dy[i] = dy;
  }
}

template <class T>
__device__ __forceinline__ void unary(const UnaryArgs& a) {
  const T* in = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    const float x = to_float(in[i]);
    float value;
    switch (a.op) {
      case UNARY_SCALE: value = x * a.constant; break;
      case UNARY_SHIFT: value = x + a.constant; break;
      case UNARY_EXP: value = expf(x); break;
      case UNARY_LOG: value = logf(x); break;
      case UNARY_SQRT: value = sqrtf(x); break;
      case UNARY_TANH: value = tanhf(x); break;
      default: value = a.constant * tanhf(x / a.constant);
    }
    out[i] = from_float<T>(value);
  }
}

template <class T>
__device__ __forceinline__ void unary_gradient(const UnaryGradientArgs& a) {
  const T* saved = static_cast<const T*>(a.saved);
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    const float s = to_float(saved[i]);
    float slope;
    switch (a.op) {
      case UNARY_SCALE: slope = a.constant; break;
      case UNARY_SHIFT: slope = 1.0f; break;
      case UNARY_EXP: slope = s; break;
      case UNARY_LOG: slope = 1.0f / s; break;
      case UNARY_SQRT: slope = 0.5f / s; break;
      case UNARY_TANH: slope = 1.0f - s * s; break;
      default: slope = 1.0f - (s / a.constant) * (s / a.constant);
    }
    a.dx[i] = a.gradient[i] * slope;
  }
}

#define ELEMENTWISE(T, suffix)                                                             \
  KERNEL(binary_##suffix, BinaryArgs, 256) { binary<T>(a); }                               \
  KERNEL(binary_gradient_##suffix, BinaryGradientArgs, 256) { binary_gradient<T>(a); }     \
  KERNEL(unary_##suffix, UnaryArgs, 256) { unary<T>(a); }                                  \
  KERNEL(unary_gradient_##suffix, UnaryGradientArgs, 256) { unary_gradient<T>(a); }
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
ELEMENTWISE(f16, f16)
