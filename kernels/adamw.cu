// adamw.cu: the norm of all gradients, and one step of AdamW on all parameters.
//
// Contract   args/adamw.h. Three launches for a model of any number of parameters: squares by chunk, one norm, update.
//            The update reads the norm where the second launch left it, so a step that meets a NaN or an infinity leaves
//            every weight as it is without asking the host. Weights, moments and gradients are f32.
// Floor      28 bytes an element for the update (16 read, 12 written), 2 more for a 16-bit copy, 4 for the norm.
// Algorithm  All parameters are cut into chunks of 16384 elements, numbered through; a block finds the parameter of its
//            chunk by bisection in the table. Squares are added in f64, thread t taking elements 4 t .. 4 t + 3 and then
//            1024 further on, then a fixed tree, then the chunks in a fixed order: the norm depends on the shapes of
//            the parameters alone, and no f32 overflows it. A chunk's sum is finite exactly when its elements are, so
//            the first bad chunk names the parameter.
//            The update's products and sums are the CPU's one by one, none fused (the _rn intrinsics see to it): with
//            the same scale the same bits, and the kernel waits for memory anyway.
// Hazards    A parameter of no elements has no chunk: the bisection takes the last of those that start together.
//            Parameters of somebody else's may not be aligned; whether 16 bytes can be read at once is asked of each.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/adamw.h"

constexpr int64_t CHUNK = ADAMW_CHUNK;

// The last parameter that starts at `chunk` or before it.
__device__ __forceinline__ int64_t parameter_of(const AdamWParameter* table, int64_t parameters, int64_t chunk) {
  int64_t low = 0, high = parameters;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (table[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ __forceinline__ bool on_16_bytes(const void* address) {
  return (reinterpret_cast<unsigned long long>(address) & 15u) == 0;
}

struct AddDoubles {
  __device__ __forceinline__ double operator()(double a, double b) const { return a + b; }
};

KERNEL(gradient_squares, GradientSquaresArgs, ROW_BLOCK) {
  constexpr int N = 4;
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    const AdamWParameter& parameter = a.table[parameter_of(a.table, a.parameters, chunk)];
    const int64_t first = (chunk - parameter.first_chunk) * CHUNK;
    const int64_t left = parameter.len - first, len = left < CHUNK ? left : CHUNK;
    const float* gradient = parameter.gradient + first;
    const bool aligned = on_16_bytes(gradient);
    double sum = 0.0;
    for (int64_t at = int64_t(threadIdx.x) * N; at < len; at += ROW_BLOCK * N) {
      const Group<float, N> group = load_group<N>(gradient + at, len - at, aligned);
#pragma unroll
      for (int i = 0; i < N; i++) sum += double(group.at[i]) * double(group.at[i]);
    }
    sum = block_reduce<ROW_BLOCK>(sum, AddDoubles());
    if (threadIdx.x == 0) a.partial[chunk] = sum;
  }
}

struct NormPart {
  double sum;
  int64_t bad_chunk;
};
struct JoinNormParts {
  __device__ __forceinline__ NormPart operator()(NormPart a, NormPart b) const {
    return NormPart{a.sum + b.sum, a.bad_chunk < b.bad_chunk ? a.bad_chunk : b.bad_chunk};
  }
};

KERNEL(gradient_norm, GradientNormArgs, ROW_BLOCK) {
  NormPart part = {0.0, a.chunks};
  for (int64_t chunk = threadIdx.x; chunk < a.chunks; chunk += ROW_BLOCK) {
    const double squares = a.partial[chunk];
    part.sum += squares;
    if (!(squares - squares == 0.0) && chunk < part.bad_chunk) part.bad_chunk = chunk;
  }
  part = block_reduce<ROW_BLOCK>(part, JoinNormParts());
  if (threadIdx.x != 0) return;
  const double norm = sqrt(part.sum), scale = a.most / (norm + 1e-6);
  const bool finite = part.bad_chunk == a.chunks;
  a.result->norm = norm;
  a.result->scale = scale < 1.0 ? float(scale) : 1.0f;
  a.result->bad = finite ? -1 : int32_t(parameter_of(a.table, a.parameters, part.bad_chunk));
}

// Four rounded weights: 8 bytes at once where they are aligned.
template <class T>
__device__ __forceinline__ void store_copy(void* copy, int64_t at, const Group<float, 4>& weight, int64_t count, bool aligned) {
  static_assert(sizeof(T) == 2, "a 16-bit type");
  T* to = static_cast<T*>(copy) + at;
  if (aligned && count >= 4) {
    const uint2 words = make_uint2(pack2<T>(weight.at[0], weight.at[1]), pack2<T>(weight.at[2], weight.at[3]));
    __stwb(reinterpret_cast<uint2*>(to), words);  // an assignment would become two stores
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < count) to[i] = from_float<T>(weight.at[i]);
    }
  }
}

KERNEL(adamw, AdamWArgs, ROW_BLOCK) {
  constexpr int N = 4;
  if (a.result->bad >= 0) return;
  const float scale = a.result->scale;
  for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
    // A copy: through a reference its pointers would be read again after every store.
    const AdamWParameter parameter = a.table[parameter_of(a.table, a.parameters, chunk)];
    const int64_t first = (chunk - parameter.first_chunk) * CHUNK;
    const int64_t end = first + CHUNK < parameter.len ? first + CHUNK : parameter.len;
    const float keep = parameter.decays ? a.keep : 1.0f;
    const bool aligned = on_16_bytes(parameter.weight) && on_16_bytes(parameter.mean) && on_16_bytes(parameter.variance) &&
                         on_16_bytes(parameter.gradient) && on_16_bytes(parameter.copy);
    for (int64_t at = first + int64_t(threadIdx.x) * N; at < end; at += ROW_BLOCK * N) {
      const int64_t count = end - at;
      Group<float, N> weight = load_group<N>(parameter.weight + at, count, aligned);
      Group<float, N> mean = load_group<N>(parameter.mean + at, count, aligned);
      Group<float, N> variance = load_group<N>(parameter.variance + at, count, aligned);
      const Group<float, N> gradient = load_group<N>(parameter.gradient + at, count, aligned);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float g = __fmul_rn(gradient.at[i], scale);
        mean.at[i] = __fadd_rn(__fmul_rn(a.beta1, mean.at[i]), __fmul_rn(a.fresh1, g));
        variance.at[i] = __fadd_rn(__fmul_rn(a.beta2, variance.at[i]), __fmul_rn(__fmul_rn(a.fresh2, g), g));
        const float divisor = __fadd_rn(__fmul_rn(__fsqrt_rn(variance.at[i]), a.correction2), a.epsilon);
        const float move = __fmul_rn(a.rate, __fdiv_rn(mean.at[i], divisor));
        weight.at[i] = __fsub_rn(__fmul_rn(weight.at[i], keep), move);
      }
      store_group<N>(parameter.weight + at, weight, count, aligned);
      store_group<N>(parameter.mean + at, mean, count, aligned);
      store_group<N>(parameter.variance + at, variance, count, aligned);
      if (parameter.copy_type == ADAMW_BF16) store_copy<bf16>(parameter.copy, at, weight, count, aligned);
      if (parameter.copy_type == ADAMW_F16) store_copy<f16>(parameter.copy, at, weight, count, aligned);
      if (parameter.copy_type == ADAMW_F32) store_group<N>(static_cast<float*>(parameter.copy) + at, weight, count, aligned);
    }
  }
}
