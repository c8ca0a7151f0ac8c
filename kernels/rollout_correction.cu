// rollout_correction.cu: weights and rejections for tokens that another policy sampled than the one that learns.
//
// Contract   args/rollout_correction.h. d = log policy - log sampler of a live token. A NaN in d drops the token from the mask; an
//            infinite d counts as +-20, and every exponent is cut to +-20. Of a masked token only the mask is read. Sums in f64.
// Floor      9 bytes read and 5 written a token, read twice (the second time from the cache): 3 us for 1 M tokens at 4.8 TB/s.
// Algorithm  rollout_correction_sequences: a block a sequence. First walk: sum, k2, k3 and their maxima; they decide about the
//            sequence and give its weight. Second walk: weight and mask of each token, and the sums of what is to be watched.
//            rollout_correction_total: one block adds the sequences' records. rollout_correction_normalize: divides by the mean
//            weight, which never leaves the device.
// Hazards    Thread t takes tokens t, t + 256, ...: a sequence's bits do not depend on what is beside it. The first walk's
//            sums reach all threads by the reduction, so all decide alike. A sequence without a live token has no
//            mean. A mean weight of at most 1e-8 normalises nothing.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/rollout_correction.h"

constexpr int THREADS = 256;
constexpr double LIMIT = 20.0;

__device__ __forceinline__ double cut(double exponent) { return exponent > LIMIT ? LIMIT : exponent < -LIMIT ? -LIMIT : exponent; }

struct Gap {
  double d;
  bool live, dropped;
};

__device__ __forceinline__ Gap gap_of(const RolloutCorrectionArgs& a, int64_t token) {
  if (a.mask[token] == 0) return Gap{0.0, false, false};
  if (!a.sampler) return Gap{0.0, true, false};
  const double d = double(a.policy[token]) - double(a.sampler[token]);
  if (d != d) return Gap{0.0, false, true};
  return Gap{fabs(d) < double(INFINITY_F) ? d : cut(d), true, false};
}

__device__ __forceinline__ double statistic(uint32_t which, double d) {
  const double safe = cut(d);
  if (which == ROLLOUT_K2) return 0.5 * safe * safe;
  return which == ROLLOUT_K3 ? exp(safe) - 1.0 - safe : d;
}

struct Divergence {
  double sum, k2, k3, k2_max, k3_max, tokens;
};

struct MergeDivergence {
  __device__ __forceinline__ Divergence operator()(const Divergence& a, const Divergence& b) const {
    return Divergence{a.sum + b.sum, a.k2 + b.k2, a.k3 + b.k3, a.k2_max > b.k2_max ? a.k2_max : b.k2_max,
                      a.k3_max > b.k3_max ? a.k3_max : b.k3_max, a.tokens + b.tokens};
  }
};

struct MergeSums {
  __device__ __forceinline__ RolloutCorrectionSums operator()(const RolloutCorrectionSums& a,
                                                              const RolloutCorrectionSums& b) const {
    RolloutCorrectionSums sum;
    sum.divergence = a.divergence + b.divergence;
    sum.k3 = a.k3 + b.k3;
    sum.ratio = a.ratio + b.ratio;
    sum.ratio_squared = a.ratio_squared + b.ratio_squared;
    sum.weight = a.weight + b.weight;
    sum.weight_squared = a.weight_squared + b.weight_squared;
    sum.weight_max = a.weight_max > b.weight_max ? a.weight_max : b.weight_max;
    sum.sequence_weight = a.sequence_weight + b.sequence_weight;
    sum.perplexity = a.perplexity + b.perplexity;
    sum.chi_squared = a.chi_squared + b.chi_squared;
    sum.tokens = a.tokens + b.tokens;
    sum.sequences = a.sequences + b.sequences;
    sum.dropped = a.dropped + b.dropped;
    sum.high = a.high + b.high;
    sum.low = a.low + b.low;
    sum.rejected = a.rejected + b.rejected;
    sum.rejected_sequences = a.rejected_sequences + b.rejected_sequences;
    return sum;
  }
};

__device__ __forceinline__ bool inside(const RolloutRejection& rule, double value) {
  return value >= rule.low && value <= rule.high;
}

__device__ __forceinline__ bool keeps_sequence(const RolloutCorrectionArgs& a, const Divergence& all) {
  bool keeps = true;
  for (uint32_t i = 0; i < a.rejections; i++) {
    const RolloutRejection& rule = a.reject[i];
    const double sum = rule.statistic == ROLLOUT_K1 ? all.sum : rule.statistic == ROLLOUT_K2 ? all.k2 : all.k3;
    if (rule.over == ROLLOUT_OVER_SUM) keeps = keeps && inside(rule, sum);
    if (rule.over == ROLLOUT_OVER_MEAN) keeps = keeps && inside(rule, sum / all.tokens);
    if (rule.over == ROLLOUT_OVER_MAX) keeps = keeps && inside(rule, rule.statistic == ROLLOUT_K2 ? all.k2_max : all.k3_max);
  }
  return keeps;
}

