// objective.cuh: every policy objective as a functor of one token: its value and its derivative by the log-prob.
//
// A surrogate is a struct with `Loss operator()(const Token&) const`, the twin of a Formula in
// src/kernels/policy_loss/formula.rs; policy_loss.cu picks one by number and knows nothing else about it. What a sequence's
// ratio or a batch's count adds goes into Token and not into a functor.
#pragma once
#include "prim.cuh"
#include "args/policy_loss.h"

// A live token as a surrogate sees it.
struct Token {
  float logprob, old_logprob, advantage;
  float log_ratio;  // clamped
  float ratio;      // the token's, or its sequence's
  bool stopped;     // a clamp of the log ratio acts: no gradient passes through the ratio
};

struct Loss {
  float value;
  float slope;     // d value / d logprob
  float reported;  // what the metrics of ratios count
  bool clipped, clipped_high, clipped_low, clipped_dual;
};

__device__ __forceinline__ Loss free_of_clips(float value, float slope, float reported) {
  return Loss{value, slope, reported, false, false, false, false};
}

// Within +-limit; NaN passes.
__device__ __forceinline__ float clamped_to(float d, float limit) {
  const float clamped = d > limit ? limit : d;
  return clamped < -limit ? -limit : clamped;
}

// sigmoid(x) and its derivative, from e^-|x|, which does not overflow.
struct Sigmoid {
  float value, slope;
};

__device__ __forceinline__ Sigmoid sigmoid(float x) {
  const float e = expf(-fabsf(x)), whole = 1.0f + e;
  return Sigmoid{x < 0.0f ? e / whole : 1.0f / whole, e / (whole * whole)};
}

// -A clamp(r, low, high), bounds by the sign of A: PPO with every variant of its clip, and -A r with infinite ones.
struct PlainClip {
  const ClipBounds& bounds;
  __device__ __forceinline__ Loss operator()(const Token& t) const { return of(t.advantage, t.ratio, t.ratio, t.stopped); }
  // The same of what stands for the ratio, r, and of its derivative by the log-prob.
  __device__ __forceinline__ Loss of(float advantage, float r, float derivative, bool stopped) const {
    const bool negative = advantage < 0.0f;
    const float low = negative ? bounds.low_negative : -INFINITY_F;
    const float high = negative ? bounds.high_negative : bounds.high_positive;
    float s = r < low ? low : r;
    s = s > high ? high : s;
    // What the clamp left alone passes, bounds included; so does NaN, to be seen in the gradient.
    stopped = stopped || s < r || s > r;
    const bool above = advantage > 0.0f && r > bounds.report_high, below = negative && r < bounds.report_low;
    return Loss{-advantage * s, stopped ? 0.0f : -advantage * derivative, r, above || below, above, below,
                negative && r > bounds.high_negative};
  }
};

// The same with any shape of the ratio.
struct Clip {
  const ObjectiveRule& rule;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    float r = t.ratio, derivative = t.ratio;
    bool stopped = t.stopped;
    switch (rule.ratio_shape) {
      case RATIO_LOGARITHM:
        r = t.log_ratio;
        derivative = 1.0f;
        break;
      case RATIO_PLUS_LOGARITHM:
        r = t.ratio + rule.ratio_number * t.log_ratio;
        derivative = t.ratio + rule.ratio_number;
        break;
      case RATIO_POWER:
        r = expf(rule.ratio_number * t.log_ratio);
        derivative = rule.ratio_number * r;
        break;
      case RATIO_PROBABILITY: {
        const float now = sigmoid(t.logprob - rule.ratio_number).value;
        r = now / sigmoid(t.old_logprob - rule.ratio_number).value;
        derivative = r * (1.0f - now);
        stopped = false;
        break;
      }
      default: break;
    }
    return PlainClip{rule.clip}.of(t.advantage, r, derivative, stopped);
  }
};

// -sg(clamp(w, low, high)) A logprob.
struct Cispo {
  const SurrogateNumbers& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const bool above = t.ratio > of.high, below = t.ratio < of.low;
    const float slope = -(below ? of.low : above ? of.high : t.ratio) * t.advantage;
    return Loss{slope * t.logprob, slope, t.ratio, above || below, above && t.advantage > 0.0f, below && t.advantage < 0.0f, false};
  }
};

// -A times the geometric mean of ratios whose logarithms are clipped by the sign of A.
struct Gmpo {
  const SurrogateNumbers& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const bool positive = t.advantage > 0.0f, negative = t.advantage < 0.0f;
    const bool above = t.log_ratio > of.high, below = t.log_ratio < of.low, outside = above || below;
    const bool stopped = (positive && above) || (negative && below) || t.stopped;
    const float value = -t.advantage * t.ratio;
    return Loss{value, stopped ? 0.0f : value, t.ratio, (positive || negative) && outside, positive && outside, negative && outside, false};
  }
};

