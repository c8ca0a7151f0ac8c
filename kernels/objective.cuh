// objective.cuh: every policy objective as a functor of one token: its value and its derivative by the log-prob.
//
// An objective is a struct with `Loss operator()(const Ratio&, float advantage) const`; policy_loss.cu picks one by number
// and knows nothing else about it. What a sequence's ratio or a batch's count adds goes into Ratio and not into a functor.
#pragma once
#include "prim.cuh"
#include "args/policy_loss.h"

// A token's ratio to the policy that it was sampled by.
struct Ratio {
  float w;          // exp(log_ratio)
  float log_ratio;  // clamped
  bool stopped;     // the clamp acted: no gradient passes
};

__device__ __forceinline__ Ratio ratio_of(float logprob, float old_logprob, float limit) {
  const float d = logprob - old_logprob;
  float clamped = d > limit ? limit : d;  // NaN passes
  clamped = clamped < -limit ? -limit : clamped;
  return Ratio{expf(clamped), clamped, clamped < d || clamped > d};
}

struct Loss {
  float value;
  float slope;  // d value / d logprob
  bool clipped_high, clipped_low, clipped_dual;
};

// max(-A min(w, delta), -A clip(w, 1 - low, 1 + high)), at most -A dual_clip for A < 0: as -A clamp(w, low, high).
struct PpoClip {
  const ClipBounds& bounds;
  __device__ __forceinline__ Loss operator()(const Ratio& ratio, float advantage) const {
    const bool negative = advantage < 0.0f;
    const float w = ratio.w, low = negative ? bounds.low_negative : -INFINITY_F;
    const float high = negative ? bounds.high_negative : bounds.high_positive;
    float s = w < low ? low : w;
    s = s > high ? high : s;
    // What the clamp left alone passes, bounds included; so does NaN, to be seen in the gradient.
    const bool stopped = ratio.stopped || s < w || s > w;
    return Loss{-advantage * s,
                stopped ? 0.0f : -advantage * w,
                advantage > 0.0f && w > bounds.report_high,
                negative && w < bounds.report_low,
                negative && w > bounds.high_negative};
  }
};

// ---- divergence from a reference policy, d = logprob - reference ----

struct KlEstimate {
  float value, slope;
  float value_and_slope;  // their sum, for k3 without its cancellation: what (w value)' / w is
};

// e^x - 1 - x, without the cancellation near 0 where two policies that nearly agree are.
__device__ __forceinline__ float exp_minus_1_minus_x(float x) {
  float p = fmaf(x, 1.0f / 362880.0f, 1.0f / 40320.0f);
  p = fmaf(p, x, 1.0f / 5040.0f);
  p = fmaf(p, x, 1.0f / 720.0f);
  p = fmaf(p, x, 1.0f / 120.0f);
  p = fmaf(p, x, 1.0f / 24.0f);
  p = fmaf(p, x, 1.0f / 6.0f);
  p = fmaf(p, x, 0.5f);
  return fabsf(x) < 0.75f ? p * x * x : expf(x) - 1.0f - x;
}

__device__ __forceinline__ KlEstimate kl_estimate(const ObjectiveRule& rule, float d) {
  switch (rule.kl) {
    case KL_K1: return KlEstimate{d, 1.0f, d + 1.0f};
    case KL_K2: return KlEstimate{0.5f * d * d, d, 0.5f * d * d + d};
    case KL_K3: {
      const float limit = rule.kl_argument_limit;
      float x = -d > limit ? limit : -d;
      x = x < -limit ? -limit : x;
      const float estimate = exp_minus_1_minus_x(x);
      // NaN is not clamped, so that it reaches the gradient.
      const bool clamped = x < -d || x > -d || estimate > rule.kl_value_limit;
      const float value = estimate > rule.kl_value_limit ? rule.kl_value_limit : estimate;
      return KlEstimate{value, clamped ? 0.0f : -(x + value), clamped ? value : d};
    }
    default: {
      const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : 0.0f;
      return KlEstimate{fabsf(d), sign, fabsf(d) + sign};
    }
  }
}

// The estimate of one token, times the ratio where that is asked for, with its gradient then.
__device__ __forceinline__ Loss kl_penalty(const ObjectiveRule& rule, float d, const Ratio& ratio) {
  const KlEstimate of = kl_estimate(rule, d);
  if (!rule.kl_bias_correction) return Loss{of.value, of.slope, false, false, false};
  return Loss{of.value * ratio.w, (ratio.stopped ? of.slope : of.value_and_slope) * ratio.w, false, false, false};
}

// ---- aggregation: c of a sequence ----

__device__ __forceinline__ float coefficient(const AggregationRule& rule, double tokens, double sequences, double live, double scale) {
  double divisor = rule.length;
  switch (rule.mode) {
    case AGGREGATION_TOKEN_MEAN: divisor = tokens; break;
    case AGGREGATION_SEQUENCE_MEAN_TOKEN_MEAN: divisor = sequences * live; break;
    case AGGREGATION_SEQUENCE_MEAN_TOKEN_SUM: divisor = sequences * rule.length; break;
    default: break;
  }
  return divisor > 0.0 ? float(scale / divisor) : 0.0f;
}