__device__ __forceinline__ bool keeps_token(const RolloutCorrectionArgs& a, double d) {
  bool keeps = true;
  for (uint32_t i = 0; i < a.rejections; i++) {
    const RolloutRejection& rule = a.reject[i];
    if (rule.over == ROLLOUT_OVER_TOKEN) keeps = keeps && inside(rule, statistic(rule.statistic, d));
  }
  return keeps;
}

__device__ __forceinline__ double bounded(const RolloutCorrectionArgs& a, double weight) {
  if (weight >= a.least && weight <= a.most) return weight;
  return a.masks ? 0.0 : weight < a.least ? a.least : a.most;
}

__device__ __forceinline__ double raw_weight(const RolloutCorrectionArgs& a, const Divergence& all, double d) {
  switch (a.level) {
    case ROLLOUT_LEVEL_TOKEN: return exp(cut(d));
    case ROLLOUT_LEVEL_SEQUENCE: return exp(cut(all.sum));
    case ROLLOUT_LEVEL_GEOMETRIC: return exp(cut(all.sum / all.tokens));
    default: return 1.0;
  }
}

KERNEL_RESIDENT(rollout_correction_sequences, RolloutCorrectionArgs, THREADS, 1) {
  for (int64_t sequence = blockIdx.x; sequence < a.sequences; sequence += gridDim.x) {
    const int64_t from = a.offsets[sequence], to = a.offsets[sequence + 1];
    const bool placed = from >= 0 && from <= to && to <= a.tokens;
    if (!placed && threadIdx.x == 0) raise_status(a.status, STATUS_BAD_GROUP);
    Divergence all{0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
    for (int64_t token = from + threadIdx.x; placed && token < to; token += THREADS) {
      const Gap gap = gap_of(a, token);
      if (!gap.live) continue;
      const double k2 = statistic(ROLLOUT_K2, gap.d), k3 = statistic(ROLLOUT_K3, gap.d);
      all = MergeDivergence()(all, Divergence{gap.d, k2, k3, k2, k3, 1.0});
    }
    all = block_reduce<THREADS>(all, MergeDivergence());
    const bool any = all.tokens > 0.0, keeps = any && keeps_sequence(a, all);
    RolloutCorrectionSums sums{};
    for (int64_t token = from + threadIdx.x; placed && token < to; token += THREADS) {
      const Gap gap = gap_of(a, token);
      sums.dropped += gap.dropped;
      if (!gap.live) continue;
      const double raw = raw_weight(a, all, gap.d), weight = double(float(bounded(a, raw))), ratio = exp(cut(gap.d));
      const bool kept = keeps && keeps_token(a, gap.d);
      a.weight[token] = kept ? float(weight) : 0.0f;
      a.kept[token] = kept;
      sums.tokens++;
      sums.high += raw > a.most;
      sums.low += raw < a.least;
      sums.rejected += !kept;
      sums.ratio += ratio;
      sums.ratio_squared += ratio * ratio;
      sums.weight += weight;
      sums.weight_squared += weight * weight;
      sums.weight_max = weight > sums.weight_max ? weight : sums.weight_max;
    }
    sums = block_reduce<THREADS>(sums, MergeSums());
    if (threadIdx.x != 0) continue;
    sums.divergence = 0.0 - all.sum;
    sums.k3 = all.k3;
    sums.sequences = any;
    sums.rejected_sequences = any && sums.rejected == sums.tokens;
    if (any) {
      sums.sequence_weight = sums.weight / all.tokens;
      sums.perplexity = exp(cut(-all.sum / all.tokens));
      sums.chi_squared = exp(2.0 * cut(all.sum));
    }
    a.sums[sequence] = sums;
  }
}

KERNEL_RESIDENT(rollout_correction_total, RolloutCorrectionArgs, THREADS, 1) {
  RolloutCorrectionSums all{};
  for (int64_t sequence = threadIdx.x; sequence < a.sequences; sequence += THREADS) all = MergeSums()(all, a.sums[sequence]);
  all = block_reduce<THREADS>(all, MergeSums());
  if (threadIdx.x == 0) *a.total = all;
}

KERNEL(rollout_correction_normalize, RolloutCorrectionArgs, THREADS) {
  const RolloutCorrectionSums& all = *a.total;
  const bool by_token = a.level == ROLLOUT_LEVEL_TOKEN;
  const double count = double(by_token ? all.tokens : all.sequences);
  const double mean = count > 0.0 ? (by_token ? all.weight : all.sequence_weight) / count : 0.0;
  if (!(mean > 1e-8)) return;
  for (int64_t token = thread_in_grid(); token < a.tokens; token += threads_in_grid()) {
    if (a.kept[token] != 0) a.weight[token] = float(double(a.weight[token]) / mean);
  }
}
