// sample.cu: a token from each row of logits, and its log-prob as the trainer will compute it.
//
// Contract   args/sample.h. A draw is a function of its row and of (seed, stream, sequence, position). Truncation and
//            exclusion change what can be drawn and not what is reported: statistics are softmax_row.cuh's, to the bit.
// Floor      one read of the logits; what follows reads them again from L2, a row being at most some hundred KB.
// Algorithm  A block a row. Weights 2^y are made integers of 2^-40 of the largest: sums of integers have no order, so every
//            thread order draws the same token, and comparisons are exact. Without truncation the ids are walked in tiles
//            until the running sum passes the random number (two reads). With top-k, top-p or min-p nothing is sorted: one
//            read counts and weighs what lies within 1, 2, 4, ... 64 powers of two of the largest logit, and what min-p
//            leaves, which is what lies above a logit; the least of these sets that is enough goes into shared memory (or stays where it is, when it has more than 2048 ids). There
//            the boundary of top-k, that of top-p and the token itself are three searches for the key (logit, id)
//            above which a count or a weight is reached, two bits a step and ended when one candidate is left.
// Hazards    Equal logits: the id is the lower half of the key, so that exactly k are kept and ties go to the lower id.
//            Weights below 2^-41 of the largest are 0: together less than 1e-7 of a row. The random number times the sum may
//            round up to the sum. A NaN must not be drawn: the sums of the row tell that there is one.
// Measured   not yet run on a GPU.
#include "softmax_row.cuh"
#include "args/sample.h"

constexpr int THREADS = LOGPROB_CHAINS * WARP;
constexpr int EACH = 16;  // ids of a thread in a tile
constexpr int DEPTHS = 7;

typedef unsigned long long Word;

// The tempered distribution of one row, to draw from.
template <class T>
struct Distribution {
  const T* row;
  unsigned vocab;
  RowRule excluded;  // of the draw: its banned ids are the excluded ones
  float max;         // of what can be drawn

  // -inf: cannot be drawn.
  __device__ __forceinline__ float logit(unsigned id) const { return logit_at(row, id, excluded); }

  __device__ __forceinline__ float power(float logit) const {
    return logit == -INFINITY_F ? LEAST_EXPONENT : exponent(logit, max, excluded.scale);
  }

  __device__ __forceinline__ Word weight(float logit) const {
    return logit == -INFINITY_F ? 0 : Word(__fmul_rn(exp2_flushed(power(logit)), 1099511627776.0f) + 0.5f);
  }
};

struct AddWords {
  __device__ __forceinline__ Word operator()(Word a, Word b) const { return a + b; }
};
struct MaxWord {
  __device__ __forceinline__ Word operator()(Word a, Word b) const { return a > b ? a : b; }
};

// The larger logit first; of equal ones the lower id. Never 0 for a logit above -inf.
__device__ __forceinline__ Word key_of(float logit, unsigned id) {
  const unsigned bits = __float_as_uint(logit), ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return Word(ordered) << 32 | (0xffffffffu - id);
}
__device__ __forceinline__ unsigned id_of(Word key) { return 0xffffffffu - unsigned(key); }
__device__ __forceinline__ float logit_of(Word key) {
  const unsigned ordered = unsigned(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// ---- a draw from all ids, in their order ----

struct WarpWords {
  Word of_warp[THREADS / WARP];
  Word found;
};

// The id at which the running sum of weights passes `goal`. All threads get it.
template <class T>
__device__ __forceinline__ unsigned walk(const Distribution<T>& from, Word goal) {
  WarpWords& shared = block_shared<WarpWords>();
  Word before_tile = 0;
  for (unsigned tile = 0; tile < from.vocab; tile += THREADS * EACH) {
    Word weight[EACH], sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const unsigned id = tile + threadIdx.x * EACH + unsigned(i);
      weight[i] = id < from.vocab ? from.weight(from.logit(id)) : 0;
      sum += weight[i];
    }
    Word through = sum;  // of this warp, up to this lane
    for (unsigned step = 1; step < WARP; step *= 2) {
      const Word below = __shfl_up_sync(ALL_LANES, through, step);
      if (unsigned(lane_id()) >= step) through += below;
    }
    __syncthreads();  // the tile before was read
    if (lane_id() == WARP - 1) shared.of_warp[warp_id()] = through;
    if (threadIdx.x == 0) shared.found = 0;
    __syncthreads();
    Word before = before_tile, tile_sum = before_tile;
    for (int warp = 0; warp < THREADS / WARP; warp++) {
      if (warp < warp_id()) before += shared.of_warp[warp];
      tile_sum += shared.of_warp[warp];
    }
    before += through - sum;
    if (before <= goal && goal < before + sum) {  // one thread of the row
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        if (before <= goal && goal < before + weight[i]) shared.found = 1 + tile + threadIdx.x * EACH + Word(i);
        before += weight[i];
      }
    }
    __syncthreads();
    if (tile_sum > goal) return unsigned(shared.found - 1);
    before_tile = tile_sum;
  }
  return from.vocab;  // not reached: goal is below the sum of all
}

