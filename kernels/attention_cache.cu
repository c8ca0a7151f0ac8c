// attention_cache.cu: keys and values of sequences that are being generated, kept in pages on the device.
//
// Contract   args/attention.h. A page holds ATTENTION_PAGE positions of one sequence for all layers: for each layer keys
//            and values [2, kv_heads, ATTENTION_PAGE, head_dim], so that the tile that attention reads is one run of
//            memory. Which page a position lies in says a table of addresses; sequences that were forked from one
//            another name the same pages until one of them writes into its last.
// Floor      appending: the new keys and values read and written once; copying: a page read and written once.
// Algorithm  A block a new token, a thread an element; its sequence by bisection. A block a page to copy.
// Hazards    The host copies a shared page before it launches the append that writes into it. A table entry is an
//            address: a length beyond the pages that the table has is refused here, too.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/attention.h"

constexpr int BLOCK = 128;

template <class T>
__device__ __forceinline__ void cache_append(const CacheAppendArgs& a) {
  const int width = a.kv_heads * a.head_dim;
  for (int64_t token = blockIdx.x; token < a.tokens; token += gridDim.x) {
    int sequence = 0, high = a.sequences - 1;  // the last sequence that begins at or before the token
    while (sequence < high) {
      const int middle = sequence + (high - sequence + 1) / 2;
      if (a.segments[middle] <= token) {
        sequence = middle;
      } else {
        high = middle - 1;
      }
    }
    const int64_t position = int64_t(a.lengths[sequence]) - a.segments[sequence + 1] + token;
    if (position < 0 || position >= int64_t(a.pages_per_sequence) * ATTENTION_PAGE) {
      if (threadIdx.x == 0) raise_status(a.status, STATUS_BAD_GROUP);
      continue;
    }
    const uint64_t page = a.pages[int64_t(sequence) * a.pages_per_sequence + position / ATTENTION_PAGE];
    T* keys = reinterpret_cast<T*>(page) + a.page_offset;
    T* values = keys + int64_t(width) * ATTENTION_PAGE;
    const T* k = static_cast<const T*>(a.k) + token * width;
    const T* v = static_cast<const T*>(a.v) + token * width;
    const int64_t row = position % ATTENTION_PAGE * a.head_dim;
    for (int i = int(threadIdx.x); i < width; i += int(blockDim.x)) {
      const int64_t target = int64_t(i / a.head_dim) * ATTENTION_PAGE * a.head_dim + row + i % a.head_dim;
      keys[target] = k[i];
      values[target] = v[i];
    }
  }
}
KERNEL(cache_append_f32, CacheAppendArgs, BLOCK) { cache_append<float>(a); }
KERNEL(cache_append_bf16, CacheAppendArgs, BLOCK) { cache_append<bf16>(a); }
KERNEL(cache_append_f16, CacheAppendArgs, BLOCK) { cache_append<f16>(a); }

KERNEL(cache_copy, CacheCopyArgs, BLOCK) {
  for (int64_t pair = blockIdx.y; pair < a.count; pair += gridDim.y) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(a.pairs[2 * pair]);
    unsigned char* to = reinterpret_cast<unsigned char*>(a.pairs[2 * pair + 1]);
    const int64_t chunks = a.page_bytes / 16;
    for (int64_t i = thread_in_grid(); i < chunks; i += threads_in_grid()) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
    for (int64_t i = chunks * 16 + thread_in_grid(); i < a.page_bytes; i += threads_in_grid()) to[i] = from[i];
  }
}
