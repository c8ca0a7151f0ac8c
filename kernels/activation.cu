// activation.cu: SiLU and GELU, alone and as the gate of a product, and their gradients.
//
// Contract   args/activation.h. Element i of an output depends on element i of the inputs alone.
// Floor      forward: x, up and y once. Backward: x, up and dy read, dx and dup written, in one pass.
// Algorithm  A thread takes 16 bytes of the storage type at a time, the grid as stride. Value and slope come from the
//            same exponential. Which function it is, is a number that all threads share: a branch that never diverges.
// Hazards    e^-x overflows to infinity for large negative x: 1 / (1 + inf) is 0, as it should be. GELU's tail is taken
//            from erfc: 1 + erf(x) would round to 0 below -5.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/activation.h"

struct ValueSlope {
  float value, slope;
};

__device__ __forceinline__ ValueSlope activate(uint32_t function, float x) {
  constexpr float SQRT_2_OVER_PI = 0.7978845608f, CUBIC = 0.044715f;
  if (function == ACTIVATION_SILU) {
    const float sigmoid = 1.0f / (1.0f + expf(-x));
    return ValueSlope{x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
  }
  if (function == ACTIVATION_GELU) {
    const float cumulative = 0.5f * erfcf(x * -0.7071067812f);
    const float density = expf(-0.5f * x * x) * 0.3989422804f;
    return ValueSlope{x * cumulative, cumulative + x * density};
  }
  const float square = x * x;
  const float t = tanhf(SQRT_2_OVER_PI * x * (1.0f + CUBIC * square));
  const float inner = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * square);
  return ValueSlope{0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner};
}

template <class T>
__device__ __forceinline__ void activation(const ActivationArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* up = static_cast<const T*>(a.up);
  T* y = static_cast<T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Group<T, N> in = load_group<N>(x + at, count, a.aligned);
    Group<T, N> gate = {}, out;
    if (up) gate = load_group<N>(up + at, count, a.aligned);
#pragma unroll
    for (int i = 0; i < N; i++) {
      const float value = activate(a.function, to_float(in.at[i])).value;
      out.at[i] = from_float<T>(up ? value * to_float(gate.at[i]) : value);
    }
    store_group<N>(y + at, out, count, a.aligned);
  }
}

template <class T>
__device__ __forceinline__ void activation_gradient(const ActivationGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* up = static_cast<const T*>(a.up);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Group<T, N> in = load_group<N>(x + at, count, a.aligned);
    const Group<float, N> dy = load_group<N>(a.dy + at, count, a.aligned);
    Group<T, N> gate = {};
    if (up) gate = load_group<N>(up + at, count, a.aligned);
    Group<float, N> dx, dup;
#pragma unroll
    for (int i = 0; i < N; i++) {
      const ValueSlope f = activate(a.function, to_float(in.at[i]));
      dx.at[i] = (up ? f.slope * to_float(gate.at[i]) : f.slope) * dy.at[i];
      dup.at[i] = f.value * dy.at[i];
    }
    if (a.dx) store_group<N>(a.dx + at, dx, count, a.aligned);
    if (a.dup) store_group<N>(a.dup + at, dup, count, a.aligned);
  }
}

#define ACTIVATION_KERNELS(T, suffix)                                                                 \
  KERNEL(activation_##suffix, ActivationArgs, ROW_BLOCK) { activation<T>(a); }                        \
  KERNEL(activation_gradient_##suffix, ActivationGradientArgs, ROW_BLOCK) { activation_gradient<T>(a); }
ACTIVATION_KERNELS(float, f32)
ACTIVATION_KERNELS(bf16, bf16)
ACTIVATION_KERNELS(f16, f16)
