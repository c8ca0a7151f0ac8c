// policy_loss_sequence.cuh: what the tokens of a sequence add up to, for the objectives that look at whole sequences.
//
// A warp has a sequence: lane l takes tokens l, l + 32, ... of it. What follows for its tokens is a SequenceFactors.
#pragma once
#include "objective.cuh"

struct SequenceSums {
  double log_ratio, weight, distance;
};

struct AddSequenceSums {
  __device__ __forceinline__ SequenceSums operator()(const SequenceSums& a, const SequenceSums& b) const {
    return SequenceSums{a.log_ratio + b.log_ratio, a.weight + b.weight, a.distance + b.distance};
  }
};

// Bounds of VESPO's log ratio of a sequence, and of the logarithm of a weight: ln 1e-8 and 20.
constexpr double VESPO_LOWEST = -18.420680743952367, VESPO_HIGHEST = 20.0;

__device__ __forceinline__ double between(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// The interval in which GMPO keeps a log ratio.
__device__ __forceinline__ float gmpo_low(const ObjectiveRule& rule, float advantage) {
  const float limit = rule.log_ratio_limit;
  return advantage > 0.0f ? -limit : advantage < 0.0f ? fmaxf(rule.numbers.low, -limit) : 0.0f;
}
__device__ __forceinline__ float gmpo_high(const ObjectiveRule& rule, float advantage) {
  const float limit = rule.log_ratio_limit;
  return advantage > 0.0f ? fminf(rule.numbers.high, limit) : advantage < 0.0f ? limit : 0.0f;
}

// What a live token adds.
__device__ __forceinline__ void add_to_sequence(const PolicyLossArgs& a, int64_t sequence, int64_t token, SequenceSums& sums) {
  const ObjectiveRule& rule = a.objective;
  const float logprob = a.logprob[token];
  if (rule.has_off_policy_threshold) sums.distance += double((a.sampler ? a.sampler[token] : a.old_logprob[token]) - logprob);
  float low = -INFINITY_F, high = INFINITY_F;
  if (rule.surrogate == SURROGATE_GMPO) {
    low = gmpo_low(rule, a.advantage[sequence]);
    high = gmpo_high(rule, a.advantage[sequence]);
  } else if (rule.surrogate == SURROGATE_VESPO) {
    low = -20.0f;
    high = 20.0f;
  } else if (!rule.of_sequence) {
    return;
  }
  float d = logprob - a.old_logprob[token];
  d = d > high ? high : d;
  d = d < low ? low : d;
  sums.log_ratio += double(d);
  const bool dropped = rule.pick == PICK_KEEP && a.selected && a.selected[token] == 0 && rule.surrogate != SURROGATE_VESPO;
  const float weight = dropped ? 0.0f : a.weight ? a.weight[token] : 1.0f;
  if (rule.surrogate == SURROGATE_GMPO) {
    sums.weight += a.weight ? double(logf(weight + 1e-10f)) : 0.0;
  } else if (rule.surrogate == SURROGATE_VESPO) {
    sums.weight += a.weight ? between(double(logf(weight)), VESPO_LOWEST, VESPO_HIGHEST) : 0.0;
  } else {
    sums.weight += double(weight);
  }
}

// e^lambda W^k e^{-lambda W} from ln W; 0 where that is infinite. NaN stays, so that a NaN log-prob is seen.
__device__ __forceinline__ float vespo_phi(double log_ratio, float k, float lambda) {
  const float phi = float(exp(double(lambda) + double(k) * log_ratio - double(lambda) * exp(log_ratio)));
  return phi > 3.4028234e38f ? 0.0f : phi;
}

__device__ __forceinline__ SequenceFactors factors_of(const ObjectiveRule& rule, const SequenceSums& sums, unsigned live) {
  SequenceFactors of{1.0f, 1.0f, 1.0f, 1.0f, 0u, 0u, live, 0u};
  if (live == 0) return of;
  const double n = double(live);
  if (rule.surrogate == SURROGATE_GMPO) {
    of.ratio = float(exp(sums.log_ratio / n));
    of.weight = float(exp(sums.weight / n));
  } else if (rule.surrogate == SURROGATE_VESPO) {
    const double log_ratio = between(sums.log_ratio + sums.weight, VESPO_LOWEST, VESPO_HIGHEST);
    of.phi_positive = vespo_phi(log_ratio, rule.numbers.positive, rule.numbers.lambda_positive);
    of.phi_negative = vespo_phi(log_ratio, rule.numbers.negative, rule.numbers.lambda_negative);
  } else if (rule.of_sequence) {
    const double mean = sums.log_ratio / n, highest = double(rule.sequence_limit);
    of.stopped = mean > highest;
    of.ratio = float(exp(mean > highest ? highest : mean));
    of.weight = float(sums.weight / n);
  }
  // A mean that is NaN drops nothing: the tokens show it.
  of.drop_negative = rule.has_off_policy_threshold && sums.distance / n > double(rule.off_policy_threshold);
  return of;
}

// The live tokens of [from, to) that a lane of a warp counts, sixteen at a time where they are aligned.
__device__ __forceinline__ unsigned count_live(const uint8_t* mask, int64_t from, int64_t to) {
  const int64_t head = from + ragged_head(mask + from, to - from), words = (to - head) / 16;
  unsigned live = 0;
  if (from + lane_id() < head) live += mask[from + lane_id()] != 0;  // fewer than 16
#pragma unroll 4
  for (int64_t word = lane_id(); word < words; word += WARP) {
    const Vec16<uint32_t> marks = load16(reinterpret_cast<const uint32_t*>(mask + head) + word * 4);
#pragma unroll
    for (int i = 0; i < 4; i++) live += unsigned(__popc(marked_bytes(marks.at[i])));
  }
  const int64_t tail = head + words * 16 + lane_id();
  if (tail < to) live += mask[tail] != 0;
  return live;
}