// ---- a draw from the most likely ids ----

struct Reached {
  Word weight;
  unsigned count;
};

// Several, in as few words as a shuffle has to move.
template <int COUNT>
struct ReachedAll {
  Word weight[COUNT];
  unsigned count[COUNT + COUNT % 2];
  __device__ __forceinline__ void add(int i, Word by) { weight[i] += by, count[i] += 1; }
  __device__ __forceinline__ Reached at(int i) const { return Reached{weight[i], count[i]}; }
};

template <int COUNT>
struct AddReached {
  __device__ __forceinline__ ReachedAll<COUNT> operator()(const ReachedAll<COUNT>& a, const ReachedAll<COUNT>& b) const {
    ReachedAll<COUNT> sum{};
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      sum.weight[i] = a.weight[i] + b.weight[i];
      sum.count[i] = a.count[i] + b.count[i];
    }
    return sum;
  }
};

struct Candidates {
  Word key[SAMPLE_CANDIDATES];
  unsigned count;
};

// The ids that are searched: those in shared memory, or the whole row.
template <class T>
struct Pool {
  const Distribution<T>& from;
  const Candidates& gathered;
  unsigned size;
  bool whole_row;
  Reached all;
  // 0 for what cannot be drawn.
  __device__ __forceinline__ Word key(unsigned place) const {
    if (!whole_row) return gathered.key[place];
    const float logit = from.logit(place);
    return logit == -INFINITY_F ? 0 : key_of(logit, place);
  }
};

// What a prefix of the keys, in falling order, must reach.
struct Goal {
  Word weight;
  unsigned count;
  __device__ __forceinline__ bool met(const Reached& by) const { return by.weight >= weight && by.count >= count; }
};

struct Boundary {
  Word key;         // the largest for which the keys from it on reach the goal
  Reached reached;  // by them
};

// `goal` is one that all keys together reach.
template <class T>
__device__ __forceinline__ Boundary search(const Pool<T>& pool, const Goal& goal) {
  // Keys >= base reach the goal, keys >= base + 4 steps do not.
  Boundary base{0, pool.all};
  Reached beyond{0, 0};
  for (int bits = 62; bits >= 0; bits -= 2) {
    ReachedAll<3> quarters{};
    for (unsigned place = threadIdx.x; place < pool.size; place += THREADS) {
      const Word key = pool.key(place);
      if (key < base.key || key == 0) continue;
      const Word offset = (key - base.key) >> bits, weight = pool.from.weight(logit_of(key));
#pragma unroll
      for (int i = 0; i < 3; i++) {
        if (offset > Word(i)) quarters.add(i, weight);
      }
    }
    quarters = block_reduce<THREADS>(quarters, AddReached<3>());
    const Reached first = quarters.at(0), second = quarters.at(1), third = quarters.at(2);
    if (goal.met(third)) {
      base = Boundary{base.key + (Word(3) << bits), third};
    } else if (goal.met(second)) {
      base = Boundary{base.key + (Word(2) << bits), second};
      beyond = third;
    } else if (goal.met(first)) {
      base = Boundary{base.key + (Word(1) << bits), first};
      beyond = second;
    } else {
      beyond = first;
    }
    if (base.reached.count == beyond.count + 1) {  // one key is left in [base, base + step)
      Word only = 0;
      const Word last = base.key + ((Word(1) << bits) - 1);
      for (unsigned place = threadIdx.x; place < pool.size; place += THREADS) {
        const Word key = pool.key(place);
        if (key >= base.key && key <= last) only = key;
      }
      base.key = block_reduce<THREADS>(only, MaxWord());
      return base;
    }
  }
  return base;
}

