// attention_backward.cu: the gradients of packed attention, from the output and the logsumexp: scores are computed again.
//
// Contract   args/attention.h. Gradients in f32. dq of a query depends on its sequence alone, dk and dv of a key too: no
//            atomics, every sum in an order that is a function of positions in the sequence.
// Floor      10 D operations a pair that is seen (five products, where the forward pass has two); this does 14 D: the two
//            passes compute scores and dout v both, for no sum then crosses blocks.
// Algorithm  delta = rowsum(dout * out) first, with dout rounded to bf16 for the products that follow. Pass one: a block
//            takes 64 query rows and walks the key tiles they see, dq in registers. Pass two: a block takes 64 keys and
//            walks the query rows that see them, token by token, the heads of a group beside each other; it computes
//            the transposed scores, so that they are in registers what the products for dk and dv want on their left.
//            Tiles of 32 rows (16 in f32) are fetched while the ones before are worked on.
//            bf16: mma.sync. f16 is widened before and takes the path of f32: its range is too small for gradients, and a
//            scale for them would have to be the same for all queries that meet in a sum.
//            Over 128 wide, dk and dv do not fit the registers together: a block computes one of them (grid z).
// Hazards    A query row beyond the sequence has zeros for q, dout, logsumexp and delta: its p is finite, and masked. A
//            pair that is not seen has p = 0 by selection. 0 * NaN: a NaN in a q, k, v or dout of the same sequence
//            reaches its tile's neighbours.
// Measured   not yet run on a GPU.
#include "attention_tile.cuh"

template <class T, int WIDTH>
struct Gradient {
  static constexpr int INNER = sizeof(T) == 2 ? 32 : 16;  // rows of a tile that is walked
  static constexpr int ROW = STRIDE<T, WIDTH>;

  const AttentionBackwardArgs& a;
  const AttentionShape& shape;
  const Scoring scoring;
  Sequence sequence;
  int head, heads_per_group, all_rows;
  int first, count;  // the block's rows: query rows, or keys
  T *left, *left_other, *tiles;
  float *row_values, *exchange;

  __device__ __forceinline__ explicit Gradient(const AttentionBackwardArgs& args) : a(args), shape(args.shape), scoring(args.shape) {}

  // Query row `r` of the sequence: token r / group, head r % group.
  __device__ __forceinline__ int64_t row_index(int r) const {
    return (sequence.first + r / heads_per_group) * shape.query_heads + head * heads_per_group + r % heads_per_group;
  }

  __device__ __forceinline__ Range positions(int first_row, int end_row) const {
    const int end = end_row < all_rows ? end_row : all_rows;
    return Range{first_row / heads_per_group, (end - 1) / heads_per_group + 1};
  }

  __device__ __forceinline__ void stage_queries(T* shared, const void* of, int from, int rows) const {
    const T* base = static_cast<const T*>(of);
    stage<T, WIDTH>(shared, rows, shape.head_dim, a.vector != 0, [&](int r) {
      return from + r < all_rows ? base + row_index(from + r) * shape.head_dim : nullptr;
    });
  }

  __device__ __forceinline__ void stage_keys(T* shared, const void* of, int from, int rows) const {
    const T* base = static_cast<const T*>(of);
    stage<T, WIDTH>(shared, rows, shape.head_dim, a.vector != 0, [&](int r) {
      const int64_t token = sequence.first + from + r;
      return from + r < sequence.length ? base + (token * shape.kv_heads + head) * shape.head_dim : nullptr;
    });
  }

  // False where the block has nothing to do.
  __device__ __forceinline__ bool begin(int per_token, int64_t slot) {
    const int warps = int(blockDim.x) / WARP;
    heads_per_group = shape.query_heads / shape.kv_heads;
    head = int(blockIdx.y);
    count = warps * ATTENTION_TILE_ROWS;
    if (!find_tile(shape, slot, per_token, count, sequence, first)) return false;
    all_rows = sequence.queries * heads_per_group;
    left = dynamic_shared<T>();
    left_other = left + count * ROW;
    tiles = left_other + count * ROW;
    row_values = reinterpret_cast<float*>(tiles + 4 * INNER * ROW);
    exchange = row_values + 4 * INNER + warp_id() * WEIGHT_FLOATS<T, INNER>;
    return true;
  }

