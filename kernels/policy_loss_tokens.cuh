// policy_loss_tokens.cuh: the gradient of a token and its share of the sums, and how a block's tokens are walked.
//
// A thread takes four neighbours at a time. What the tokens of a sequence share lies in shared memory, made by one thread for
// all (Part). An objective is a functor of objective.cuh; the plain clip has a loop of its own (PlainObjective).
#pragma once
#include "policy_loss_sums.cuh"

// The last sequence that begins at or before `token`, by a warp: each round leaves a 32nd. The first where none does.
__device__ __forceinline__ int64_t sequence_of(const int64_t* offsets, int64_t sequences, int64_t token) {
  int64_t low = 0, width = sequences;
  while (width > 1) {
    const int64_t step = (width + WARP - 1) / WARP, probe = lane_id() * step;
    const bool before = lane_id() == 0 || (probe < width && offsets[low + probe] <= token);
    const int64_t passed = (WARP - 1 - __clz(int(__ballot_sync(ALL_LANES, before)))) * step;
    low += passed;
    width = width - passed < step ? width - passed : step;
  }
  return low;
}

__device__ __forceinline__ float weighed(float by, float value) { return by == 0.0f ? 0.0f : by * value; }
__device__ __forceinline__ double weighed(double by, double value) { return by == 0.0 ? 0.0 : by * value; }

struct Coefficients {
  float of_loss, of_kl, of_entropy;
};

__device__ __forceinline__ Coefficients coefficients(const PolicyLossArgs& a, unsigned live_of_sequence) {
  const double live_sequences = double(a.counts[1]), all = double(a.sequences), live = double(live_of_sequence);
  const double tokens = a.total_tokens >= 0.0 ? a.total_tokens : double(a.counts[0]);
  const bool given = a.total_sequences >= 0.0;
  const auto of = [&](const AggregationRule& rule) {
    const double sequences = given ? a.total_sequences : rule.all_rows ? all : live_sequences;
    return coefficient(rule, tokens, sequences, live, a.scale);
  };
  return Coefficients{of(a.objective.of_loss), of(a.objective.of_kl), of(a.objective.of_entropy)};
}

__device__ __forceinline__ Loss surrogate(const ObjectiveRule& rule, const SequenceFactors& shared, const Token& token) {
  switch (rule.surrogate) {
    case SURROGATE_CISPO: return Cispo{rule.numbers}(token);
    case SURROGATE_GMPO: return Gmpo{rule.numbers}(token);
    case SURROGATE_SAPO: return Sapo{rule.numbers}(token);
    case SURROGATE_REINFORCE: return Reinforce{}(token);
    case SURROGATE_CPGD: return Cpgd{rule.numbers}(token);
    case SURROGATE_VESPO: return Vespo{shared}(token);
    case SURROGATE_VALUE: return Value{rule.numbers}(token);
    default: return Clip{rule}(token);
  }
}

__device__ __forceinline__ bool has_sequence_ratio(const ObjectiveRule& rule) {
  return rule.of_sequence || rule.surrogate == SURROGATE_GMPO;
}

// What the tokens of a sequence share within a block.
struct Part {
  int begin, end;  // counted from the block's first token; end 0 where the offsets do not place the sequence
  float advantage;
  Coefficients c;
  SequenceFactors shared;
};

// As many sequences of a block as it knows at once.
constexpr int PARTS = THREADS;
struct Parts {
  int64_t first, last;  // sequences that touch the block
  Part part[PARTS];
};

__device__ __forceinline__ int within_block(int64_t token) {
  return int(token < 0 ? 0 : token > POLICY_LOSS_BLOCK ? int64_t(POLICY_LOSS_BLOCK) : token);
}

__device__ __forceinline__ Part part_of(const PolicyLossArgs& a, int64_t sequence, int64_t first) {
  const int64_t from = a.offsets[sequence], to = a.offsets[sequence + 1];
  Part part;
  part.begin = within_block(from - first);
  part.end = from >= 0 && from <= to && to <= a.tokens ? within_block(to - first) : 0;
  part.advantage = a.advantage_per_token ? 0.0f : a.advantage[sequence];
  part.shared = a.factors[sequence];
  if (!has_sequence_ratio(a.objective)) part.shared.stopped = 0;
  part.c = coefficients(a, part.shared.live);
  return part;
}

// The last of the known parts from `place` on that begins at or before a token.
__device__ __forceinline__ int place_of(const Parts& known, int place, int count, int token) {
  int high = count - 1;
  while (place < high) {
    const int middle = (place + high + 1) / 2;
    const bool before = known.part[middle].begin <= token;
    place = before ? middle : place;
    high = before ? high : middle - 1;
  }
  return place;
}

// What is read of a live token by every objective.
struct Inputs {
  float logprob, old_logprob, advantage, reference, entropy;  // the last three 0 where the objective has none
};

// The same of four neighbours.
struct FourInputs {
  Vec16<float> logprob, old_logprob, advantage, reference, entropy;
};

