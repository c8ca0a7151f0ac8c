// attention_tile.cuh: what the attention kernels share: where a tile lies, how it comes into shared memory, and the two
// products of a warp, `rows * rows^T` and `weights * rows`.
//
// A warp owns 16 rows (queries, or keys where the gradients of keys are computed). Results lie as a tensor core leaves
// them: lane 4 g + t holds columns 8 n + 2 t and 8 n + 2 t + 1 of rows g and g + 8, for every n. bf16 and f16 use
// mma.sync; f32 the same layout with fused multiply-adds. In both a row's bits depend on its own row alone.
#pragma once
#include "attention_mask.cuh"
#include "prim.cuh"

constexpr int BLOCK = 128;  // threads at most; a block may have fewer warps
constexpr int QUERY_ROWS = ATTENTION_TILE_ROWS;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// Shared-memory rows of WIDTH elements are padded by 16 bytes: eight rows then begin in eight different bank groups.
template <class T, int WIDTH>
constexpr int STRIDE = WIDTH + 16 / int(sizeof(T));

__device__ __forceinline__ int row_in_warp() { return lane_id() >> 2; }         // g
__device__ __forceinline__ int column_in_tile() { return 2 * (lane_id() & 3); }  // 2 t

// ---- which sequence, which tile ----

struct Sequence {
  int index;
  int64_t first;  // its first query among the packed tokens
  int queries, length;
  __device__ __forceinline__ int position(int query) const { return length - queries + query; }
};

// Tile `slot` of a grid where sequence s has the slots from floor(segments[s] * per_token / rows) + s on: enough for its
// own tiles, with no list made on the host. False where there is nothing to do; `row` is the tile's first.
__device__ __forceinline__ bool find_tile(const AttentionShape& shape, int64_t slot, int per_token, int rows, Sequence& sequence,
                                          int& row) {
  int low = 0, high = shape.sequences - 1;
  while (low < high) {
    const int middle = low + (high - low + 1) / 2;
    if (int64_t(shape.segments[middle]) * per_token / rows + middle <= slot) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t first = shape.segments[low], end = shape.segments[low + 1];
  if (first < 0 || end < first || end > shape.tokens) {
    raise_status(shape.status, STATUS_BAD_GROUP);
    return false;
  }
  const int queries = int(end - first), length = shape.lengths ? shape.lengths[low] : queries;
  if (length < queries) {
    raise_status(shape.status, STATUS_BAD_GROUP);
    return false;
  }
  sequence = Sequence{low, first, queries, length};
  const int64_t tile = slot - (first * per_token / rows + low);
  if (tile < 0 || tile * rows >= int64_t(queries) * per_token) return false;
  row = int(tile * rows);
  return true;
}

// ---- into shared memory ----

// ROWS of `dim` elements into shared memory, WIDTH columns with zeros behind; zeros where `row_at(row)` is null. With
// `vector` by asynchronous copies, which the caller commits and waits for.
template <class T, int WIDTH, class RowAt>
__device__ __forceinline__ void stage(T* shared, int rows, int dim, bool vector, RowAt row_at) {
  constexpr int SIZE = Vec16<T>::SIZE, CHUNKS = WIDTH / SIZE;
  for (int i = int(threadIdx.x); i < rows * CHUNKS; i += int(blockDim.x)) {
    const int row = i / CHUNKS, column = i % CHUNKS * SIZE;
    const T* source = row_at(row);
    T* target = shared + row * STRIDE<T, WIDTH> + column;
    if (source != nullptr && vector && column + SIZE <= dim) {
      cp_async16(target, source + column);
    } else {
#pragma unroll 1
      for (int j = 0; j < SIZE; j++) {
        target[j] = source != nullptr && column + j < dim ? source[column + j] : from_float<T>(0.0f);
      }
    }
  }
}

// ---- products of one warp ----

__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], bf16) {
  mma_m16n8k16_bf16(d, a, b);
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], f16) {
  mma_m16n8k16_f16(d, a, b);
}

// Sixteen rows of WIDTH as the left side of products: read from shared memory each time, or once and kept.
template <class T, int WIDTH>
struct LeftInShared {
  const T* rows;
  __device__ __forceinline__ void fragment(unsigned (&a)[4], int step) const {
    load_tile(a, rows + step * 16, STRIDE<T, WIDTH>);
  }
};
template <class T, int WIDTH>
struct LeftInRegisters {
  unsigned kept[WIDTH / 16][4];
  __device__ __forceinline__ void load(const T* rows) {
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) load_tile(kept[step], rows + step * 16, STRIDE<T, WIDTH>);
  }
  __device__ __forceinline__ void fragment(unsigned (&a)[4], int step) const {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = kept[step][i];
  }
};