  // The first or second matrix of the walked tile that has this parity.
  __device__ __forceinline__ T* tile_of(int parity, int which) const { return tiles + (2 * parity + which) * INNER * ROW; }

  __device__ __forceinline__ LeftInShared<T, WIDTH> mine(const T* rows) const {
    return LeftInShared<T, WIDTH>{rows + warp_id() * ATTENTION_TILE_ROWS * ROW};
  }

  static __device__ __forceinline__ void clear(float (&sums)[WIDTH / 8][4]) {
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d++) sums[d][0] = sums[d][1] = sums[d][2] = sums[d][3] = 0.0f;
  }

  __device__ __forceinline__ void write(float* row, const float (&sums)[WIDTH / 8][4], int half, float factor) const {
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d++) {
      store_pair(row, d * 8 + column_in_tile(), shape.head_dim, sums[d][2 * half] * factor, sums[d][2 * half + 1] * factor);
    }
  }

  // ---- pass one: queries ----

  __device__ __forceinline__ void fetch_keys(int tile, int parity) const {
    stage_keys(tile_of(parity, 0), a.k, tile * INNER, INNER);
    stage_keys(tile_of(parity, 1), a.v, tile * INNER, INNER);
    cp_async_commit();
  }

  __device__ __forceinline__ void queries() {
    // The last tiles of a causal sequence are the longest: they begin first.
    if (!begin(shape.query_heads / shape.kv_heads, int64_t(gridDim.x) - 1 - blockIdx.x)) return;
    stage_queries(left, a.q, first, count);
    stage_queries(left_other, a.dout, first, count);
    const Range block_queries = positions(first, first + count);
    const int warp_row = first + warp_id() * ATTENTION_TILE_ROWS;
    const Range my_queries = warp_row < all_rows ? positions(warp_row, warp_row + ATTENTION_TILE_ROWS) : block_queries;
    float logsumexp[2], delta[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = warp_row + row_in_warp() + 8 * r;
      logsumexp[r] = row < all_rows ? a.logsumexp[row_index(row)] * LOG2_E : 0.0f;
      delta[r] = row < all_rows ? a.delta[row_index(row)] : 0.0f;
    }
    const Range keys = keys_of(shape, sequence.length, block_queries);
    const auto cover_of = [&](int tile, Range of) {
      return cover(shape, sequence.length, of, Range{tile * INNER, (tile + 1) * INNER});
    };
    const int end = (keys.to + INNER - 1) / INNER;
    const auto next_seen = [&](int tile) {
      while (tile < end && cover_of(tile, block_queries) == Cover::EMPTY) tile++;
      return tile;
    };
    float dq[WIDTH / 8][4];
    clear(dq);
    int tile = next_seen(keys.from / INNER);
    if (tile < end) fetch_keys(tile, 0);
    for (int parity = 0; tile < end; parity ^= 1) {
      const int next = next_seen(tile + 1);
      if (next < end) {
        fetch_keys(next, parity ^ 1);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      const Cover seen = warp_row < all_rows ? cover_of(tile, my_queries) : Cover::EMPTY;
      if (seen != Cover::EMPTY) {
        float weights[INNER / 8][4], slopes[INNER / 8][4];
        row_products<T, WIDTH, INNER>(weights, mine(left), tile_of(parity, 0));
        row_products<T, WIDTH, INNER>(slopes, mine(left_other), tile_of(parity, 1));
        Seen of_row[2];
#pragma unroll
        for (int r = 0; r < 2; r++) of_row[r] = seen_by(shape, sequence.length, (warp_row + row_in_warp() + 8 * r) / heads_per_group);
#pragma unroll
        for (int n = 0; n < INNER / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int key = tile * INNER + n * 8 + column_in_tile() + i % 2;
            const float score = scoring(weights[n][i]);
            const float slope = exp2f(score - logsumexp[i / 2]) * (slopes[n][i] - delta[i / 2]) * scoring.slope(score);
            slopes[n][i] = seen == Cover::FULL || of_row[i / 2].has(key) ? slope : 0.0f;
          }
        }
        add_weighted<T, WIDTH, INNER>(dq, slopes, tile_of(parity, 0), exchange);
      }
      __syncthreads();  // the tile is read: its place may be filled again
      tile = next;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = warp_row + row_in_warp() + 8 * r;
      if (row < all_rows) write(a.dq + row_index(row) * shape.head_dim, dq, r, shape.scale);
    }
  }

  // ---- pass two: keys ----

  __device__ __forceinline__ void fetch_queries(int tile, int parity) const {
    stage_queries(tile_of(parity, 0), a.q, tile * INNER, INNER);
    stage_queries(tile_of(parity, 1), a.dout, tile * INNER, INNER);
    float* values = row_values + parity * 2 * INNER;
    for (int r = int(threadIdx.x); r < INNER; r += int(blockDim.x)) {
      const bool there = tile * INNER + r < all_rows;
      values[r] = there ? a.logsumexp[row_index(tile * INNER + r)] * LOG2_E : 0.0f;
      values[INNER + r] = there ? a.delta[row_index(tile * INNER + r)] : 0.0f;
    }
    cp_async_commit();
  }

  __device__ __forceinline__ void keys() {
    constexpr bool BOTH = WIDTH <= 128;
    if (!begin(1, blockIdx.x)) return;
    const bool want_dv = BOTH || blockIdx.z == 0, want_dk = BOTH || blockIdx.z == 1;
    stage_keys(left, a.k, first, count);
    stage_keys(left_other, a.v, first, count);
    const int warp_key = first + warp_id() * ATTENTION_TILE_ROWS;
    const Range block_keys{first, min(first + count, sequence.length)};
    const Range my_keys{warp_key, warp_key + ATTENTION_TILE_ROWS};
    const auto cover_of = [&](int tile, Range of) {
      return cover(shape, sequence.length, positions(tile * INNER, (tile + 1) * INNER), of);
    };
    const Range seeing = queries_of(shape, sequence.length, block_keys);
    const int end = (seeing.to * heads_per_group + INNER - 1) / INNER;
    const auto next_seen = [&](int tile) {
      while (tile < end && cover_of(tile, block_keys) == Cover::EMPTY) tile++;
      return tile;
    };
    float sums[BOTH ? 2 : 1][WIDTH / 8][4];
    float(&dv)[WIDTH / 8][4] = sums[0];
    float(&dk)[WIDTH / 8][4] = sums[BOTH ? 1 : 0];
    clear(dv);
    clear(dk);
    int tile = next_seen(seeing.from * heads_per_group / INNER);
    if (tile < end) fetch_queries(tile, 0);
    for (int parity = 0; tile < end; parity ^= 1) {
      const int next = next_seen(tile + 1);
      if (next < end) {
        fetch_queries(next, parity ^ 1);
        cp_async_wait<1>();
      } else {
        cp_async_wait<0>();
      }
      __syncthreads();
      const Cover seen = cover_of(tile, my_keys);
      if (seen != Cover::EMPTY) {
        const float* values = row_values + parity * 2 * INNER;
        float weights[INNER / 8][4], slopes[INNER / 8][4];
        row_products<T, WIDTH, INNER>(weights, mine(left), tile_of(parity, 0));
#pragma unroll
        for (int n = 0; n < INNER / 8; n++) {
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const int column = n * 8 + column_in_tile() + j, row = tile * INNER + column;
            const Seen of_row = seen_by(shape, sequence.length, row / heads_per_group);
#pragma unroll
            for (int i = j; i < 4; i += 2) {
              const float score = scoring(weights[n][i]);
              const bool counts = seen == Cover::FULL || of_row.has(warp_key + row_in_warp() + 8 * (i / 2));
              weights[n][i] = counts && row < all_rows ? exp2f(score - values[column]) : 0.0f;
              slopes[n][i] = scoring.slope(score);
            }
          }
        }
        if (want_dv) add_weighted<T, WIDTH, INNER>(dv, weights, tile_of(parity, 1), exchange);
        if (want_dk) {
          float products[INNER / 8][4];
          row_products<T, WIDTH, INNER>(products, mine(left_other), tile_of(parity, 1));
#pragma unroll
          for (int n = 0; n < INNER / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
              const float delta = values[INNER + n * 8 + column_in_tile() + i % 2];
              slopes[n][i] = weights[n][i] * (products[n][i] - delta) * slopes[n][i];
            }
          }
          add_weighted<T, WIDTH, INNER>(dk, slopes, tile_of(parity, 0), exchange);
        }
      }
      __syncthreads();  // the tile is read: its place may be filled again
      tile = next;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int key = warp_key + row_in_warp() + 8 * r;
      if (key >= sequence.length) continue;
      const int64_t at = ((sequence.first + key) * shape.kv_heads + head) * shape.head_dim;
      if (want_dv) write(a.dv + at, dv, r, 1.0f);
      if (want_dk) write(a.dk + at, dk, r, shape.scale);
    }
  }
};

