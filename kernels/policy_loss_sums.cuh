// policy_loss_sums.cuh: sums over the tokens of a thread, a warp and a block, in an order that is a function of the tokens' places.
//
// A thread adds its tokens in f32, a warp and a block in f64 by a fixed tree; counts are integers. The record of a block is
// args/policy_loss.h's; what the sums are of is the token pass's to say.
#pragma once
#include "objective.cuh"


constexpr int THREADS = 256;
constexpr int GROUPS = POLICY_LOSS_BLOCK / THREADS / 4;  // of four tokens, of a thread
static_assert(GROUPS == 2, "two words of masks");

__device__ __forceinline__ double larger(double a, double b) { return a != a || a > b ? a : b; }  // NaN stays

struct AddSums {
  __device__ __forceinline__ PolicyLossSums operator()(const PolicyLossSums& a, const PolicyLossSums& b) const {
    PolicyLossSums sum;
    sum.policy_loss = a.policy_loss + b.policy_loss;
    sum.kl_loss = a.kl_loss + b.kl_loss;
    sum.entropy_loss = a.entropy_loss + b.entropy_loss;
    sum.drift_loss = a.drift_loss + b.drift_loss;
    sum.log_ratio = a.log_ratio + b.log_ratio;
    sum.absolute_log_ratio = a.absolute_log_ratio + b.absolute_log_ratio;
    sum.kl = a.kl + b.kl;
    sum.entropy = a.entropy + b.entropy;
    sum.surrogate = a.surrogate + b.surrogate;
    sum.ratio = a.ratio + b.ratio;
    sum.ratio_squared = a.ratio_squared + b.ratio_squared;
    sum.ratio_max = larger(a.ratio_max, b.ratio_max);
    sum.clipped = a.clipped + b.clipped;
    sum.clipped_high = a.clipped_high + b.clipped_high;
    sum.clipped_low = a.clipped_low + b.clipped_low;
    sum.clipped_dual = a.clipped_dual + b.clipped_dual;
    sum.dropped = a.dropped + b.dropped;
    sum.selected = a.selected + b.selected;
    return sum;
  }
};

struct AddReplaySums {
  __device__ __forceinline__ ReplaySums operator()(const ReplaySums& a, const ReplaySums& b) const {
    ReplaySums sum;
    sum.surrogate = a.surrogate + b.surrogate;
    sum.shaped = a.shaped + b.shaped;
    sum.shaped_squared = a.shaped_squared + b.shaped_squared;
    sum.ratio_max = larger(a.ratio_max, b.ratio_max);
    sum.probability = a.probability + b.probability;
    sum.fresh_probability = a.fresh_probability + b.fresh_probability;
    sum.tokens = a.tokens + b.tokens;
    sum.clipped_high = a.clipped_high + b.clipped_high;
    sum.clipped_low = a.clipped_low + b.clipped_low;
    sum.unused = 0;
    return sum;
  }
};

// Those of a thread's few tokens, in f32: half the registers.
struct ThreadSums {
  float policy_loss, kl_loss, entropy_loss, drift_loss;
  float log_ratio, absolute_log_ratio, kl, entropy, surrogate;
  float ratio, ratio_squared, ratio_max;
  unsigned clips;   // a byte each: clipped, high, low, dual
  unsigned chosen;  // a byte each: dropped, selected; a thread has 8 tokens
};

// Those of a block's warps: sums in the order of PolicyLossSums, then counts.
constexpr int SUMS = 12, COUNTS = 6;
static_assert(sizeof(PolicyLossSums) == SUMS * sizeof(double) + COUNTS * sizeof(uint32_t), "sums and counts");
struct WarpSums {
  double sum[THREADS / WARP][SUMS];
  unsigned count[THREADS / WARP][COUNTS];
};

// Sums of N numbers over a warp by the tree of warp_reduce: each exchange leaves a lane half of the numbers, so that lane l has
// number l / (32 / N) in the end.
template <int N>
__device__ __forceinline__ double sum_each(const float (&of)[N]) {
  static_assert(N == 4 || N == 8, "a power of two");
  double sum[N / 2];
  const bool upper = (lane_id() & WARP / 2) != 0;
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    const float mine = upper ? of[i + N / 2] : of[i], theirs = upper ? of[i] : of[i + N / 2];
    sum[i] = double(mine) + double(__shfl_xor_sync(ALL_LANES, theirs, WARP / 2));
  }
