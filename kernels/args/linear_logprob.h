#ifndef GRADSTONE_ARGS_LINEAR_LOGPROB_H
#define GRADSTONE_ARGS_LINEAR_LOGPROB_H
#include "types.h"

/** The rows that have work to do, in ascending order, then -1. */
typedef struct LiveRowsArgs {
  const int32_t* targets; /**< [rows]; a row with a negative one is not live */
  const float* dlogprob;  /**< [rows]; null: see `dentropy` */
  const float* dentropy;  /**< [rows]; a row whose given gradients are all 0 is not live; both null: not looked at */
  int32_t* row_of;        /**< [capacity] */
  uint32_t* status;       /**< STATUS_BAD_INDEX: more than `capacity` rows are live, the last ones were left out */
  int64_t rows;           /**< below 2^31 */
  int64_t capacity;
} LiveRowsArgs;

/** out[i] = x[row_of[i]], 0 where that is negative. */
typedef struct GatherLiveArgs {
  const void* x;         /**< [rows, width] in the kernel's storage type */
  const int32_t* row_of; /**< [count]; below `rows` */
  void* out;             /**< [count, width] */
  int64_t rows;
  int64_t count;
  int64_t width;
} GatherLiveArgs;

/** out[row_of[i]] = x[i] where that is not negative. */
typedef struct ScatterLiveArgs {
  const float* x;        /**< [count, width] */
  const int32_t* row_of; /**< [count]; below `rows`, no row twice */
  float* out;            /**< [rows, width] */
  int64_t rows;
  int64_t count;
  int64_t width;
} ScatterLiveArgs;

/** sum[j] += x[0, j] + x[1, j] + ..., in this order. */
typedef struct AddColumnsArgs {
  const void* x; /**< [rows, width] in the kernel's storage type */
  float* sum;    /**< [width] */
  int64_t rows;
  int64_t width;
} AddColumnsArgs;

#endif
