// policy_loss.cu: the loss of a policy objective over packed sequences, its exact gradient and its metrics.
//
// Contract   args/policy_loss.h, objective.cuh. Of a masked token only the mask is read; its gradients are 0. No live
//            token: loss 0. NaN in a live token reaches the loss and the gradients it is in. A token's gradient depends on
//            its sequence and on the counts of the batch alone.
// Floor      17 bytes read and 4 written a token without a reference and entropies, 29 with all: 6 us for 1 M tokens at
//            4.8 TB/s. Objectives of whole sequences read 8 more, and their weights.
// Algorithm  policy_loss_sequences: a warp a sequence counts its live tokens and, where the objective needs it, sums their
//            log ratios, weights and distances from the sampler, in f64, lane l those of l, l + 32, ..., then a tree. The
//            counts of the batch are integers, whose atomics have no order. policy_loss_tokens: 2048 tokens a block,
//            neighbouring threads on neighbouring tokens; the sequence of a token is found in the few that touch the
//            block; its coefficients follow from counts that are on the device, so no scalar goes to the host. A thread
//            sums its eight tokens in f32, a block in f64 by a fixed tree, one record. policy_loss_metrics: one block
//            adds the records, thread t those of t, t + 256, ..., then a tree.
// Hazards    A sequence without weight adds nothing, whatever its tokens hold: 0 times NaN is NaN. Empty sequences share
//            an offset with their neighbour: the search takes the last one that begins at or before a token.
// Measured   not yet run on a GPU.
#include "objective.cuh"

constexpr int THREADS = 256;
constexpr int TOKENS = POLICY_LOSS_BLOCK / THREADS;  // of a thread

// ---- the sequence pass ----

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

KERNEL(policy_loss_sequences, PolicyLossArgs, THREADS) {
  const int64_t warps = threads_in_grid() / WARP;
  const ObjectiveRule& rule = a.objective;
  const bool of_sequences = rule.of_sequence || rule.surrogate == SURROGATE_GMPO || rule.surrogate == SURROGATE_VESPO ||
                            rule.has_off_policy_threshold;
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const int64_t from = a.offsets[sequence], to = a.offsets[sequence + 1];
    const bool placed = from >= 0 && from <= to && to <= a.tokens;
    unsigned live = 0;
    SequenceSums sums{0.0, 0.0, 0.0};
    for (int64_t token = from + lane_id(); placed && token < to; token += WARP) {
      if (a.mask[token] == 0) continue;
      live++;
      if (of_sequences) add_to_sequence(a, sequence, token, sums);
    }
    live = __reduce_add_sync(ALL_LANES, live);
    if (of_sequences) sums = warp_reduce(sums, AddSequenceSums());
    if (lane_id() != 0) continue;
    a.factors[sequence] = factors_of(rule, sums, live);
    if (!placed) raise_status(a.status, STATUS_BAD_GROUP);
    if (live > 0) {
      unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
      atomicAdd(counts, (unsigned long long)(live));
      atomicAdd(counts + 1, 1ull);
    }
  }
}

// ---- sums ----

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
  unsigned clipped, clipped_high, clipped_low, clipped_dual, dropped, selected;

  __device__ __forceinline__ PolicyLossSums widened() const {
    return PolicyLossSums{policy_loss, kl_loss, entropy_loss, drift_loss,    log_ratio, absolute_log_ratio,
                          kl,          entropy, surrogate,    ratio,         ratio_squared, ratio_max,
                          clipped,     clipped_high, clipped_low, clipped_dual, dropped, selected};
  }
};

struct ThreadReplaySums {
  float surrogate, shaped, shaped_squared, ratio_max, probability, fresh_probability;
  unsigned tokens, clipped_high, clipped_low;

  __device__ __forceinline__ ReplaySums widened() const {
    return ReplaySums{surrogate, shaped, shaped_squared, ratio_max, probability, fresh_probability, tokens, clipped_high, clipped_low, 0u};
  }
};

// ---- the token pass ----

