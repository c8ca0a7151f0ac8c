// reduce.cu: sums over rows and over columns, in a fixed order.
//
// Contract   args/reduce.h. The order of a sum depends on the summed length alone: on `width` for rows, on the number of
//            rows for columns. So one row's bits do not depend on what lies beside it.
// Floor      one read of the input.
// Algorithm  Rows: a block of 256 threads a row; thread t adds elements t, t + 256, ... in order, then a fixed tree. The
//            sum of a whole tensor is the same kernel twice: chunks as rows, then the chunk sums as one row.
//            Columns: a thread a column, so that a warp reads 128 neighbouring bytes of each row; 64 rows make a
//            partial sum, and a second launch adds the partial sums in order. No atomics: their order is not fixed.
// Hazards    A row index times the width passes 2^31. Blocks of rows beyond 65535 need the loop over blockIdx.y.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/reduce.h"

constexpr int THREADS = 256;

template <class T>
__device__ __forceinline__ void row_sums(const RowSumArgs& a) {
  const int64_t rows = (a.len + a.width - 1) / a.width;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* x = static_cast<const T*>(a.x) + row * a.width;
    const int64_t left = a.len - row * a.width, width = left < a.width ? left : a.width;
    float sum = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += THREADS) sum += to_float(x[i]);
    sum = block_reduce<THREADS>(sum, Sum()) * a.factor;
    if (threadIdx.x == 0) {
      if (a.wide) {
        static_cast<float*>(a.out)[row] = sum;
      } else {
        static_cast<T*>(a.out)[row] = from_float<T>(sum);
      }
    }
  }
}

KERNEL(row_sums_f32, RowSumArgs, THREADS) { row_sums<float>(a); }
KERNEL(row_sums_bf16, RowSumArgs, THREADS) { row_sums<bf16>(a); }
KERNEL(row_sums_f16, RowSumArgs, THREADS) { row_sums<f16>(a); }

KERNEL(column_partials, ColumnPartialArgs, THREADS) {
  const int64_t column = thread_in_grid();
  if (column >= a.width) return;
  for (int64_t first = int64_t(blockIdx.y) * COLUMN_SUM_ROWS; first < a.rows; first += int64_t(gridDim.y) * COLUMN_SUM_ROWS) {
    const int64_t end = first + COLUMN_SUM_ROWS < a.rows ? first + COLUMN_SUM_ROWS : a.rows;
    float sum = 0.0f;
    for (int64_t row = first; row < end; row++) sum += a.x[row * a.width + column];
    a.partial[first / COLUMN_SUM_ROWS * a.width + column] = sum;
  }
}

KERNEL(column_totals, ColumnTotalArgs, THREADS) {
  const int64_t column = thread_in_grid();
  if (column >= a.width) return;
  float sum = a.accumulate ? a.out[column] : 0.0f;
  for (int64_t block = 0; block < a.blocks; block++) sum += a.partial[block * a.width + column];
  a.out[column] = sum;
}

KERNEL(spread, SpreadArgs, THREADS) {
  for (int64_t i = thread_in_grid(); i < a.rows * a.width; i += threads_in_grid()) a.out[i] = a.factor * a.x[i / a.width];
}