__device__ __forceinline__ float pick(const Vec16<float>& of, int i) {
  return i == 0 ? of.at[0] : i == 1 ? of.at[1] : i == 2 ? of.at[2] : of.at[3];
}

__device__ __forceinline__ Inputs pick(const FourInputs& of, int i) {
  return Inputs{pick(of.logprob, i), pick(of.old_logprob, i), pick(of.advantage, i), pick(of.reference, i), pick(of.entropy, i)};
}

// Loads them with `load`, a function of an array.
template <class Load>
__device__ __forceinline__ FourInputs load_inputs(const PolicyLossArgs& a, Load load) {
  FourInputs in{};
  in.logprob = load(a.logprob);
  in.old_logprob = load(a.old_logprob);
  if (a.advantage_per_token) in.advantage = load(a.advantage);
  if (a.objective.kl != KL_NONE) in.reference = load(a.reference);
  if (a.entropy) in.entropy = load(a.entropy);
  return in;
}

// Everything that an objective may have, chosen token by token.
struct AnyObjective {
  static constexpr bool PLAIN = false;
  const ObjectiveRule& rule;
  const SequenceFactors& shared;
  __device__ __forceinline__ Loss operator()(const Token& token) const { return surrogate(rule, shared, token); }
};

// A clip of the ratio without weights, selections, replayed tokens, drift and thresholds.
struct PlainObjective {
  static constexpr bool PLAIN = true;
  const ObjectiveRule& rule;
  const SequenceFactors& shared;
  __device__ __forceinline__ Loss operator()(const Token& token) const { return PlainClip{rule.clip}(token); }
};

__device__ __forceinline__ bool is_plain(const PolicyLossArgs& a) {
  const ObjectiveRule& rule = a.objective;
  return rule.surrogate == SURROGATE_CLIP && rule.ratio_shape == RATIO_PLAIN && rule.weighting != WEIGHTING_GEOMETRIC &&
         !a.weight && !a.selected && !a.off_policy && !rule.has_drift && !rule.has_off_policy_threshold;
}

// The gradient of one live token; its share is added to `sums`.
template <class Objective>
__device__ __forceinline__ float live_token(const PolicyLossArgs& a, int64_t token, const Inputs& in, const Part& part,
                                            ThreadSums& sums, ThreadReplaySums& replay) {
  constexpr bool PLAIN = Objective::PLAIN;
  const ObjectiveRule& rule = a.objective;
  const SequenceFactors& shared = part.shared;
  const Coefficients& c = part.c;
  const float logprob = in.logprob, old_logprob = in.old_logprob, d = logprob - old_logprob;
  const float advantage = a.advantage_per_token ? in.advantage : part.advantage;
  const float limit = rule.of_sequence ? INFINITY_F : rule.log_ratio_limit, log_ratio = clamped_to(d, limit);
  const float own_ratio = expf(log_ratio);
  const bool own_stopped = log_ratio < d || log_ratio > d;
  const bool off = !PLAIN && a.off_policy && a.off_policy[token] != 0;
  float value, slope;
  if (off) {
    const Shaped term = replay_term(rule.replay, logprob, log_ratio, own_stopped);
    value = -advantage * term.value;
    slope = -advantage * term.slope;
    replay.tokens++;
    replay.clipped_high += term.clipped_high;
    replay.clipped_low += term.clipped_low;
    replay.shaped += term.value;
    replay.shaped_squared += term.value * term.value;
    replay.ratio_max = max_nan(replay.ratio_max, term.ratio);
    replay.probability += expf(logprob);
  } else {
    const float ratio = has_sequence_ratio(rule) ? shared.ratio : own_ratio;
    const Loss loss =
        Objective{rule, shared}(Token{logprob, old_logprob, advantage, log_ratio, ratio, own_stopped || shared.stopped});
    value = loss.value;
    slope = loss.slope;
    sums.ratio += loss.reported;
    sums.ratio_squared += loss.reported * loss.reported;
    sums.ratio_max = max_nan(sums.ratio_max, loss.reported);
    sums.clips += (loss.clipped ? 1u : 0u) + (loss.clipped_high ? 1u << 8 : 0u) + (loss.clipped_low ? 1u << 16 : 0u) +
                  (loss.clipped_dual ? 1u << 24 : 0u);
    if (!PLAIN && a.off_policy) replay.fresh_probability += expf(old_logprob);
  }
  float gradient;
  if constexpr (PLAIN) {
    gradient = c.of_loss * slope;
  } else {
    const bool picked = a.selected && a.selected[token] != 0;
    sums.chosen += picked ? 1u << 8 : 0u;
    if (rule.pick == PICK_PENALISE && picked && !off) {
      value += rule.pick_coefficient * fabsf(d);
      slope += rule.pick_coefficient * (d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d != d ? d : 0.0f);
    }
    const bool unpicked = a.selected && (rule.pick == PICK_DROP ? picked : rule.pick == PICK_KEEP && !picked);
    const bool masked_off = shared.drop_negative && advantage < 0.0f;
    if (unpicked || masked_off) {
      value = 0.0f;
      // Through a sequence's ratio the token has a gradient all the same.
      if (masked_off || rule.weighting != WEIGHTING_MEAN) slope = 0.0f;
      sums.chosen += unsigned(unpicked) + unsigned(masked_off);
    }
    const float weight = a.weight && rule.weighting <= WEIGHTING_MEAN ? a.weight[token] : 1.0f;
    const bool of_sequence_weight = rule.weighting == WEIGHTING_MEAN || rule.weighting == WEIGHTING_GEOMETRIC;
    value *= rule.weighting == WEIGHTING_GEOMETRIC ? shared.weight : weight;
    gradient = c.of_loss * slope * (of_sequence_weight ? shared.weight : weight);
    if (off) replay.surrogate += value;
    if (rule.has_drift && !off) {
      const float excess = own_ratio - 1.0f, drift = excess > rule.drift_cap ? rule.drift_cap : excess;
      gradient += c.of_loss * rule.drift_coefficient * drift;
      sums.drift_loss += weighed(c.of_loss, drift * logprob);
    }
  }
  sums.surrogate += value;
  sums.policy_loss += weighed(c.of_loss, value);
  if (rule.kl != KL_NONE) {
    const KlPenalty kl = kl_penalty(rule, logprob - in.reference, own_ratio, own_stopped);
    gradient += c.of_kl * rule.kl_coefficient * kl.slope;
    sums.kl_loss += weighed(c.of_kl, kl.value);
    sums.kl += kl.value;
  }
  sums.entropy_loss += weighed(c.of_entropy, in.entropy);
  sums.entropy += in.entropy;
  sums.log_ratio += log_ratio;
  sums.absolute_log_ratio += fabsf(log_ratio);
  return gradient;
}

