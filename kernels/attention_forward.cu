// attention_forward.cu: attention of packed sequences and of a cache, by one kernel, with the same bits.
//
// Contract   args/attention.h. A query's bits depend on its own q, its position and the keys and values it sees: not on
//            the queries beside it, the batch, or where the keys lie. logsumexp is kept for the backward pass.
// Floor      4 D operations a (query, key) pair that is seen: 2 T^2 D a head for a causal sequence of T. Decoding reads
//            each cached key and value once: 2 D sizeof(T) bytes a position and key-value head.
// Algorithm  A block takes 16 query rows a warp of one key-value head; the heads of a group are rows beside each other,
//            so the group reads its keys once. Keys come in tiles of 64 (32 where a row is over 256 bytes) counted from
//            the sequence's start; K of the next tile arrives while P V is computed, V while Q K^T is. The online softmax
//            folds tile after tile into (max, sum, output); every 512 keys the chain ends and its state is merged into
//            the total. So the 512-key groups can also be blocks of their own: decoding with few queries does that
//            and a second kernel merges, by the same function in the same order. A chain over the whole sequence
//            would save training the merge (a total in shared memory, 1/16 of the work of a group at D = 128) and give
//            decoding other bits.
//            bf16, f16: mma.sync, p rounded to the storage type for P V as in every peer. f32: fused multiply-adds.
// Hazards    A row that sees nothing of a tile, or of a group, must come out unchanged: max stays, the factor is
//            exp2(0) = 1, the added products are 0. A state with max -inf is subtracted from nothing. Rows beyond the
//            sequence are zeros in shared memory and never written. Products are spelled as __fmul_rn and __fmaf_rn where
//            a compiler could contract them in one kernel and not in the other.
//            A NaN or infinity among the values stays with the queries that see it: see set_apart.
// Measured   not yet run on a GPU.
#include "attention_tile.cuh"

// The online softmax of a warp's 16 rows: this thread's two rows, its columns.
template <int WIDTH>
struct Chain {
  float max[2], sum[2];
  float out[WIDTH / 8][4];
  __device__ __forceinline__ void start() {
    max[0] = max[1] = -INFINITY_F;
    sum[0] = sum[1] = 0.0f;
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d++) out[d][0] = out[d][1] = out[d][2] = out[d][3] = 0.0f;
  }
  // Scores of one tile become weights against the new maximum; what was summed shrinks to it.
  template <int COUNT>
  __device__ __forceinline__ void fold(float (&scores)[COUNT / 8][4]) {
    float top[2] = {-INFINITY_F, -INFINITY_F}, shrink[2], base[2];
#pragma unroll
    for (int n = 0; n < COUNT / 8; n++) {
      top[0] = fmaxf(top[0], fmaxf(scores[n][0], scores[n][1]));
      top[1] = fmaxf(top[1], fmaxf(scores[n][2], scores[n][3]));
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      top[r] = fmaxf(max[r], over_row(top[r], Max()));
      base[r] = top[r] == -INFINITY_F ? 0.0f : top[r];
      shrink[r] = exp2f(max[r] - base[r]);
      max[r] = top[r];
      sum[r] = __fmul_rn(sum[r], shrink[r]);
    }
#pragma unroll
    for (int n = 0; n < COUNT / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        scores[n][i] = exp2f(scores[n][i] - base[i / 2]);
        sum[i / 2] = __fadd_rn(sum[i / 2], scores[n][i]);
      }
    }
#pragma unroll
    for (int d = 0; d < WIDTH / 8; d++) {
#pragma unroll
      for (int i = 0; i < 4; i++) out[d][i] = __fmul_rn(out[d][i], shrink[i / 2]);
    }
  }
};