// A number below `sum`: `unit` of it.
__device__ __forceinline__ Word part_of(Word sum, double unit) {
  const Word part = Word(unit * double(sum));
  return part < sum ? part : sum - 1;
}

// The smallest weight that is at least `p` of `sum`.
__device__ __forceinline__ Word nucleus_of(Word sum, float p) {
  const double needed = ceil(double(p) * double(sum));
  return needed >= double(sum) ? sum : Word(needed);
}

template <class T>
__device__ __forceinline__ unsigned draw_likely(const Distribution<T>& from, double unit, unsigned top_k, float top_p,
                                                float min_p_depth, float& kept_mass) {
  // Within 1, 2, 4, ... powers of two of the largest logit; then everything; then what min-p leaves.
  ReachedAll<DEPTHS + 2> within{};
  const float floor = from.max + min_p_depth;
  for (unsigned id = threadIdx.x; id < from.vocab; id += THREADS) {
    const float logit = from.logit(id);
    if (logit == -INFINITY_F) continue;
    const float y = from.power(logit);
    const Word weight = from.weight(logit);
#pragma unroll
    for (int i = 0; i <= DEPTHS; i++) {
      if (i == DEPTHS || y >= -float(1 << i)) {
        within.add(i, weight);
      }
    }
    if (logit >= floor) within.add(DEPTHS + 1, weight);
  }
  within = block_reduce<THREADS>(within, AddReached<DEPTHS + 2>());
  const Reached all = within.at(DEPTHS), above = within.at(DEPTHS + 1);
  if (all.weight == 0) return from.vocab;
  const bool nucleus = top_p < 1.0f;
  const Goal enough = top_k     ? Goal{0, top_k < all.count ? top_k : all.count}
                      : nucleus ? Goal{nucleus_of(all.weight, top_p), 0}
                                : Goal{0, above.count};
  Candidates& gathered = block_shared<Candidates>();
  Pool<T> pool{from, gathered, from.vocab, true, all};
  int depth = DEPTHS;
#pragma unroll
  for (int i = DEPTHS - 1; i >= 0; i--) {
    if (!enough.met(within.at(i))) break;
    depth = i;
    pool.all = within.at(i);
  }
  if (pool.all.count <= SAMPLE_CANDIDATES) {
    __syncthreads();  // the searches of the row before are done
    if (threadIdx.x == 0) gathered.count = 0;
    __syncthreads();
    for (unsigned id = threadIdx.x; id < from.vocab; id += THREADS) {
      const float logit = from.logit(id);
      if (logit > -INFINITY_F && (depth == DEPTHS || from.power(logit) >= -float(1 << depth))) {
        gathered.key[atomicAdd(&gathered.count, 1u)] = key_of(logit, id);  // in any order: only sums are taken
      }
    }
    __syncthreads();
    pool.size = pool.all.count;
    pool.whole_row = false;
  }
  Reached kept = pool.all;
  if (!top_k) kept = all;
  if (top_k) kept = search(pool, enough).reached;
  if (nucleus) kept = search(pool, Goal{nucleus_of(kept.weight, top_p), 0}).reached;
  if (above.count < kept.count) kept = above;  // each bound keeps the first ids of one order
  kept_mass = float(double(kept.weight) / double(all.weight));
  return id_of(search(pool, Goal{part_of(kept.weight, unit) + 1, 0}).key);
}

