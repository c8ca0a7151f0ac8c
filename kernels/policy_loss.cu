// policy_loss.cu: the loss of a policy objective over packed sequences, its exact gradient and its metrics.
//
// Contract   args/policy_loss.h, objective.cuh. Of a masked token only the mask is used; its gradients are 0. No live
//            token: loss 0. NaN in a live token reaches the loss and the gradients it is in. A token's gradient depends on
//            its sequence and on the counts of the batch alone.
// Floor      13 bytes read and 4 written a token with an advantage each and neither reference nor entropy, 25 and 8 with
//            all: 4 us or 7 us for 1 M tokens at 4.8 TB/s, and a byte read before, to count.
// Algorithm  policy_loss_sequences: a warp a sequence counts its live tokens, 512 masks at a time; where the objective needs
//            it, it sums their log ratios, weights and distances from the sampler, in f64, lane l those of l, l + 32, ...,
//            then a tree. The counts of the batch are integers, whose atomics have no order. policy_loss_tokens: 2048
//            tokens a block, a thread two groups of four neighbours, each loaded at once where the arrays are aligned. Two
//            warps look for the block's first and last sequence; what the tokens of a sequence share, its coefficients
//            (from counts that are on the device, so no scalar goes to the host), factors and bounds, one thread makes for
//            all, up to 256 sequences at a time. A clip of the plain ratio without weights, selections, replay, drift and
//            thresholds has a loop of its own (PlainObjective), with GSPO's and with any KL; the others choose a token.
//            A thread sums its tokens 4 t .. 4 t + 3 and 1024 + 4 t .. in f32, in this order, a block in f64 by a fixed
//            tree, one record. policy_loss_metrics: one block adds the records, thread t those of t, t + 256, ..., then a
//            tree.
// Hazards    A sequence without weight adds nothing, whatever its tokens hold: 0 times NaN is NaN. Empty sequences share
//            an offset with their neighbour: the search takes the last one that begins at or before a token. Four tokens
//            are four copies of the same code: their gradients would differ if the compiler fused different products into
//            sums there. It does not (the counts of FADD, FMUL and FFMA are the same), but a rewrite has to look again.
// Measured   not yet run on a GPU.
#include "objective.cuh"

constexpr int THREADS = 256;
constexpr int GROUPS = POLICY_LOSS_BLOCK / THREADS / 4;  // of four tokens, of a thread
static_assert(GROUPS == 2, "two words of masks");

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

KERNEL_RESIDENT(policy_loss_sequences, PolicyLossArgs, THREADS, 1) {
  const int64_t warps = threads_in_grid() / WARP;
  const ObjectiveRule& rule = a.objective;
  const bool of_sequences = rule.of_sequence || rule.surrogate == SURROGATE_GMPO || rule.surrogate == SURROGATE_VESPO ||
                            rule.has_off_policy_threshold;
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const int64_t from = a.offsets[sequence], to = a.offsets[sequence + 1];
    const bool placed = from >= 0 && from <= to && to <= a.tokens;
    unsigned live = 0;
    SequenceSums sums{0.0, 0.0, 0.0};
    if (placed && !of_sequences) live = count_live(a.mask, from, to);
    for (int64_t token = from + lane_id(); placed && of_sequences && token < to; token += WARP) {
      if (a.mask[token] == 0) continue;
      live++;
      add_to_sequence(a, sequence, token, sums);
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

// ---- the token pass ----

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

KERNEL_RESIDENT(policy_loss_tokens, PolicyLossArgs, THREADS, 2) {
  const int64_t blocks = (a.tokens + POLICY_LOSS_BLOCK - 1) / POLICY_LOSS_BLOCK;
  const bool plain = is_plain(a), fours = in_fours(a);
  const ObjectiveRule& rule = a.objective;
  const Extras has{rule.kl != KL_NONE || rule.has_drift, a.selected || rule.has_off_policy_threshold};
  Parts& known = block_shared<Parts>();
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t first = block * POLICY_LOSS_BLOCK;
    const int tokens = within_block(a.tokens - first);
    uint32_t marks[GROUPS];
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
      const int at = (group * THREADS + int(threadIdx.x)) * 4;
      marks[group] = 0;
      if (fours && at + 4 <= tokens) {
        marks[group] = marked_bytes(*reinterpret_cast<const uint32_t*>(a.mask + first + at));
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          if (at + i < tokens && a.mask[first + at + i] != 0) marks[group] |= 0x80u << 8 * i;
        }
      }
    }
    if (warp_id() < 2) {
      const int64_t sequence = sequence_of(a.offsets, a.sequences, warp_id() == 0 ? first : first + tokens - 1);
      if (lane_id() == 0) (warp_id() == 0 ? known.first : known.last) = sequence;
    }
    __syncthreads();
    const int64_t begin = known.first, end = (known.last < begin ? begin : known.last) + 1;
    ThreadSums sums{};
    ThreadReplaySums replay{};
    Range of{0, 0};
    for (int64_t sequence = begin; sequence < end; sequence += PARTS) {
      if (sequence > begin) __syncthreads();  // the parts before are done
      const int count = end - sequence < PARTS ? int(end - sequence) : PARTS;
      if (int(threadIdx.x) < count) known.part[threadIdx.x] = part_of(a, sequence + threadIdx.x, first);
      // Every token is in one range, whatever the offsets are.
      of.from = of.to;
      of.to = sequence + count == end ? tokens : within_block(a.offsets[sequence + count] - first);
      of.to = of.to < of.from ? of.from : of.to > tokens ? tokens : of.to;
      __syncthreads();
      if (plain) {
        tokens_of_parts<PlainObjective>(a, first, of, known, count, marks, sums, replay);
      } else {
        tokens_of_parts<AnyObjective>(a, first, of, known, count, marks, sums, replay);
      }
    }
    record_sums(sums, has, a.sums + block);
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
