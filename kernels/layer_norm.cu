// layer_norm.cu: rows centred, divided by their deviation, scaled and shifted, and the gradients of it.
//
// Contract   args/layer_norm.h. All arithmetic is f32 and rounds once. A row's bits depend on the row and its width.
// Floor      forward: x and y once. Backward: x and dy read, dx written; and x and dy once more for the weight.
// Algorithm  As rms_norm.cu: a warp or a block a row by its width, the row kept in registers between its walks, the
//            weight's gradient over 64 rows a partial sum. Three walks forward: mean, squares about the mean, result.
// Hazards    The mean is subtracted before the square: the difference of two large sums would lose the variance.
//            Elements behind the end of a row are not zeros once they are centred, so they are left out by index.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/layer_norm.h"

template <class T, int THREADS>
__device__ __forceinline__ void layer_norm(const LayerNormArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const T* row = static_cast<const T*>(a.x) + turn.row * a.width;
    const auto x = HeldRow<T, N>::template load<THREADS>(row, a.width, a.aligned);
    T* y = static_cast<T*>(a.y) + turn.row * a.width;
    float sum = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) sum += group.at[i];
    });
    const float mean = block_reduce<THREADS>(sum, Sum()) / float(a.width);
    float squares = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float centred = at + i < a.width ? group.at[i] - mean : 0.0f;
        squares += centred * centred;
      }
    });
    squares = block_reduce<THREADS>(squares, Sum());
    const float inverse = 1.0f / sqrtf(squares / float(a.width) + a.epsilon);
    if (thread_of_row<THREADS>() == 0) {
      a.statistics[2 * turn.row] = mean;
      a.statistics[2 * turn.row + 1] = inverse;
    }
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      Group<float, N> group = x.values(k, at);
      const int64_t count = a.width - at;
      const Group<float, N> weight = load_wide<N>(static_cast<const T*>(a.weight) + at, count, a.aligned);
      const Group<float, N> bias = load_wide<N>(static_cast<const T*>(a.bias) + at, count, a.aligned);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float normal = (group.at[i] - mean) * inverse;
        group.at[i] = normal * weight.at[i] + bias.at[i];
      }
      store_rounded(y + at, group, count, a.aligned);
    });
  }
}

template <class T, int THREADS>
__device__ __forceinline__ void layer_norm_gradient(const LayerNormGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* weights = static_cast<const T*>(a.weight);
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const int64_t first = turn.row * a.width;
    const auto x = HeldRow<T, N>::template load<THREADS>(static_cast<const T*>(a.x) + first, a.width, a.aligned);
    const auto dy = HeldRow<float, N>::template load<THREADS>(a.dy + first, a.width, a.aligned);
    const float mean = a.statistics[2 * turn.row], inverse = a.statistics[2 * turn.row + 1];
    // dy * weight at one group; zeros behind the end.
    const auto scaled = [&](int k, int64_t at) {
      const Group<float, N> weight = load_wide<N>(weights + at, a.width - at, a.aligned);
      Group<float, N> s = dy.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) s.at[i] *= weight.at[i];
      return s;
    };
    SumPair sums = {0.0f, 0.0f};
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at), s = scaled(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        sums.first += s.at[i];
        sums.second += s.at[i] * ((group.at[i] - mean) * inverse);
      }
    });
    sums = block_reduce<THREADS>(sums, AddPairs());
    const float level = sums.first / float(a.width), along = sums.second / float(a.width);
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
      Group<float, N> dx = scaled(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) {
        const float normal = (group.at[i] - mean) * inverse;
        dx.at[i] = (dx.at[i] - level - along * normal) * inverse;
      }
      store_group<N>(a.dx + first + at, dx, a.width - at, a.aligned);
    });
  }
}

template <class T>
__device__ __forceinline__ void layer_norm_weight(const LayerNormWeightArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  column_partials(a.partial, a.rows, a.width, [&](int64_t i, int64_t row) {
    return a.dy[i] * ((to_float(x[i]) - a.statistics[2 * row]) * a.statistics[2 * row + 1]);
  });
}

ROW_KERNELS(layer_norm, LayerNormArgs, 3)
ROW_KERNELS(layer_norm_gradient, LayerNormGradientArgs, 2)
KERNEL(layer_norm_weight_f32, LayerNormWeightArgs, ROW_BLOCK) { layer_norm_weight<float>(a); }
KERNEL(layer_norm_weight_bf16, LayerNormWeightArgs, ROW_BLOCK) { layer_norm_weight<bf16>(a); }
KERNEL(layer_norm_weight_f16, LayerNormWeightArgs, ROW_BLOCK) { layer_norm_weight<f16>(a); }
