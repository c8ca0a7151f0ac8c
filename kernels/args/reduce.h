#ifndef GRADSTONE_ARGS_REDUCE_H
#define GRADSTONE_ARGS_REDUCE_H
#include "types.h"

/** out[i] = factor * the sum of row i, in an order that depends on `width` alone. */
typedef struct RowSumArgs {
  const void* x; /**< [len] in the kernel's storage type, rows of `width`; the last row may be shorter */
  void* out;     /**< [ceil(len / width)], f32 where `wide`, else the storage type */
  int64_t len;
  int64_t width; /**< > 0 */
  float factor;
  uint32_t wide;
} RowSumArgs;

/** partial[b, j] = the sum of x[i, j] over the rows i of block b, in order. */
typedef struct ColumnPartialArgs {
  const float* x; /**< [rows, width] */
  float* partial; /**< [ceil(rows / COLUMN_SUM_ROWS), width] */
  int64_t rows;
  int64_t width;
} ColumnPartialArgs;

/** out[j] = the sum of partial[b, j] over b, in order (added to out[j] where `accumulate`). */
typedef struct ColumnTotalArgs {
  const float* partial; /**< [blocks, width] */
  float* out;           /**< [width] */
  int64_t blocks;
  int64_t width;
  uint32_t accumulate;
  uint32_t unused;
} ColumnTotalArgs;

/** out[i, j] = factor * x[i]: the gradient of a sum of rows. */
typedef struct SpreadArgs {
  const float* x; /**< [rows] */
  float* out;     /**< [rows, width] */
  int64_t rows;
  int64_t width;
  float factor;
  uint32_t unused;
} SpreadArgs;

/** Rows of one partial sum of columns. */
enum ReduceShape { COLUMN_SUM_ROWS = 64 };

#endif