// ---- a block a row ----

template <class T>
__device__ __forceinline__ Word best_key(const Distribution<T>& from) {
  Word best = 0;
  for (unsigned id = threadIdx.x; id < from.vocab; id += THREADS) {
    const float logit = from.logit(id);
    if (logit > -INFINITY_F) best = MaxWord()(best, key_of(logit == 0.0f ? 0.0f : logit, id));  // -0 is 0
  }
  return block_reduce<THREADS>(best, MaxWord());
}

template <class T>
__device__ __forceinline__ unsigned choose(const SampleArgs& a, const Distribution<T>& from, int64_t row, float& kept_mass) {
  if (a.greedy) {
    const Word best = best_key(from);
    return best ? id_of(best) : from.vocab;
  }
  const Random4 random = philox(a.seed, a.stream, a.sequences[row], a.positions[row]);
  const double unit = double((Word(random.word[0]) << 32 | random.word[1]) >> 11) * (1.0 / 9007199254740992.0);
  if (a.top_k || a.top_p < 1.0f || a.min_p_depth > -INFINITY_F) {
    return draw_likely(from, unit, a.top_k, a.top_p, a.min_p_depth, kept_mass);
  }
  Word sum = 0;
  for (unsigned id = threadIdx.x; id < from.vocab; id += THREADS) sum += from.weight(from.logit(id));
  sum = block_reduce<THREADS>(sum, AddWords());
  return sum ? walk(from, part_of(sum, unit)) : from.vocab;
}

template <class T>
__device__ __forceinline__ void sample(const SampleArgs& a) {
  const RowRule rule = row_rule(a.softmax, a.softmax.temperature);
  RowRule excluded = rule;
  excluded.banned = a.excluded;
  excluded.banned_count = unsigned(a.excluded_count);
  for (int64_t i = blockIdx.x; i < a.rows; i += gridDim.x) {
    const T* row = static_cast<const T*>(a.logits) + i * a.vocab;
    const OnlineSoftmax sums = sum_row(row, a.vocab, rule, static_cast<OnlineSoftmax*>(nullptr));
    const bool broken = sums.sum != sums.sum || sums.max == INFINITY_F;  // the same in all threads
    Distribution<T> from{row, unsigned(a.vocab), excluded, sums.max};
    if (a.excluded_count > 0) {  // an excluded id may be all of the distribution
      float max = -INFINITY_F;
      for (unsigned id = threadIdx.x; id < from.vocab; id += THREADS) max = fmaxf(max, from.logit(id));
      from.max = block_reduce<THREADS>(max, Max());
    }
    from.max = reference_of(from.max);
    float kept_mass = 1.0f;
    const unsigned id = broken ? from.vocab : choose(a, from, i, kept_mass);
    if (threadIdx.x != 0) continue;
    const bool drawn = id < from.vocab;
    if (!drawn) raise_status(a.status, broken ? STATUS_NON_FINITE : STATUS_BAD_TARGET);
    const RowSummary summary =
        drawn ? summarize(sums, logit_at(row, id, rule), rule) : RowSummary{0.0f, 0.0f, 0.0f, -1};
    a.tokens[i] = drawn ? int32_t(id) : -1;
    if (a.logprob) a.logprob[i] = summary.logprob;
    if (a.entropy) a.entropy[i] = summary.entropy;
    if (a.logsumexp) a.logsumexp[i] = summary.logsumexp;
    if (a.argmax) a.argmax[i] = summary.argmax;
    if (a.kept_mass) a.kept_mass[i] = drawn ? kept_mass : 0.0f;
  }
}

KERNEL_RESIDENT(sample_f32, SampleArgs, THREADS, 1) { sample<float>(a); }
KERNEL_RESIDENT(sample_bf16, SampleArgs, THREADS, 1) { sample<bf16>(a); }
KERNEL_RESIDENT(sample_f16, SampleArgs, THREADS, 1) { sample<f16>(a); }