// How the state of a key group joins the total of the groups before it. The same in the block that walks all groups
// and in the kernel that merges groups of different blocks.
struct Join {
  float max, sum, of_total, of_group;
  __device__ __forceinline__ Join(float total_max, float total_sum, float group_max, float group_sum) {
    const bool no_total = total_max == -INFINITY_F && total_sum == 0.0f;
    const bool no_group = group_max == -INFINITY_F && group_sum == 0.0f;
    max = fmaxf(total_max, group_max);
    const float base = max == -INFINITY_F ? 0.0f : max;
    of_total = no_group ? 1.0f : no_total ? 0.0f : exp2f(total_max - base);
    of_group = no_group ? 0.0f : no_total ? 1.0f : exp2f(group_max - base);
    sum = value(total_sum, group_sum);
  }
  // An empty state is left out, not multiplied: the other one keeps its bits.
  __device__ __forceinline__ float value(float total, float group) const {
    if (of_group == 0.0f && of_total == 1.0f) return total;
    if (of_total == 0.0f && of_group == 1.0f) return group;
    return __fmaf_rn(total, of_total, __fmul_rn(group, of_group));
  }
};

__device__ __forceinline__ float normalised(float out, float sum) { return __fmul_rn(out, 1.0f / sum); }

// Where the keys or values of a tile lie.
template <class T>
struct TileSource {
  const T* rows;
  int64_t stride;
  int count;
  __device__ __forceinline__ TileSource(const AttentionForwardArgs& a, const Sequence& sequence, int head, int first, bool values) {
    const int heads = a.shape.kv_heads, dim = a.shape.head_dim;
    count = sequence.length - first;
    if (a.pages != nullptr) {
      const uint64_t page = a.pages[int64_t(sequence.index) * a.pages_per_sequence + first / ATTENTION_PAGE];
      const int64_t row = int64_t((values ? heads : 0) + head) * ATTENTION_PAGE + first % ATTENTION_PAGE;
      rows = reinterpret_cast<const T*>(page) + a.page_offset + row * dim;
      stride = dim;
    } else {
      stride = int64_t(heads) * dim;
      rows = static_cast<const T*>(values ? a.v : a.k) + (sequence.first + first) * stride + head * dim;
    }
  }
  __device__ __forceinline__ const T* operator()(int row) const { return row < count ? rows + row * stride : nullptr; }
};

template <class T, int WIDTH>
struct Forward {
  static constexpr int KEYS = WIDTH * int(sizeof(T)) <= 256 ? 64 : 32;
  static constexpr bool KEPT = sizeof(T) == 2 && WIDTH <= 128;  // queries stay in registers
  static constexpr int GROUP_TILES = ATTENTION_GROUP / KEYS;

  const AttentionForwardArgs& a;
  const AttentionShape& shape;
  Sequence sequence;
  int head, heads_per_group;
  int row;       // the block's first query row: token row / group, head row % group
  int rows;      // of the block
  int all_rows;  // of the sequence
  Range queries, warp_queries;
  T *query, *key, *value;
  float *total, *exchange;

  __device__ __forceinline__ Range positions(int first_row, int end_row) const {
    const int end = end_row < all_rows ? end_row : all_rows;
    return Range{sequence.position(first_row / heads_per_group), sequence.position((end - 1) / heads_per_group) + 1};
  }

  __device__ __forceinline__ Cover cover_of(int tile, Range of) const {
    return cover(shape, sequence.length, of, Range{tile * KEYS, (tile + 1) * KEYS});
  }

  __device__ __forceinline__ int next_seen(int tile, int end) const {
    while (tile < end && cover_of(tile, queries) == Cover::EMPTY) tile++;
    return tile;
  }

  __device__ __forceinline__ void fetch(T* shared, int tile, bool values) const {
    const TileSource<T> source(a, sequence, head, tile * KEYS, values);
    stage<T, WIDTH>(shared, KEYS, shape.head_dim, a.vector != 0, source);
    cp_async_commit();
  }

  // Query row `r` of the sequence: its index among all tokens and heads.
  __device__ __forceinline__ int64_t row_index(int r) const {
    return (sequence.first + r / heads_per_group) * shape.query_heads + head * heads_per_group + r % heads_per_group;
  }