// The last sequence of [low, high] that begins at or before `token`; `low` where none does.
__device__ __forceinline__ int64_t sequence_of(const int64_t* offsets, int64_t low, int64_t high, int64_t token) {
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (offsets[middle] <= token) {
      low = middle;
    } else {
      high = middle - 1;
    }
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

// The gradients of one live token; its share is added to `sums`.
__device__ __forceinline__ void live_token(const PolicyLossArgs& a, int64_t token, int64_t sequence, const SequenceFactors& shared,
                                           const Coefficients& c, ThreadSums& sums, ThreadReplaySums& replay) {
  const ObjectiveRule& rule = a.objective;
  const float logprob = a.logprob[token], old_logprob = a.old_logprob[token], d = logprob - old_logprob;
  const float advantage = a.advantage[a.advantage_per_token ? token : sequence];
  const float limit = rule.of_sequence ? INFINITY_F : rule.log_ratio_limit, log_ratio = clamped_to(d, limit);
  const float own_ratio = expf(log_ratio);
  const bool own_stopped = log_ratio < d || log_ratio > d;
  const bool off = a.off_policy && a.off_policy[token] != 0;
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
    const bool of_sequence = rule.of_sequence || rule.surrogate == SURROGATE_GMPO;
    const Loss loss = surrogate(rule, shared,
                                Token{logprob, old_logprob, advantage, log_ratio, of_sequence ? shared.ratio : own_ratio,
                                      own_stopped || (of_sequence && shared.stopped)});
    value = loss.value;
    slope = loss.slope;
    sums.ratio += loss.reported;
    sums.ratio_squared += loss.reported * loss.reported;
    sums.ratio_max = max_nan(sums.ratio_max, loss.reported);
    sums.clipped += loss.clipped;
    sums.clipped_high += loss.clipped_high;
    sums.clipped_low += loss.clipped_low;
    sums.clipped_dual += loss.clipped_dual;
    if (a.off_policy) replay.fresh_probability += expf(old_logprob);
  }
  const bool picked = a.selected && a.selected[token] != 0;
  sums.selected += picked;
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
    sums.dropped += unsigned(unpicked) + unsigned(masked_off);
  }
  const float weight = a.weight && rule.weighting <= WEIGHTING_MEAN ? a.weight[token] : 1.0f;
  const bool of_sequence_weight = rule.weighting == WEIGHTING_MEAN || rule.weighting == WEIGHTING_GEOMETRIC;
  value *= rule.weighting == WEIGHTING_GEOMETRIC ? shared.weight : weight;
  float gradient = c.of_loss * slope * (of_sequence_weight ? shared.weight : weight);
  sums.surrogate += value;
  if (off) replay.surrogate += value;
  sums.policy_loss += weighed(c.of_loss, value);
  if (rule.has_drift && !off) {
    const float excess = own_ratio - 1.0f, drift = excess > rule.drift_cap ? rule.drift_cap : excess;
    gradient += c.of_loss * rule.drift_coefficient * drift;
    sums.drift_loss += weighed(c.of_loss, drift * logprob);
  }
  if (rule.kl != KL_NONE) {
    const KlPenalty kl = kl_penalty(rule, logprob - a.reference[token], own_ratio, own_stopped);
    gradient += c.of_kl * rule.kl_coefficient * kl.slope;
    sums.kl_loss += weighed(c.of_kl, kl.value);
    sums.kl += kl.value;
  }
  if (a.entropy) {
    const float entropy = a.entropy[token];
    sums.entropy_loss += weighed(c.of_entropy, entropy);
    sums.entropy += entropy;
  }
  sums.log_ratio += log_ratio;
  sums.absolute_log_ratio += fabsf(log_ratio);
  a.dlogprob[token] = gradient;
  if (a.dentropy) a.dentropy[token] = -(c.of_entropy * rule.entropy_coefficient) + 0.0f;
}

KERNEL(policy_loss_tokens, PolicyLossArgs, THREADS) {
  const int64_t blocks = (a.tokens + POLICY_LOSS_BLOCK - 1) / POLICY_LOSS_BLOCK;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t first = block * POLICY_LOSS_BLOCK, last_of_block = first + POLICY_LOSS_BLOCK - 1;
    const int64_t last = last_of_block < a.tokens ? last_of_block : a.tokens - 1;
    const int64_t low = sequence_of(a.offsets, 0, a.sequences - 1, first);
    const int64_t high = sequence_of(a.offsets, low, a.sequences - 1, last);
    ThreadSums sums{};
    ThreadReplaySums replay{};
    int64_t known = -1;  // the sequence whose coefficients and factors these are
    Coefficients c{0.0f, 0.0f, 0.0f};
    SequenceFactors shared{};
    unsigned masks = 0;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {  // all at once: what is read next waits for them
      const int64_t token = first + int64_t(i) * THREADS + threadIdx.x;
      if (token <= last && a.mask[token] != 0) masks |= 1u << i;
    }
    for (int i = 0; i < TOKENS; i++) {
      const int64_t token = first + int64_t(i) * THREADS + threadIdx.x;
      if (token > last) break;
      const int64_t sequence = masks & (1u << i) ? sequence_of(a.offsets, low, high, token) : -1;
      const bool live = sequence >= 0 && a.offsets[sequence] >= 0 && a.offsets[sequence] <= token &&
                        token < a.offsets[sequence + 1] && a.offsets[sequence + 1] <= a.tokens;
      if (live) {
        if (sequence != known) {
          shared = a.factors[sequence];
          c = coefficients(a, shared.live);
        }
        known = sequence;
        live_token(a, token, sequence, shared, c, sums, replay);
      } else {
        a.dlogprob[token] = 0.0f;
        if (a.dentropy) a.dentropy[token] = 0.0f;
      }
    }
    const PolicyLossSums of_block = block_reduce<THREADS>(sums.widened(), AddSums());
    if (threadIdx.x == 0) a.sums[block] = of_block;
    if (a.replay_sums) {
      const ReplaySums of_replay = block_reduce<THREADS>(replay.widened(), AddReplaySums());
      if (threadIdx.x == 0) a.replay_sums[block] = of_replay;
    }
  }
}

