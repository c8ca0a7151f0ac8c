// policy_loss.cu: the loss of a policy objective over packed sequences, its exact gradient and its metrics.
//
// Contract   args/policy_loss.h, objective.cuh. Of a masked token only the mask is read; its gradients are 0. No live
//            token: loss 0. NaN in a live token reaches the loss and that token's gradient. A token's gradient depends on
//            its sequence and on the counts of the batch alone.
// Floor      17 bytes read and 4 written a token without a reference and entropies, 29 with all: 6 us for 1 M tokens at
//            4.8 TB/s.
// Algorithm  policy_loss_sequences: a warp a sequence counts its live tokens; the counts of the batch are integers, whose
//            atomics have no order. policy_loss_tokens: 2048 tokens a block, neighbouring threads on neighbouring tokens;
//            the sequence of a token is found in the few that touch the block; its coefficient follows from counts that
//            are on the device, so no scalar goes to the host. Sums of a block: f64, a fixed tree, one record.
//            policy_loss_metrics: one block adds the records, thread t those of t, t + 256, ..., then a tree.
// Hazards    A sequence without weight adds nothing, whatever its tokens hold: 0 times NaN is NaN. Empty sequences share
//            an offset with their neighbour: the search takes the last one that begins at or before a token.
// Measured   not yet run on a GPU.
#include "objective.cuh"

constexpr int THREADS = 256;
constexpr int TOKENS = POLICY_LOSS_BLOCK / THREADS;  // of a thread

KERNEL(policy_loss_sequences, PolicyLossArgs, THREADS) {
  const int64_t warps = threads_in_grid() / WARP;
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const int64_t from = a.offsets[sequence], to = a.offsets[sequence + 1];
    const bool placed = from >= 0 && from <= to && to <= a.tokens;
    unsigned live = 0;
    for (int64_t token = from + lane_id(); placed && token < to; token += WARP) live += a.mask[token] != 0;
    live = __reduce_add_sync(ALL_LANES, live);
    if (lane_id() != 0) continue;
    a.live[sequence] = live;
    if (!placed) raise_status(a.status, STATUS_BAD_GROUP);
    if (live > 0) {
      unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
      atomicAdd(counts, (unsigned long long)(live));
      atomicAdd(counts + 1, 1ull);
    }
  }
}

struct AddSums {
  __device__ __forceinline__ PolicyLossSums operator()(const PolicyLossSums& a, const PolicyLossSums& b) const {
    PolicyLossSums sum;
    sum.policy_loss = a.policy_loss + b.policy_loss;
    sum.kl_loss = a.kl_loss + b.kl_loss;
    sum.entropy_loss = a.entropy_loss + b.entropy_loss;
    sum.log_ratio = a.log_ratio + b.log_ratio;
    sum.kl = a.kl + b.kl;
    sum.ratio = a.ratio + b.ratio;
    sum.ratio_max = a.ratio_max != a.ratio_max || a.ratio_max > b.ratio_max ? a.ratio_max : b.ratio_max;  // NaN stays
    sum.entropy = a.entropy + b.entropy;
    sum.clipped_high = a.clipped_high + b.clipped_high;
    sum.clipped_low = a.clipped_low + b.clipped_low;
    sum.clipped_dual = a.clipped_dual + b.clipped_dual;
    return sum;
  }
};

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

__device__ __forceinline__ double weighed(float by, double value) { return by == 0.0f ? 0.0 : double(by) * value; }

struct Coefficients {
  float of_loss, of_entropy;
};

__device__ __forceinline__ Coefficients coefficients(const PolicyLossArgs& a, int64_t sequence) {
  const double live_sequences = double(a.counts[1]), all = double(a.sequences), live = double(a.live[sequence]);
  const double tokens = a.total_tokens >= 0.0 ? a.total_tokens : double(a.counts[0]);
  const AggregationRule &loss = a.objective.of_loss, &entropy = a.objective.of_entropy;
  const bool given = a.total_sequences >= 0.0;
  return Coefficients{
      coefficient(loss, tokens, given ? a.total_sequences : loss.all_rows ? all : live_sequences, live, a.scale),
      coefficient(entropy, tokens, given ? a.total_sequences : entropy.all_rows ? all : live_sequences, live, a.scale)};
}