  // The tiles from `tile` to `end` folded into `chain`, group after group.
  template <class Left>
  __device__ __forceinline__ void walk(Chain<WIDTH>& chain, const Left& left, int tile, int end) {
    const Scoring scoring(shape);
    const int my_row = row + warp_id() * QUERY_ROWS + row_in_warp();
    const bool warp_has_rows = row + warp_id() * QUERY_ROWS < all_rows;
    float total_max[2] = {-INFINITY_F, -INFINITY_F}, total_sum[2] = {0.0f, 0.0f};
    bool joined = false;
    chain.start();
    tile = next_seen(tile, end);
    if (tile < end) fetch(key, tile, false);
    while (tile < end) {
      const int next = next_seen(tile + 1, end);
      const Cover seen = warp_has_rows ? cover_of(tile, warp_queries) : Cover::EMPTY;
      float scores[KEYS / 8][4];
      cp_async_wait<0>();
      __syncthreads();  // the keys are there, and all warps are done with the last values
      fetch(value, tile, true);
      if (seen != Cover::EMPTY) {
        row_products<T, WIDTH, KEYS>(scores, left, key);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) scores[n][i] = scoring(scores[n][i]);
        }
        if (seen == Cover::PARTIAL) {
#pragma unroll
          for (int r = 0; r < 2; r++) {
            const Seen keys = seen_by(shape, sequence.length, sequence.position((my_row + 8 * r) / heads_per_group));
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
              const int column = tile * KEYS + n * 8 + column_in_tile();
              if (!keys.has(column)) scores[n][2 * r] = -INFINITY_F;
              if (!keys.has(column + 1)) scores[n][2 * r + 1] = -INFINITY_F;
            }
          }
        }
        chain.template fold<KEYS>(scores);
      }
      cp_async_wait<0>();
      __syncthreads();  // the values are there, and all warps are done with the keys
      if (next < end) fetch(key, next, false);
      const Range there{tile * KEYS, min((tile + 1) * KEYS, sequence.length)};
      if (cover(shape, sequence.length, queries, there) == Cover::PARTIAL) set_apart(chain, tile);
      if (seen != Cover::EMPTY) add_weighted<T, WIDTH, KEYS>(chain.out, scores, value, exchange);
      const bool ends = next >= end || next / GROUP_TILES != tile / GROUP_TILES;
      if (ends) {
        chain.sum[0] = over_row(chain.sum[0], Sum());
        chain.sum[1] = over_row(chain.sum[1], Sum());
        if (next < end || joined) {
          join(chain, total_max, total_sum);
          chain.start();
          joined = true;
        }
      }
      tile = next;
    }
    if (!joined) return;
    const float* mine = total + lane_id();
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) chain.out[i / 4][i % 4] = mine[i * WARP];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      chain.max[r] = total_max[r];
      chain.sum[r] = total_sum[r];
    }
  }

  // A value that is not finite must not reach the queries of its tile that do not see it, and 0 * NaN is NaN: it is
  // added to the queries that see it, and a zero takes its place in the product. Looked for where some query does not
  // see some key that is there.
  __device__ __forceinline__ void set_apart(Chain<WIDTH>& chain, int tile) const {
    constexpr int CHUNKS = WIDTH / Vec16<T>::SIZE;
    const auto finite = [](T x) { return fabsf(to_float(x)) < INFINITY_F; };
    bool all_finite = true;
    for (int i = int(threadIdx.x); i < KEYS * CHUNKS; i += int(blockDim.x)) {
      const Vec16<T> chunk = load16(value + i / CHUNKS * STRIDE<T, WIDTH> + i % CHUNKS * Vec16<T>::SIZE);
#pragma unroll
      for (int j = 0; j < Vec16<T>::SIZE; j++) all_finite = all_finite && finite(chunk.at[j]);
    }
    if (__syncthreads_and(all_finite)) return;
    const int my_row = row + warp_id() * QUERY_ROWS + row_in_warp();
    const Seen upper = seen_by(shape, sequence.length, sequence.position(my_row / heads_per_group));
    const Seen lower = seen_by(shape, sequence.length, sequence.position((my_row + 8) / heads_per_group));
#pragma unroll 1
    for (int k = 0; k < KEYS; k++) {
      const T* mine = value + k * STRIDE<T, WIDTH> + column_in_tile();
      const bool add[2] = {upper.has(tile * KEYS + k), lower.has(tile * KEYS + k)};
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const T x = mine[d * 8 + i % 2];
          if (add[i / 2] && !finite(x)) chain.out[d][i] += to_float(x);
        }
      }
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < KEYS * WIDTH; i += int(blockDim.x)) {
      T* x = value + i / WIDTH * STRIDE<T, WIDTH> + i % WIDTH;
      if (!finite(*x)) *x = from_float<T>(0.0f);
    }
    __syncthreads();
  }

  // Joins a group that has ended to the total, which lies in shared memory (each thread has words of its own there):
  // a second output in registers would be too much.
  __device__ __forceinline__ void join(const Chain<WIDTH>& chain, float (&total_max)[2], float (&total_sum)[2]) const {
    float* mine = total + lane_id();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const Join join(total_max[r], total_sum[r], chain.max[r], chain.sum[r]);
      const bool begins = total_max[r] == -INFINITY_F && total_sum[r] == 0.0f;
      total_max[r] = join.max;
      total_sum[r] = join.sum;
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d++) {
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; i++) {
          float* word = mine + (d * 4 + i) * WARP;
          *word = join.value(begins ? 0.0f : *word, chain.out[d][i]);
        }
      }
    }
  }

  __device__ __forceinline__ void write(const Chain<WIDTH>& chain) const {
    const int dim = shape.head_dim;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int my_row = row + warp_id() * QUERY_ROWS + row_in_warp() + 8 * r;
      if (my_row >= all_rows) continue;
      const int64_t index = row_index(my_row);
      T* out = static_cast<T*>(a.out) + index * dim;
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d++) {
        const float first = normalised(chain.out[d][2 * r], chain.sum[r]);
        store_pair(out, d * 8 + column_in_tile(), dim, first, normalised(chain.out[d][2 * r + 1], chain.sum[r]));
      }
      if (a.logsumexp != nullptr && column_in_tile() == 0) {
        a.logsumexp[index] = (chain.max[r] + log2f(chain.sum[r])) * LN_2;
      }
    }
  }

  __device__ __forceinline__ void write_partial(const Chain<WIDTH>& chain, int group) const {
    const int dim = shape.head_dim;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int my_row = row + warp_id() * QUERY_ROWS + row_in_warp() + 8 * r;
      if (my_row >= all_rows) continue;
      const int64_t index = group * shape.tokens * shape.query_heads + row_index(my_row);
#pragma unroll
      for (int d = 0; d < WIDTH / 8; d++) {
        store_pair(a.partial + index * dim, d * 8 + column_in_tile(), dim, chain.out[d][2 * r], chain.out[d][2 * r + 1]);
      }
      if (column_in_tile() == 0) {
        a.statistics[2 * index] = chain.max[r];
        a.statistics[2 * index + 1] = chain.sum[r];
      }
    }
  }

  template <class Left>
  __device__ __forceinline__ void attend(const Left& left) {
    const Range keys = keys_of(shape, sequence.length, queries);
    const int first = keys.from / KEYS, end = (keys.to + KEYS - 1) / KEYS;
    const bool split = a.partial != nullptr;
    // A block of its own for each group, or one for all.
    const int step = split ? int(gridDim.z) : a.groups;
    for (int group = split ? int(blockIdx.z) : 0; group < a.groups; group += step) {
      Chain<WIDTH> chain;
      __syncthreads();  // the last group's values are read, and the queries where they are kept
      walk(chain, left, split ? max(first, group * GROUP_TILES) : first, split ? min(end, (group + 1) * GROUP_TILES) : end);
      if (split) {
        write_partial(chain, group);
      } else {
        write(chain);
      }
    }
  }

  __device__ __forceinline__ explicit Forward(const AttentionForwardArgs& args) : a(args), shape(args.shape) {}

  __device__ __forceinline__ void run() {
    heads_per_group = shape.query_heads / shape.kv_heads;
    rows = int(blockDim.x) / WARP * QUERY_ROWS;
    head = int(blockIdx.y);
    // The last tiles of a causal sequence are the longest: they begin first.
    const int64_t slot = int64_t(gridDim.x) - 1 - blockIdx.x;
    if (!find_tile(shape, slot, heads_per_group, rows, sequence, row)) return;
    all_rows = sequence.queries * heads_per_group;
    queries = positions(row, row + rows);
    const int warp_row = row + warp_id() * QUERY_ROWS;
    warp_queries = warp_row < all_rows ? positions(warp_row, warp_row + QUERY_ROWS) : queries;
    // Keys, values, weights in exchange, queries, totals; the totals take the queries' place where those are kept.
    key = dynamic_shared<T>();
    value = key + KEYS * STRIDE<T, WIDTH>;
    float* floats = reinterpret_cast<float*>(value + KEYS * STRIDE<T, WIDTH>);
    exchange = floats + warp_id() * WEIGHT_FLOATS<T, KEYS>;
    query = reinterpret_cast<T*>(floats + int(blockDim.x) / WARP * WEIGHT_FLOATS<T, KEYS>);
    total = reinterpret_cast<float*>(KEPT ? query : query + rows * STRIDE<T, WIDTH>) + warp_id() * QUERY_ROWS * WIDTH;
    const T* q = static_cast<const T*>(a.q);
    stage<T, WIDTH>(query, rows, shape.head_dim, a.vector != 0, [&](int r) {
      return row + r < all_rows ? q + row_index(row + r) * shape.head_dim : nullptr;
    });
    cp_async_commit();
    const T* mine = query + warp_id() * QUERY_ROWS * STRIDE<T, WIDTH>;
    if constexpr (KEPT) {
      cp_async_wait<0>();
      __syncthreads();
      LeftInRegisters<T, WIDTH> left;
      left.load(mine);
      attend(left);
    } else {
      attend(LeftInShared<T, WIDTH>{mine});
    }
  }
};