// Blocks of a multiprocessor at once. Said, because left to itself the compiler spills a few words to make it more.
constexpr int RESIDENT = 2;

#define ATTENTION_BACKWARD(width, name, type)                                                             \
  KERNEL_RESIDENT(attention_backward_queries_##width##_##name, AttentionBackwardArgs, BLOCK, RESIDENT) { \
    Gradient<type, width>(a).queries();                                                                   \
  }                                                                                                       \
  KERNEL_RESIDENT(attention_backward_keys_##width##_##name, AttentionBackwardArgs, BLOCK, RESIDENT) {    \
    Gradient<type, width>(a).keys();                                                                      \
  }
#define ATTENTION_BACKWARD_TYPES(width)   \
  ATTENTION_BACKWARD(width, f32, float)   \
  ATTENTION_BACKWARD(width, bf16, bf16)
ATTENTION_BACKWARD_TYPES(32)
ATTENTION_BACKWARD_TYPES(64)
ATTENTION_BACKWARD_TYPES(128)
ATTENTION_BACKWARD_TYPES(256)

// A warp a row.
template <class T>
__device__ __forceinline__ void attention_delta(const AttentionDeltaArgs& a) {
  const int64_t warps = threads_in_grid() / WARP;
  for (int64_t row = thread_in_grid() / WARP; row < a.rows; row += warps) {
    const int64_t at = row * a.head_dim;
    const T* out = static_cast<const T*>(a.out) + at;
    float sum = 0.0f;
    for (int d = lane_id(); d < a.head_dim; d += WARP) {
      const float gradient = a.dout[at + d];
      sum = __fmaf_rn(gradient, to_float(out[d]), sum);
      if (a.rounded != nullptr) static_cast<T*>(a.rounded)[at + d] = from_float<T>(gradient);
    }
    sum = warp_reduce(sum, Sum());
    if (lane_id() == 0) a.delta[row] = sum;
  }
}
KERNEL(attention_delta_f32, AttentionDeltaArgs, BLOCK) { attention_delta<float>(a); }
KERNEL(attention_delta_bf16, AttentionDeltaArgs, BLOCK) { attention_delta<bf16>(a); }
KERNEL(attention_delta_f16, AttentionDeltaArgs, BLOCK) { attention_delta<f16>(a); }
