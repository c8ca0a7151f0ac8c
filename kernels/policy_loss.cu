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
#include "policy_loss_sequence.cuh"
#include "policy_loss_tokens.cuh"

// ---- the sequence pass ----

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

// ---- the token pass ----

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
