// attention_mask.cuh: which keys a query sees, for one pair and for whole tiles. The one place that knows the masks.
//
// Positions are counted in the query's own sequence; `length` is its number of keys. Ranges are half open.
#pragma once
#include "prim.cuh"
#include "args/attention.h"

struct Range {
  int from, to;
};

// How much of a tile of queries and keys is seen.
enum class Cover { EMPTY, PARTIAL, FULL };

__device__ __forceinline__ bool sees(const AttentionShape& shape, int length, int query, int key) {
  if (key >= length) return false;
  if (shape.mask == MASK_FULL) return true;
  return key <= query && (shape.window == 0 || key > query - shape.window);
}

// All keys that any of the queries sees lie in this range (and perhaps others).
__device__ __forceinline__ Range keys_of(const AttentionShape& shape, int length, Range queries) {
  if (shape.mask == MASK_FULL) return Range{0, length};
  const int from = shape.window == 0 ? 0 : queries.from - shape.window + 1;
  return Range{from > 0 ? from : 0, queries.to < length ? queries.to : length};
}

// All queries that see any of the keys lie in this range (and perhaps others).
__device__ __forceinline__ Range queries_of(const AttentionShape& shape, int length, Range keys) {
  if (shape.mask == MASK_FULL) return Range{0, length};
  const int64_t last = int64_t(keys.to - 1) + shape.window;
  return Range{keys.from, shape.window == 0 || last > length ? length : int(last)};
}

// EMPTY and FULL are certain, PARTIAL is looked at pair by pair. Neither range is empty.
__device__ __forceinline__ Cover cover(const AttentionShape& shape, int length, Range queries, Range keys) {
  if (keys.from >= length) return Cover::EMPTY;
  const bool inside = keys.to <= length;
  if (shape.mask == MASK_FULL) return inside ? Cover::FULL : Cover::PARTIAL;
  if (keys.from >= queries.to) return Cover::EMPTY;
  if (shape.window != 0 && keys.to - 1 <= queries.from - shape.window) return Cover::EMPTY;
  const bool before = keys.to - 1 <= queries.from;
  const bool near = shape.window == 0 || keys.from > queries.to - 1 - shape.window;
  return inside && before && near ? Cover::FULL : Cover::PARTIAL;
}