// Tokens of a block, counted from its first.
struct Range {
  int from, to;
};

// Whether four tokens can be loaded and stored at once.
__device__ __forceinline__ bool in_fours(const PolicyLossArgs& a) {
  const void* const arrays[] = {a.logprob, a.old_logprob, a.reference, a.entropy, a.dlogprob, a.dentropy,
                                a.advantage_per_token ? a.advantage : nullptr};
  unsigned long long addresses = 0;
#pragma unroll
  for (const void* array : arrays) addresses |= reinterpret_cast<unsigned long long>(array);
  return addresses % 16 == 0 && reinterpret_cast<unsigned long long>(a.mask) % 4 == 0;
}

// The thread's tokens in `of`, which lie in `count` known parts or nowhere. `marks`: its masks, four tokens a word.
template <class Objective>
__device__ __forceinline__ void tokens_of_parts(const PolicyLossArgs& a, int64_t first, const Range& of, const Parts& known,
                                                int count, const uint32_t (&marks)[GROUPS], ThreadSums& sums,
                                                ThreadReplaySums& replay) {
  [[maybe_unused]] constexpr int UNROLLED = Objective::PLAIN ? 4 : 1;
  const bool fours = in_fours(a);
  Part part{};
  int place = 0;
#pragma unroll 1
  for (int group = 0; group < GROUPS; group++) {
    const int at = (group * THREADS + int(threadIdx.x)) * 4;
    const int64_t token = first + at;
    const bool whole = fours && at >= of.from && at + 4 <= of.to;
    uint32_t live = group == 0 ? marks[0] : marks[1];
    if (!whole) {
#pragma unroll
      for (int i = 0; i < 4; i++) live &= at + i >= of.from && at + i < of.to ? 0xffffffffu : ~(0x80u << 8 * i);
    }
    FourInputs in{};
    if (live != 0 && whole) {  // all under way before the first is used; what is masked is loaded beside the others
      in = load_inputs(a, [&](const float* array) { return load16(array + token); });
    } else if (live != 0) {
      in = load_inputs(a, [&](const float* array) {
        Vec16<float> four;
#pragma unroll
        for (int i = 0; i < 4; i++) four.at[i] = is_marked(live, i) ? array[token + i] : 0.0f;
        return four;
      });
    }
    Vec16<float> dlogprob{}, dentropy{};
#pragma unroll UNROLLED
    for (int i = 0; i < 4; i++) {
      if (!is_marked(live, i)) continue;
      if (at + i >= part.end) {
        place = place_of(known, place, count, at + i);
        part = known.part[place];
      }
      if (at + i < part.begin || at + i >= part.end) continue;
      const float gradient = live_token<Objective>(a, token + i, pick(in, i), part, sums, replay);
      const float of_entropy = -(part.c.of_entropy * a.objective.entropy_coefficient) + 0.0f;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        dlogprob.at[k] = k == i ? gradient : dlogprob.at[k];
        dentropy.at[k] = k == i ? of_entropy : dentropy.at[k];
      }
    }
    if (whole) {
      store16(a.dlogprob + token, dlogprob);
      if (a.dentropy) store16(a.dentropy + token, dentropy);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (at + i < of.from || at + i >= of.to) continue;
        a.dlogprob[token + i] = dlogprob.at[i];
        if (a.dentropy) a.dentropy[token + i] = dentropy.at[i];
      }
    }
  }
}