#pragma unroll
  for (int kept = N / 4, mask = WARP / 4; mask > 0; kept /= 2, mask /= 2) {
    const bool high = (lane_id() & mask) != 0;
    if (kept == 0) sum[0] += __shfl_xor_sync(ALL_LANES, sum[0], mask);
#pragma unroll
    for (int i = 0; i < kept; i++) {
      const double mine = high ? sum[i + kept] : sum[i], theirs = high ? sum[i] : sum[i + kept];
      sum[i] = mine + __shfl_xor_sync(ALL_LANES, theirs, mask);
    }
  }
  return sum[0];
}

// What an objective has besides a surrogate.
struct Extras {
  bool kl_or_drift, drops;
};

// The record of a block: over a warp, then warp after warp, a thread a number. What the objective has not is 0 in all threads.
// With all threads; before the next call they meet at a barrier.
__device__ __forceinline__ void record_sums(const ThreadSums& of, const Extras& has, PolicyLossSums* record) {
  WarpSums& warps = block_shared<WarpSums>();
  double* sum = warps.sum[warp_id()];
  unsigned* count = warps.count[warp_id()];
  // The place in the record of what lane 4 i has, and of what lane 8 i has.
  const float common[8] = {of.policy_loss, of.entropy_loss, of.log_ratio, of.absolute_log_ratio,
                           of.entropy,     of.surrogate,    of.ratio,     of.ratio_squared};
  const double of_common = sum_each(common);
  if (lane_id() % 4 == 0) sum[0xa9875420u >> lane_id() & 0xfu] = of_common;
  double of_others = 0.0;
  if (has.kl_or_drift) {
    const float others[4] = {of.kl_loss, of.drift_loss, of.kl, 0.0f};
    of_others = sum_each(others);
  }
  if (lane_id() % 8 == 0 && lane_id() < 24) sum[0x060301u >> lane_id() & 0xfu] = of_others;
  const float most = warp_reduce(of.ratio_max, [](float a, float b) { return max_nan(a, b); });
  // Two bytes hold what a warp counts of its 256 tokens.
  const unsigned clipped_low = __reduce_add_sync(ALL_LANES, of.clips & 0xff00ffu);
  const unsigned high_dual = __reduce_add_sync(ALL_LANES, of.clips >> 8 & 0xff00ffu);
  const unsigned dropped_selected =
      has.drops ? __reduce_add_sync(ALL_LANES, (of.chosen & 0xffu) | (of.chosen & 0xff00u) << 8) : 0u;
  if (lane_id() == 0) {
    sum[SUMS - 1] = most;
    count[0] = clipped_low & 0xffffu;
    count[1] = high_dual & 0xffffu;
    count[2] = clipped_low >> 16;
    count[3] = high_dual >> 16;
    count[4] = dropped_selected & 0xffffu;
    count[5] = dropped_selected >> 16;
  }
  __syncthreads();
  const int field = threadIdx.x;
  if (field < SUMS) {
    double total = warps.sum[0][field];
#pragma unroll
    for (int warp = 1; warp < THREADS / WARP; warp++) {
      const double next = warps.sum[warp][field];
      total = field == SUMS - 1 ? larger(total, next) : total + next;
    }
    reinterpret_cast<double*>(record)[field] = total;
  } else if (field < SUMS + COUNTS) {
    unsigned total = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / WARP; warp++) total += warps.count[warp][field - SUMS];
    reinterpret_cast<uint32_t*>(reinterpret_cast<double*>(record) + SUMS)[field - SUMS] = total;
  }
}

struct ThreadReplaySums {
  float surrogate, shaped, shaped_squared, ratio_max, probability, fresh_probability;
  unsigned tokens, clipped_high, clipped_low;

  __device__ __forceinline__ ReplaySums widened() const {
    return ReplaySums{surrogate, shaped, shaped_squared, ratio_max, probability, fresh_probability, tokens, clipped_high, clipped_low, 0u};
  }
};
