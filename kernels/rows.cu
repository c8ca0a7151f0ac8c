// rows.cu: rows of a table by index, and the gradient that adds into them.
//
// Contract   args/rows.h. A gathered row is a copy, so any element type will do. The gradient of a table row is the sum
//            of its places' gradients in the order of the places, from 0: the bits of a loop over the index.
// Floor      gather: each row read and written once. Gradient: the zeros of the table, one read of the rows.
// Algorithm  Gather: a thread a word, as wide as addresses and row length allow (16, 4, 2 or 1 bytes); the grid as
//            stride.
//            Gradient: a float atomic would add in an order of chance, and a sort moves every index several times. So
//            the places of each row are listed by counting: an integer atomic a place counts and gives a ticket; the
//            place with ticket 0 reserves room for its row's list; every place goes where its ticket says; then every
//            place counts how many of its list come before it, which is its rank in order. The chance of the atomics
//            ends there: lists lie anywhere, their content is fixed. The last launch has a block for each place and
//            1024 columns; the block of the first place of a list adds the list up, the others have nothing to do.
//            Work is in proportion to the places, not to the vocabulary, but for the zeros of counters and gradient.
// Hazards    The rank costs the square of a list's length: 1600 places of one id are 2.5 M comparisons, and a batch
//            of 32 k equal ids 1 G (still under the time of an optimizer step). Indices out of range never address
//            anything: they raise the status bit in the first launch and are skipped in all.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/rows.h"

__device__ __forceinline__ int64_t row_at(const void* index, uint32_t wide, int64_t i) {
  return wide ? static_cast<const int64_t*>(index)[i] : int64_t(static_cast<const int32_t*>(index)[i]);
}

struct Word1 {
  uint8_t byte;
};
struct Word2 {
  unsigned short half;
};

template <class Word>
__device__ __forceinline__ void gather_rows(const GatherRowsArgs& a) {
  const Word* table = static_cast<const Word*>(a.table);
  Word* out = static_cast<Word*>(a.out);
  for (int64_t i = thread_in_grid(); i < a.len * a.units; i += threads_in_grid()) {
    const int64_t place = quotient(i, a.units), unit = i - place * a.units;
    const int64_t row = row_at(a.index, a.wide_index, place);
    if (row >= 0 && row < a.rows) {
      out[i] = table[row * a.units + unit];
    } else {
      out[i] = Word{};
      if (unit == 0) raise_status(a.status, STATUS_BAD_INDEX);
    }
  }
}

KERNEL(gather_rows_16, GatherRowsArgs, ROW_BLOCK) { gather_rows<uint4>(a); }
KERNEL(gather_rows_4, GatherRowsArgs, ROW_BLOCK) { gather_rows<uint32_t>(a); }
KERNEL(gather_rows_2, GatherRowsArgs, ROW_BLOCK) { gather_rows<Word2>(a); }
KERNEL(gather_rows_1, GatherRowsArgs, ROW_BLOCK) { gather_rows<Word1>(a); }

KERNEL(row_list_count, RowListArgs, ROW_BLOCK) {
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    const int64_t row = row_at(a.index, a.wide_index, i);
    if (row >= 0 && row < a.rows) {
      a.ticket[i] = atomicAdd(&a.count[row], 1);
    } else {
      a.ticket[i] = -1;
      raise_status(a.status, STATUS_BAD_INDEX);
    }
  }
}

KERNEL(row_list_start, RowListArgs, ROW_BLOCK) {
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    if (a.ticket[i] != 0) continue;
    const int64_t row = row_at(a.index, a.wide_index, i);
    a.start[row] = atomicAdd(a.cursor, a.count[row]);
  }
}

KERNEL(row_list_place, RowListArgs, ROW_BLOCK) {
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    if (a.ticket[i] < 0) continue;
    a.unordered[a.start[row_at(a.index, a.wide_index, i)] + a.ticket[i]] = int32_t(i);
  }
}

KERNEL(row_list_order, RowListArgs, ROW_BLOCK) {
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) {
    if (a.ticket[i] < 0) continue;
    const int64_t row = row_at(a.index, a.wide_index, i);
    const int32_t start = a.start[row], count = a.count[row];
    int32_t rank = 0;
    for (int32_t k = 0; k < count; k++) rank += a.unordered[start + k] < int32_t(i);
    a.ordered[start + rank] = int32_t(i);
  }
}

KERNEL(scatter_add_rows, ScatterAddRowsArgs, ROW_BLOCK) {
  constexpr int N = 4;
  for (int64_t i = blockIdx.x; i < a.len; i += gridDim.x) {
    const int64_t row = row_at(a.index, a.wide_index, i);
    if (row < 0 || row >= a.rows) continue;
    const int32_t start = a.start[row], count = a.count[row];
    if (a.ordered[start] != int32_t(i)) continue;
    const int64_t stride = int64_t(gridDim.y) * ROW_BLOCK * N;
    for (int64_t at = (int64_t(blockIdx.y) * ROW_BLOCK + threadIdx.x) * N; at < a.width; at += stride) {
      Group<float, N> sum = {};
      for (int32_t k = 0; k < count; k++) {
        const float* x = a.x + int64_t(a.ordered[start + k]) * a.width + at;
        const Group<float, N> term = load_group<N>(x, a.width - at, a.aligned);
#pragma unroll
        for (int j = 0; j < N; j++) sum.at[j] += term.at[j];
      }
      store_group<N>(a.out + row * a.width + at, sum, a.width - at, a.aligned);
    }
  }
}