__device__ __forceinline__ Loss surrogate(const ObjectiveRule& rule, const Ratio& ratio, float advantage) {
  switch (rule.surrogate) {
    default: return PpoClip{rule.clip}(ratio, advantage);
  }
}

// The gradients of one live token; its share is added to `sums`.
__device__ __forceinline__ void live_token(const PolicyLossArgs& a, int64_t token, int64_t sequence, const Coefficients& c,
                                           PolicyLossSums& sums) {
  const ObjectiveRule& rule = a.objective;
  const float logprob = a.logprob[token], advantage = a.advantage[a.advantage_per_token ? token : sequence];
  const Ratio ratio = ratio_of(logprob, a.old_logprob[token], rule.log_ratio_limit);
  const float weight = a.weight ? a.weight[token] : 1.0f;
  const Loss loss = surrogate(rule, ratio, advantage);
  float gradient = c.of_loss * loss.slope * weight;
  sums.policy_loss += weighed(c.of_loss, double(loss.value * weight));
  if (rule.kl != KL_NONE) {
    const Loss kl = kl_penalty(rule, logprob - a.reference[token], ratio);
    gradient += c.of_loss * rule.kl_coefficient * kl.slope;
    sums.kl_loss += weighed(c.of_loss, double(kl.value));
    sums.kl += double(kl.value);
  }
  if (a.entropy) {
    const float entropy = a.entropy[token];
    sums.entropy_loss += weighed(c.of_entropy, double(entropy));
    sums.entropy += double(entropy);
  }
  sums.log_ratio += double(ratio.log_ratio);
  sums.ratio += double(ratio.w);
  const double w = double(ratio.w);
  sums.ratio_max = w != w || w > sums.ratio_max ? w : sums.ratio_max;
  sums.clipped_high += loss.clipped_high;
  sums.clipped_low += loss.clipped_low;
  sums.clipped_dual += loss.clipped_dual;
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
    PolicyLossSums sums{};
    int64_t known = -1;  // the sequence whose coefficients these are
    Coefficients c{0.0f, 0.0f};
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
        if (sequence != known) c = coefficients(a, sequence);
        known = sequence;
        live_token(a, token, sequence, c, sums);
      } else {
        a.dlogprob[token] = 0.0f;
        if (a.dentropy) a.dentropy[token] = 0.0f;
      }
    }
    sums = block_reduce<THREADS>(sums, AddSums());
    if (threadIdx.x == 0) a.sums[block] = sums;
  }
}

KERNEL(policy_loss_metrics, PolicyLossArgs, THREADS) {
  const int64_t blocks = (a.tokens + POLICY_LOSS_BLOCK - 1) / POLICY_LOSS_BLOCK;
  PolicyLossSums sums{};
  for (int64_t block = threadIdx.x; block < blocks; block += THREADS) sums = AddSums()(sums, a.sums[block]);
  sums = block_reduce<THREADS>(sums, AddSums());
  if (threadIdx.x != 0) return;
  const uint64_t live = a.counts[0];
  const auto mean = [&](double sum) { return live > 0 ? sum / double(live) : 0.0; };
  PolicyLossMetrics m;
  m.policy_loss = sums.policy_loss;
  m.kl_loss = sums.kl_loss;
  m.entropy_loss = sums.entropy_loss;
  m.loss = sums.policy_loss + weighed(a.objective.kl_coefficient, sums.kl_loss) -
           weighed(a.objective.entropy_coefficient, sums.entropy_loss);
  m.clip_fraction = mean(double(sums.clipped_high + sums.clipped_low));
  m.clip_fraction_high = mean(double(sums.clipped_high));
  m.clip_fraction_low = mean(double(sums.clipped_low));
  m.dual_clip_fraction = mean(double(sums.clipped_dual));
  m.approx_kl = mean(-sums.log_ratio) + 0.0;
  m.kl = mean(sums.kl);
  m.ratio_mean = mean(sums.ratio);
  m.ratio_max = sums.ratio_max;
  m.entropy = mean(sums.entropy);
  m.live_tokens = live;
  m.live_sequences = a.counts[1];
  *a.metrics = m;
}
