// rms_norm.cu: rows divided by their root mean square and scaled by a weight, and the gradients of it.
//
// Contract   args/rms_norm.h. All arithmetic is f32 and rounds once. A row's bits depend on the row and its width.
// Floor      forward: x and y once. Backward: x and dy read, dx written; and x and dy once more for the weight.
// Algorithm  A warp a row up to a width of 1024 (a head of 16 to 256, eight rows to a block), a block a row beyond. The
//            row is walked twice, for the sum of squares and for the result; what a thread has of it comes at once and stays in
//            registers, up to 8192 elements of 16 bits (4096 of f32) a row, the rest is read in each walk.
//            The weight's gradient is a sum over rows: a thread a column adds 64 rows in order, so that a warp reads
//            neighbouring columns; then the columns of those partial sums are added in order (reduce.cu). That
//            reads x and dy a second time. Doing both in one walk would need a partial sum a block in memory, and as
//            few blocks as there are partial sums: too few to fill the device at 8192 rows.
// Hazards    `width` may be no multiple of the group: elements behind the end are zeros in the sums and never stored.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/rms_norm.h"

template <class T, int THREADS>
__device__ __forceinline__ void rms_norm(const RmsNormArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const T* row = static_cast<const T*>(a.x) + turn.row * a.width;
    const auto x = HeldRow<T, N>::template load<THREADS>(row, a.width, a.aligned);
    T* y = static_cast<T*>(a.y) + turn.row * a.width;
    float squares = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) squares += group.at[i] * group.at[i];
    });
    squares = block_reduce<THREADS>(squares, Sum());
    const float inverse = 1.0f / sqrtf(squares / float(a.width) + a.epsilon);
    if (thread_of_row<THREADS>() == 0) a.inverse[turn.row] = inverse;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      Group<float, N> group = x.values(k, at);
      const int64_t count = a.width - at;
      const Group<float, N> weight = load_wide<N>(static_cast<const T*>(a.weight) + at, count, a.aligned);
#pragma unroll
      for (int i = 0; i < N; i++) group.at[i] = group.at[i] * inverse * (a.offset + weight.at[i]);
      store_rounded(y + at, group, count, a.aligned);
    });
  }
}

template <class T, int THREADS>
__device__ __forceinline__ void rms_norm_gradient(const RmsNormGradientArgs& a) {
  constexpr int N = Vec16<T>::SIZE;
  const T* weights = static_cast<const T*>(a.weight);
  for (RowTurn<THREADS> turn; turn.row < a.rows; turn.next()) {
    const int64_t first = turn.row * a.width;
    const auto x = HeldRow<T, N>::template load<THREADS>(static_cast<const T*>(a.x) + first, a.width, a.aligned);
    const auto dy = HeldRow<float, N>::template load<THREADS>(a.dy + first, a.width, a.aligned);
    // dy * (offset + weight) at one group.
    const auto scaled = [&](int k, int64_t at) {
      const Group<float, N> weight = load_wide<N>(weights + at, a.width - at, a.aligned);
      Group<float, N> s = dy.values(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) s.at[i] *= a.offset + weight.at[i];
      return s;
    };
    float along = 0.0f;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at), s = scaled(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) along += s.at[i] * group.at[i];
    });
    const float inverse = a.inverse[turn.row];
    along = block_reduce<THREADS>(along, Sum()) / float(a.width) * inverse * inverse;
    for_each_group<N, THREADS>(a.width, [&](int k, int64_t at) {
      const Group<float, N> group = x.values(k, at);
      Group<float, N> dx = scaled(k, at);
#pragma unroll
      for (int i = 0; i < N; i++) dx.at[i] = (dx.at[i] - along * group.at[i]) * inverse;
      store_group<N>(a.dx + first + at, dx, a.width - at, a.aligned);
    });
  }
}

template <class T>
__device__ __forceinline__ void rms_norm_weight(const RmsNormWeightArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  column_partials(a.partial, a.rows, a.width, [&](int64_t i, int64_t row) {
    return a.dy[i] * (to_float(x[i]) * a.inverse[row]);
  });
}

ROW_KERNELS(rms_norm, RmsNormArgs, 3)
ROW_KERNELS(rms_norm_gradient, RmsNormGradientArgs, 2)
KERNEL(rms_norm_weight_f32, RmsNormWeightArgs, ROW_BLOCK) { rms_norm_weight<float>(a); }
KERNEL(rms_norm_weight_bf16, RmsNormWeightArgs, ROW_BLOCK) { rms_norm_weight<bf16>(a); }
KERNEL(rms_norm_weight_f16, RmsNormWeightArgs, ROW_BLOCK) { rms_norm_weight<f16>(a); }
