#ifndef GRADSTONE_ARGS_ROWS_H
#define GRADSTONE_ARGS_ROWS_H
#include "types.h"

/** out[i] = table[index[i]], a row being `units` words of the size in the kernel's name. An index outside the table
 * raises STATUS_BAD_INDEX and gives a row of zeros. */
typedef struct GatherRowsArgs {
  const void* table; /**< [rows, units] */
  const void* index; /**< [len] int64_t where `wide_index`, else int32_t */
  void* out;         /**< [len, units] */
  uint32_t* status;
  int64_t rows;
  int64_t len;
  int64_t units;
  uint32_t wide_index;
  uint32_t unused;
} GatherRowsArgs;

/** The places of each row in `index`, in order: ordered[start[r] .. start[r] + count[r]] for a row r that has some.
 * Made by four launches: row_list_count, row_list_start, row_list_place, row_list_order. Where the list of a row
 * starts is not fixed; its content is. */
typedef struct RowListArgs {
  const void* index;  /**< [len] int64_t where `wide_index`, else int32_t */
  int32_t* count;     /**< [rows], zeros before */
  int32_t* start;     /**< [rows]; written for rows that have places */
  int32_t* cursor;    /**< one zero before */
  int32_t* ticket;    /**< [len] work space */
  int32_t* unordered; /**< [len] work space */
  int32_t* ordered;   /**< [len] */
  uint32_t* status;
  int64_t rows;
  int64_t len; /**< below 2^31 */
  uint32_t wide_index;
  uint32_t unused;
} RowListArgs;

/** out[index[i]] += x[i] in the order of i, from the lists of RowListArgs. Rows without a place are not touched. */
typedef struct ScatterAddRowsArgs {
  const void* index;
  const int32_t* count;
  const int32_t* start;
  const int32_t* ordered;
  const float* x; /**< [len, width] */
  float* out;     /**< [rows, width], zeros before */
  int64_t rows;
  int64_t len;
  int64_t width;
  uint32_t wide_index;
  uint32_t aligned; /**< x and out start at multiples of 16 bytes and so does each of their rows */
} ScatterAddRowsArgs;

#endif
