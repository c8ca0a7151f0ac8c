// activation.cu: SiLU and GELU, alone and as the gate of a product, and their gradients.
//
// Contract   args/activation.h. Element i of an output depends on element i of the inputs alone.
// Floor      forward: x, up and y once. Backward: x, up and dy read, dx and dup written, in one pass.
// Algorithm  A thread takes 16 bytes of the storage type at a time, the grid as stride. Value and slope come from the
//            same exponential. Which function it is, is a number that all threads share: it chooses a loop.
// Hazards    e^-x overflows to infinity for large negative x: 1 / (1 + inf) is 0, as it should be; the quick division is 0
//            from 2^126 on, where the sigmoid is. GELU's tail is taken from erfc: 1 + erf(x) would round to 0 below -5.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/activation.h"

struct ValueSlope {
  float value, slope;
};

template <uint32_t FUNCTION>
__device__ __forceinline__ ValueSlope activate(float x) {
  constexpr float SQRT_2_OVER_PI = 0.7978845608f, CUBIC = 0.044715f;
  if constexpr (FUNCTION == ACTIVATION_SILU) {
    const float sigmoid = __fdividef(1.0f, 1.0f + expf(-x));
    return ValueSlope{x * sigmoid, sigmoid * (1.0f + x * (1.0f - sigmoid))};
  } else if constexpr (FUNCTION == ACTIVATION_GELU) {
    const float cumulative = 0.5f * erfcf(x * -0.7071067812f);
    const float density = expf(-0.5f * x * x) * 0.3989422804f;
    return ValueSlope{x * cumulative, cumulative + x * density};
  } else {
    const float square = x * x;
    const float t = tanhf(SQRT_2_OVER_PI * x * (1.0f + CUBIC * square));
    const float inner = SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * square);
    return ValueSlope{0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner};
  }
}

template <class T, uint32_t FUNCTION>
__device__ __forceinline__ void activation(const ActivationArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* up = static_cast<const T*>(a.up);
  T* y = static_cast<T*>(a.y);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Words<T, N> in = load_words<N>(x + at, count, a.aligned);
    Words<T, N> gate = {};
    if (up) gate = load_words<N>(up + at, count, a.aligned);  // both in flight before either is worked on
    Group<float, N> out = widened<T, N>(in);
#pragma unroll
    for (int i = 0; i < N; i++) out.at[i] = activate<FUNCTION>(out.at[i]).value;
    if (up) {
      const Group<float, N> factor = widened<T, N>(gate);
#pragma unroll
      for (int i = 0; i < N; i++) out.at[i] *= factor.at[i];
    }
    store_rounded(y + at, out, count, a.aligned);
  }
}

template <class T, uint32_t FUNCTION>
__device__ __forceinline__ void activation_gradient(const ActivationGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* x = static_cast<const T*>(a.x);
  const T* up = static_cast<const T*>(a.up);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    const int64_t count = a.len - at;
    const Words<T, N> in = load_words<N>(x + at, count, a.aligned);
    const Words<float, N> upstream = load_words<N>(a.dy + at, count, a.aligned);
    Words<T, N> gate = {};
    if (up) gate = load_words<N>(up + at, count, a.aligned);
    const Group<float, N> z = widened<T, N>(in), dy = widened<float, N>(upstream), factor = widened<T, N>(gate);
    Group<float, N> dx, dup;
#pragma unroll
    for (int i = 0; i < N; i++) {
      const ValueSlope f = activate<FUNCTION>(z.at[i]);
      dx.at[i] = (up ? f.slope * factor.at[i] : f.slope) * dy.at[i];
      dup.at[i] = f.value * dy.at[i];
    }
    if (a.dx) store_group<N>(a.dx + at, dx, count, a.aligned);
    if (a.dup) store_group<N>(a.dup + at, dup, count, a.aligned);
  }
}

#define OF_FUNCTION(walk, T)                            \
  switch (a.function) {                                 \
    case ACTIVATION_SILU: walk<T, ACTIVATION_SILU>(a); break; \
    case ACTIVATION_GELU: walk<T, ACTIVATION_GELU>(a); break; \
    default: walk<T, ACTIVATION_GELU_TANH>(a);          \
  }
#define ACTIVATION_KERNELS(T, suffix)                                                            \
  KERNEL(activation_##suffix, ActivationArgs, ROW_BLOCK) { OF_FUNCTION(activation, T) }          \
  KERNEL(activation_gradient_##suffix, ActivationGradientArgs, ROW_BLOCK) { OF_FUNCTION(activation_gradient, T) }
ACTIVATION_KERNELS(float, f32)
ACTIVATION_KERNELS(bf16, bf16)
ACTIVATION_KERNELS(f16, f16)