// products[i][j] = left row i . right row j over WIDTH, for 16 left rows and COUNT right rows. In f32 every sum runs over
// the width in order.
template <class T, int WIDTH, int COUNT, class Left>
__device__ __forceinline__ void row_products(float (&products)[COUNT / 8][4], const Left& left, const T* right) {
#pragma unroll
  for (int n = 0; n < COUNT / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) products[n][i] = 0.0f;
  }
  if constexpr (sizeof(T) == 4) {
    const float* upper = left.rows + row_in_warp() * STRIDE<T, WIDTH>;
    const float* column = right + column_in_tile() * STRIDE<T, WIDTH>;
#pragma unroll 1
    for (int d = 0; d < WIDTH; d += 4) {
      const Vec16<float> a = load16(upper + d), b = load16(upper + 8 * STRIDE<T, WIDTH> + d);
#pragma unroll
      for (int n = 0; n < COUNT / 8; n++) {
        const float* even = column + n * 8 * STRIDE<T, WIDTH> + d;
        const Vec16<float> x = load16(even), y = load16(even + STRIDE<T, WIDTH>);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          products[n][0] = __fmaf_rn(a.at[j], x.at[j], products[n][0]);
          products[n][1] = __fmaf_rn(a.at[j], y.at[j], products[n][1]);
          products[n][2] = __fmaf_rn(b.at[j], x.at[j], products[n][2]);
          products[n][3] = __fmaf_rn(b.at[j], y.at[j], products[n][3]);
        }
      }
    }
  } else {
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
      unsigned a[4];
      left.fragment(a, step);
#pragma unroll
      for (int n = 0; n < COUNT / 8; n += 2) {
        unsigned b[4];
        load_tile(b, right + n * 8 * STRIDE<T, WIDTH> + step * 16, STRIDE<T, WIDTH>);
        multiply_add(products[n], a, {b[0], b[2]}, T());
        multiply_add(products[n + 1], a, {b[1], b[3]}, T());
      }
    }
  }
}

// Floats of shared memory that `add_weighted` wants for each warp.
template <class T, int COUNT>
constexpr int WEIGHT_FLOATS = sizeof(T) == 4 ? 16 * (COUNT + 4) : 0;

// sums[i][d] += sum_j weights[i][j] * rows[j][d] for 16 rows i and COUNT rows j; the weights are rounded to T.
template <class T, int WIDTH, int COUNT>
__device__ __forceinline__ void add_weighted(float (&sums)[WIDTH / 8][4], const float (&weights)[COUNT / 8][4], const T* rows,
                                             float* exchange) {
  if constexpr (sizeof(T) == 4) {
    // Four lanes hold a row of weights and every lane wants all of it: it goes through shared memory.
    float* upper = exchange + row_in_warp() * (COUNT + 4);
    float* lower = upper + 8 * (COUNT + 4);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < COUNT / 8; n++) {
      const int column = n * 8 + column_in_tile();
      upper[column] = weights[n][0];
      upper[column + 1] = weights[n][1];
      lower[column] = weights[n][2];
      lower[column + 1] = weights[n][3];
    }
    __syncwarp();
    const float* columns = rows + column_in_tile();
#pragma unroll 1
    for (int row = 0; row < COUNT; row++) {
      const float a = upper[row], b = lower[row];
      const float* at = columns + row * STRIDE<float, WIDTH>;
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d++) {
        const float2 x = *reinterpret_cast<const float2*>(at + d * 8);
        sums[d][0] = __fmaf_rn(a, x.x, sums[d][0]);
        sums[d][1] = __fmaf_rn(a, x.y, sums[d][1]);
        sums[d][2] = __fmaf_rn(b, x.x, sums[d][2]);
        sums[d][3] = __fmaf_rn(b, x.y, sums[d][3]);
      }
    }
  } else {
#pragma unroll
    for (int step = 0; step < COUNT / 16; step++) {
      const float(&left)[4] = weights[2 * step];
      const float(&right)[4] = weights[2 * step + 1];
      const unsigned a[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]), pack2<T>(right[0], right[1]),
                             pack2<T>(right[2], right[3])};
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d += 2) {
        unsigned b[4];
        load_tile_transposed(b, rows + step * 16 * STRIDE<T, WIDTH> + d * 8, STRIDE<T, WIDTH>);
        multiply_add(sums[d], a, {b[0], b[1]}, T());
        multiply_add(sums[d + 1], a, {b[2], b[3]}, T());
      }
    }
  }
}

// ---- scores ----

// Scores in units of log2: exp(score) = exp2(scored).
struct Scoring {
  float inner, outer;
  bool capped;
  __device__ __forceinline__ explicit Scoring(const AttentionShape& shape)
      : inner(shape.softcap > 0.0f ? shape.scale / shape.softcap : shape.scale * LOG2_E),
        outer(shape.softcap * LOG2_E),
        capped(shape.softcap > 0.0f) {}
  __device__ __forceinline__ float operator()(float product) const {
    const float x = __fmul_rn(product, inner);
    return capped ? __fmul_rn(outer, tanhf(x)) : x;
  }
  // d score / d (scale * product), from the score.
  __device__ __forceinline__ float slope(float scored) const {
    if (!capped) return 1.0f;
    const float t = scored / outer;
    return 1.0f - t * t;
  }
};

// A combination over the four lanes that hold a row.
template <class F>
__device__ __forceinline__ float over_row(float value, F combine) {
  value = combine(value, __shfl_xor_sync(ALL_LANES, value, 1));
  return combine(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

// Two neighbouring columns of a row of `dim`, where they exist; at once where they are aligned.
template <class T>
__device__ __forceinline__ void store_pair(T* row, int column, int dim, float first, float second) {
  T* target = row + column;
  if (column + 1 < dim && reinterpret_cast<unsigned long long>(target) % (2 * sizeof(T)) == 0) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<float2*>(target) = make_float2(first, second);
    } else {
      *reinterpret_cast<unsigned*>(target) = pack2<T>(first, second);
    }
    return;
  }
  if (column < dim) target[0] = from_float<T>(first);
  if (column + 1 < dim) target[1] = from_float<T>(second);
}
