// attention_mask.cuh: which keys a query sees, for one query and for whole tiles. The one place that knows the masks.
//
// Positions are counted in the query's own sequence; `length` is its number of keys. Ranges are half open.
#pragma once
#include "prim.cuh"
#include "args/attention.h"

struct Range {
  int from, to;
  __device__ __forceinline__ bool has(int position) const { return position >= from && position < to; }
};

// The keys that one query sees: two ranges, as the masks of block diffusion need.
struct Seen {
  Range own, before;
  __device__ __forceinline__ bool has(int key) const { return own.has(key) || before.has(key); }
};

// How much of a tile of queries and keys is seen.
enum class Cover { EMPTY, PARTIAL, FULL };

// The first position of the block that `position` lies in, and the first behind it, up to `limit`.
__device__ __forceinline__ int block_start(const AttentionShape& shape, int position) { return position / shape.block * shape.block; }
__device__ __forceinline__ int block_end(const AttentionShape& shape, int position, int limit) {
  const int64_t end = int64_t(block_start(shape, position)) + shape.block;
  return end < limit ? int(end) : limit;
}

__device__ __forceinline__ Seen seen_by(const AttentionShape& shape, int length, int query) {
  const Range none{0, 0};
  if (shape.mask == MASK_FULL) return Seen{{0, length}, none};
  if (shape.mask == MASK_BLOCK_CAUSAL) return Seen{{0, block_end(shape, query, length)}, none};
  if (shape.mask == MASK_BLOCK_DIFFUSION) {
    const int half = length / 2;
    if (query >= half) return Seen{{half, half + block_end(shape, query - half, half)}, none};
    const int start = block_start(shape, query);
    return Seen{{start, block_end(shape, query, half)}, {half, half + start}};
  }
  const int from = shape.window == 0 ? 0 : query - shape.window + 1;
  return Seen{{from > 0 ? from : 0, query < length ? query + 1 : length}, none};
}

// All keys that any of the queries sees lie in this range (and perhaps others).
__device__ __forceinline__ Range keys_of(const AttentionShape& shape, int length, Range queries) {
  const Seen first = seen_by(shape, length, queries.from), last = seen_by(shape, length, queries.to - 1);
  if (shape.mask != MASK_BLOCK_DIFFUSION) return Range{first.own.from, last.own.to};
  const int half = length / 2;
  if (queries.from < half && queries.to > half) return Range{first.own.from, length};
  return Range{first.own.from, last.before.from < last.before.to ? last.before.to : last.own.to};
}

// All queries that see any of the keys lie in this range (and perhaps others).
__device__ __forceinline__ Range queries_of(const AttentionShape& shape, int length, Range keys) {
  if (shape.mask == MASK_FULL) return Range{0, length};
  if (shape.mask == MASK_BLOCK_CAUSAL) return Range{block_start(shape, keys.from), length};
  if (shape.mask == MASK_BLOCK_DIFFUSION) {
    const int half = length / 2;
    const bool noised = keys.from < half, clean = keys.to > half;
    // A clean key is first seen by the noised tokens of the next block.
    const int after = block_end(shape, noised ? 0 : keys.from - half, half);
    const int own = noised ? block_start(shape, keys.from) : half;
    return Range{clean && after < own ? after : own, clean ? length : block_end(shape, keys.to - 1, half)};
  }
  const int64_t last = int64_t(keys.to - 1) + shape.window;
  return Range{keys.from, shape.window == 0 || last > length ? length : int(last)};
}

// EMPTY and FULL are certain, PARTIAL is looked at pair by pair. Neither range is empty.
__device__ __forceinline__ Cover cover(const AttentionShape& shape, int length, Range queries, Range keys) {
  if (keys.from >= length) return Cover::EMPTY;
  const int half = length / 2;
  if (shape.mask == MASK_BLOCK_DIFFUSION && queries.from < half && queries.to > half) return Cover::PARTIAL;
  // Among these queries both ends of either range grow with the position.
  const Seen first = seen_by(shape, length, queries.from), last = seen_by(shape, length, queries.to - 1);
  const bool own = keys.from < last.own.to && keys.to > first.own.from;
  const bool before = keys.from < last.before.to && keys.to > last.before.from && last.before.from < last.before.to;
  if (!own && !before) return Cover::EMPTY;
  const bool all_own = keys.from >= last.own.from && keys.to <= first.own.to;
  const bool all_before = keys.from >= last.before.from && keys.to <= first.before.to;
  return all_own || all_before ? Cover::FULL : Cover::PARTIAL;
}