// Blocks of a multiprocessor at once. Said, because left to itself the compiler spills a few words to make it four.
constexpr int resident(int width) { return width <= 64 ? 3 : 2; }

#define ATTENTION_FORWARD(width)                                                                             \
  KERNEL_RESIDENT(attention_forward_##width##_f32, AttentionForwardArgs, BLOCK, resident(width)) { Forward<float, width>(a).run(); }   \
  KERNEL_RESIDENT(attention_forward_##width##_bf16, AttentionForwardArgs, BLOCK, resident(width)) { Forward<bf16, width>(a).run(); }   \
  KERNEL_RESIDENT(attention_forward_##width##_f16, AttentionForwardArgs, BLOCK, resident(width)) { Forward<f16, width>(a).run(); }
ATTENTION_FORWARD(32)
ATTENTION_FORWARD(64)
ATTENTION_FORWARD(128)
ATTENTION_FORWARD(256)

template <class T>
__device__ __forceinline__ void attention_merge(const AttentionMergeArgs& a) {
  for (int64_t i = thread_in_grid(); i < a.rows * a.head_dim; i += threads_in_grid()) {
    const int64_t row = i / a.head_dim;
    float total = a.partial[i], max = a.statistics[2 * row], sum = a.statistics[2 * row + 1];
    for (int group = 1; group < a.groups; group++) {
      const float* state = a.statistics + 2 * (group * a.rows + row);
      const Join join(max, sum, state[0], state[1]);
      total = join.value(total, a.partial[group * a.rows * a.head_dim + i]);
      max = join.max;
      sum = join.sum;
    }
    static_cast<T*>(a.out)[i] = from_float<T>(normalised(total, sum));
  }
}
KERNEL(attention_merge_f32, AttentionMergeArgs, BLOCK) { attention_merge<float>(a); }
KERNEL(attention_merge_bf16, AttentionMergeArgs, BLOCK) { attention_merge<bf16>(a); }
KERNEL(attention_merge_f16, AttentionMergeArgs, BLOCK) { attention_merge<f16>(a); }
