// softmax.cu: softmax and log-softmax over rows of any length, and their gradient.
//
// Contract   args/softmax.h. f32 throughout; the stored result is rounded once, the gradient is taken from the unrounded
//            one. A row's bits depend on the row and its width. A row of -inf, or with a NaN, is NaN and nothing else is.
// Floor      forward: x once, y once (and its f32 twin where a gradient will be wanted). Backward: 12 bytes an element.
// Algorithm  A warp a row up to a width of 1024, a block a row beyond; three walks: largest, sum of e^(x - largest),
//            result. Up to 8192 elements of 16 bits (4096 of f32) stay in registers; beyond, the later walks find the
//            rows of the running blocks in the L2 cache (132 rows of 152 k bf16 are 40 MB of an H200's 50). For one target's
//            log-prob take logprob.cu, which never writes the row.
// Hazards    x - largest is NaN where both are -inf: so is the row, as on the CPU. Elements behind the end of a row are
//            left out by index: e^0 is not 0.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/softmax.h"

template <class T, int THREADS>
__device__ __forceinline__ void softmax(const SoftmaxArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const int64_t first = turn.row * a.width;
    const auto x = HeldRow<T, N>::template load<THREADS>(static_cast<const T*>(a.x) + first, a.width, a.aligned);
    float largest = -INFINITY_F;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        if (at + i < a.width) largest = fmaxf(largest, group.at[i]);
      }
    });
    largest = block_reduce<THREADS>(largest, Max());
    float sum = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        if (at + i < a.width) sum += expf(group.at[i] - largest);
      }
    });
    sum = block_reduce<THREADS>(sum, Sum());
    const float logsumexp = largest + logf(sum), share = 1.0f / sum;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      Group<float, N> exact = x.values(k, at);
      const int64_t count = a.width - at;
#pragma unroll
      for (int i = 0; i < N; i++) {
        exact.at[i] = a.log ? exact.at[i] - logsumexp : expf(exact.at[i] - largest) * share;
      }
      store_rounded(static_cast<T*>(a.y) + first + at, exact, count, a.aligned);
      if (a.exact) store_group<N>(a.exact + first + at, exact, count, a.aligned);
    });
  }
}

template <class T, int THREADS>
__device__ __forceinline__ void softmax_gradient(const SoftmaxGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const int64_t first = turn.row * a.width;
    const auto y = HeldRow<T, N>::template load<THREADS>(a.y + first, a.width, a.aligned);
    const auto dy = HeldRow<T, N>::template load<THREADS>(a.dy + first, a.width, a.aligned);
    float sum = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> result = y.values(k, at), gradient = dy.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) sum += a.log ? gradient.at[i] : result.at[i] * gradient.at[i];
    });
    sum = block_reduce<THREADS>(sum, Sum());
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> result = y.values(k, at), gradient = dy.values(k, at);
      Group<float, N> dx;
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float value = result.at[i];
        dx.at[i] = a.log ? gradient.at[i] - expf(value) * sum : value * gradient.at[i] - value * sum;
      }
      store_group<N>(a.dx + first + at, dx, a.width - at, a.aligned);
    });
  }
}

ROW_KERNELS(softmax, SoftmaxArgs, 3)
ROW_KERNEL(softmax_gradient, f32, float, SoftmaxGradientArgs, 3)