// ---- metrics ----

struct Mean {
  double count;
  __device__ __forceinline__ double operator()(double sum) const { return count > 0.0 ? sum / count : 0.0; }
  // The unbiased variance.
  __device__ __forceinline__ double operator()(double sum, double squares) const {
    if (count < 2.0) return 0.0;
    const double spread = squares - sum * sum / count;
    return spread < 0.0 ? 0.0 : spread / (count - 1.0);
  }
};

// Counts of a block fit 32 bits; those of a batch are added as doubles.
struct Counts {
  double clipped, high, low, dual, dropped, selected, replayed, replay_high, replay_low;
};

struct AddCounts {
  __device__ __forceinline__ Counts operator()(const Counts& a, const Counts& b) const {
    return Counts{a.clipped + b.clipped,   a.high + b.high,         a.low + b.low,
                  a.dual + b.dual,         a.dropped + b.dropped,   a.selected + b.selected,
                  a.replayed + b.replayed, a.replay_high + b.replay_high, a.replay_low + b.replay_low};
  }
};

KERNEL(policy_loss_metrics, PolicyLossArgs, THREADS) {
  const int64_t blocks = (a.tokens + POLICY_LOSS_BLOCK - 1) / POLICY_LOSS_BLOCK;
  PolicyLossSums sums{};
  ReplaySums replay{};
  Counts counts{};
  for (int64_t block = threadIdx.x; block < blocks; block += THREADS) {
    const PolicyLossSums& of = a.sums[block];
    sums = AddSums()(sums, of);
    counts = AddCounts()(counts, Counts{double(of.clipped), double(of.clipped_high), double(of.clipped_low),
                                        double(of.clipped_dual), double(of.dropped), double(of.selected), 0.0, 0.0, 0.0});
    if (a.replay_sums) {
      const ReplaySums& term = a.replay_sums[block];
      replay = AddReplaySums()(replay, term);
      counts = AddCounts()(counts, Counts{0.0, 0.0, 0.0, 0.0, 0.0, 0.0, double(term.tokens), double(term.clipped_high),
                                          double(term.clipped_low)});
    }
  }
  sums = block_reduce<THREADS>(sums, AddSums());
  counts = block_reduce<THREADS>(counts, AddCounts());
  if (a.replay_sums) replay = block_reduce<THREADS>(replay, AddReplaySums());
  if (threadIdx.x != 0) return;
  const ObjectiveRule& rule = a.objective;
  const double live = double(a.counts[0]);
  const Mean mean{live}, of_fresh{live - counts.replayed}, of_replayed{counts.replayed};
  PolicyLossMetrics m;
  m.policy_loss = sums.policy_loss;
  m.kl_loss = sums.kl_loss;
  m.entropy_loss = sums.entropy_loss;
  m.drift_loss = sums.drift_loss;
  m.loss = sums.policy_loss + weighed(double(rule.drift_coefficient), sums.drift_loss) +
           weighed(double(rule.kl_coefficient), sums.kl_loss) - weighed(double(rule.entropy_coefficient), sums.entropy_loss);
  m.clip_fraction = mean(counts.clipped);
  m.clip_fraction_high = mean(counts.high);
  m.clip_fraction_low = mean(counts.low);
  m.dual_clip_fraction = mean(counts.dual);
  m.dropped_fraction = mean(counts.dropped);
  m.selected_fraction = mean(counts.selected);
  m.approx_kl = mean(-sums.log_ratio) + 0.0;
  m.absolute_log_ratio = mean(sums.absolute_log_ratio);
  m.kl = mean(sums.kl);
  m.ratio_mean = of_fresh(sums.ratio);
  m.ratio_variance = of_fresh(sums.ratio, sums.ratio_squared);
  m.ratio_max = sums.ratio_max;
  m.entropy = mean(sums.entropy);
  m.fresh_loss = of_fresh(sums.surrogate - replay.surrogate);
  m.replay_loss = of_replayed(replay.surrogate);
  m.shaped_mean = of_replayed(replay.shaped);
  m.shaped_variance = of_replayed(replay.shaped, replay.shaped_squared);
  m.replay_clip_high = of_replayed(counts.replay_high);
  m.replay_clip_low = of_replayed(counts.replay_low);
  m.replay_ratio_max = replay.ratio_max;
  m.replay_probability = of_replayed(replay.probability);
  m.fresh_probability = of_fresh(replay.fresh_probability);
  m.replay_tokens = uint64_t(counts.replayed);
  m.live_tokens = a.counts[0];
  m.live_sequences = a.counts[1];
  *a.metrics = m;
}