// -A (4 / tau) sigmoid(tau (w - 1)).
struct Sapo {
  const SurrogateNumbers& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const float temperature = t.advantage > 0.0f ? of.positive : of.negative;
    const Sigmoid gate = sigmoid(temperature * (t.ratio - 1.0f));
    const bool stopped = t.stopped || gate.slope == 0.0f;  // a gate that is shut is so for an infinite ratio too
    const float passed = 4.0f * gate.slope * t.ratio;
    return free_of_clips(-t.advantage * (gate.value * (4.0f / temperature)), stopped ? 0.0f : -t.advantage * passed, t.ratio);
  }
};

// -A logprob.
struct Reinforce {
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    return free_of_clips(-t.advantage * t.logprob, -t.advantage, t.ratio);
  }
};

// -A logprob, the log-prob kept on the near side of a bound around the old one.
struct Cpgd {
  const SurrogateNumbers& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const float d = t.logprob - t.old_logprob;
    const bool positive = t.advantage > 0.0f, above = positive && d > of.high, below = !positive && d < of.low;
    const bool stopped = above || below, low = below && t.advantage < 0.0f;
    const float kept = stopped ? t.old_logprob + (positive ? of.high : of.low) : t.logprob;
    return Loss{-t.advantage * kept, stopped ? 0.0f : -t.advantage, t.ratio, above || low, above, low, false};
  }
};

// -sg(phi) A logprob, phi of the sequence.
struct Vespo {
  const SequenceFactors& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const float phi = t.advantage < 0.0f ? of.phi_negative : of.phi_positive;
    const float slope = -phi * t.advantage;
    return free_of_clips(slope * t.logprob, slope, phi);
  }
};

// max((v - target)^2, (clip(v, old - c, old + c) - target)^2) / 2 of a value function: `logprob` is v, `old_logprob` the value
// when it was sampled, `advantage` the target.
struct Value {
  const SurrogateNumbers& of;
  __device__ __forceinline__ Loss operator()(const Token& t) const {
    const float least = t.old_logprob - of.high, most = t.old_logprob + of.high;
    float kept = t.logprob > most ? most : t.logprob;
    kept = kept < least ? least : kept;
    const float error = t.logprob - t.advantage, of_kept = kept - t.advantage;
    const float plain = error * error, clipped = of_kept * of_kept;
    const bool acts = clipped > plain;
    return Loss{0.5f * (acts ? clipped : plain), acts ? 0.0f : error, t.logprob, acts, acts && kept == most, acts && kept == least, false};
  }
};

// ---- replayed tokens: -A clamp(f(w), least, most) ----

struct Shaped {
  float value, slope;
  float ratio;  // w
  bool clipped_high, clipped_low;
};

__device__ __forceinline__ Shaped replay_term(const ReplayRule& rule, float logprob, float log_ratio, bool stopped) {
  const float x = rule.probability ? logprob : log_ratio, ratio = expf(x);
  const float pass = stopped && !rule.probability ? 0.0f : 1.0f;
  float value = ratio, slope = ratio;
  switch (rule.shape) {
    case REPLAY_LOGPROB:
      value = rule.number * logprob;
      slope = rule.number;
      break;
    case REPLAY_RATIO_PLUS_LOGPROB:
      value = ratio + rule.number * logprob;
      slope = (pass == 0.0f ? 0.0f : ratio) + rule.number;
      break;
    case REPLAY_POWER:
      value = expf(rule.number * x);
      slope = pass == 0.0f ? 0.0f : rule.number * value;
      break;
    case REPLAY_SIGMOID: {
      const Sigmoid share = sigmoid(x - rule.number);
      value = rule.gain * share.value;
      slope = pass == 0.0f ? 0.0f : rule.gain * share.slope;
      break;
    }
    default: slope = pass == 0.0f ? 0.0f : slope; break;
  }
  const bool low = value < rule.least, high = value > rule.most;
  const float kept = low ? rule.least : high ? rule.most : value;
  return Shaped{kept, low || high ? 0.0f : slope, ratio, high, low};
}

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
      const float x = clamped_to(-d, rule.kl_argument_limit);
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

// The estimate of one token and its slope: times the ratio, with its gradient then, or with the slope of k2.
struct KlPenalty {
  float value, slope;
};

__device__ __forceinline__ KlPenalty kl_penalty(const ObjectiveRule& rule, float d, float ratio, bool stopped) {
  const KlEstimate of = kl_estimate(rule, d);
  if (rule.kl_straight_through) return KlPenalty{of.value, d};
  if (!rule.kl_bias_correction) return KlPenalty{of.value, of.slope};
  return KlPenalty{of.value * ratio, (stopped ? of.slope : of.value_and_slope) * ratio};
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
