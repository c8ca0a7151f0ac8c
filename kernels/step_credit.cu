// step_credit.cu: verdicts about steps, painted on tokens, become advantages of tokens.
//
// Contract   args/step_credit.h. A span names tokens of one sequence and their label; a token in several spans has the label
//            of the last one, a token in none the background. Of a masked token only the mask is read. What a label does
//            to an advantage is a rule: modulate (FaithRL, arXiv 2602.03507, equation 10), mask, scale, add or replace.
// Floor      Painting writes 8 bytes a token; credit reads 5 or 9 and writes 5 a token: launches, at 64 k tokens.
// Algorithm  step_paint_owners: a warp a span; "last wins" is the maximum of span indices, an integer atomic, whose order
//            does not matter. step_paint_labels: a thread a token looks its span up. step_credit, step_shaping: a block a
//            sequence, neighbouring threads on neighbouring tokens; a token needs the labels and its sequence's
//            advantage, so nothing is summed but counts, which are integers.
// Hazards    Labels of answers are 2 and mean "1 where the advantage is positive, else 0": an answer keeps its whole credit.
//            A label of exactly one half takes no side. alpha 0 times an advantage of -0.5 is -0: 0 is added, so that
//            "is zero" and the bits agree. A span that does not fit its sequence paints nothing, not a part.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/step_credit.h"

constexpr int THREADS = 256;

struct TokenRange {
  int64_t from, to;  // -1, -1 where the offsets do not place the sequence
};

__device__ __forceinline__ TokenRange tokens_of(const int64_t* offsets, int64_t sequence, int64_t tokens) {
  const int64_t from = offsets[sequence], to = offsets[sequence + 1];
  return from >= 0 && from <= to && to <= tokens ? TokenRange{from, to} : TokenRange{-1, -1};
}

KERNEL(step_paint_owners, StepPaintArgs, THREADS) {
  const int64_t warps = threads_in_grid() / WARP;
  for (int64_t span = thread_in_grid() / WARP; span < a.spans; span += warps) {
    const int64_t sequence = a.sequence[span], start = a.start[span], end = a.end[span];
    if (sequence < 0 || sequence >= a.sequences) {
      if (lane_id() == 0) raise_status(a.status, STATUS_BAD_INDEX);
      continue;
    }
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    const bool fits = start >= 0 && start <= end && end <= all.to - all.from;
    if (all.from < 0 || !fits) {
      if (lane_id() == 0) raise_status(a.status, all.from < 0 ? STATUS_BAD_GROUP : STATUS_BAD_INDEX);
      continue;
    }
    for (int64_t token = start + lane_id(); token < end; token += WARP) atomicMax(a.owner + all.from + token, int32_t(span));
  }
}

KERNEL(step_paint_labels, StepPaintArgs, THREADS) {
  for (int64_t token = thread_in_grid(); token < a.tokens; token += threads_in_grid()) {
    const int32_t span = a.owner[token];
    a.labels[token] = span >= 0 ? a.label[span] : a.background;
  }
}

constexpr float ANSWER = 2.0f;

struct Credit {
  float advantage;
  bool kept;
};

__device__ __forceinline__ Credit credit(const StepCreditArgs& a, float advantage, float label) {
  switch (a.rule) {
    case STEP_CREDIT_MASK: {
      const bool kept = label > a.threshold;
      return Credit{kept ? advantage : 0.0f, kept};
    }
    case STEP_CREDIT_SCALE: return Credit{advantage * label + 0.0f, true};
    case STEP_CREDIT_ADD: return Credit{advantage + a.weight * label, true};
    case STEP_CREDIT_REPLACE: return Credit{label, true};
    default: break;
  }
  const bool good = advantage > 0.0f;
  const float verdict = label == ANSWER ? (good ? 1.0f : 0.0f) : label;
  const float factor = good ? (verdict < 0.5f ? a.alpha : 1.0f) : (verdict > 0.5f ? a.alpha_failed : 1.0f);
  return Credit{advantage * factor + 0.0f, true};
}

struct Counts {
  unsigned of[STEP_CREDIT_COUNTS];
};

// One live token: its output, and its share of the counts.
__device__ __forceinline__ void credit_token(const StepCreditArgs& a, int64_t token, int64_t sequence, Counts& counts) {
  const float label = a.labels[token];
  if (!(fabsf(label) < INFINITY_F)) {
    raise_status(a.status, STATUS_NON_FINITE);
    return;
  }
  const float advantage = a.advantage[a.advantage_per_token ? token : sequence];
  const Credit to = credit(a, advantage, label);
  a.credited[token] = to.advantage;
  if (a.kept) a.kept[token] = to.kept;
  const bool good = advantage > 0.0f;
  const float verdict = label == ANSWER ? (good ? 1.0f : 0.0f) : label;
  counts.of[STEP_CREDIT_LIVE]++;
  counts.of[STEP_CREDIT_POSITIVE_VALID] += good && verdict > 0.5f;
  counts.of[STEP_CREDIT_POSITIVE_INVALID] += good && verdict < 0.5f;
  counts.of[STEP_CREDIT_NEGATIVE_VALID] += advantage <= 0.0f && verdict > 0.5f;
  counts.of[STEP_CREDIT_NEGATIVE_INVALID] += advantage <= 0.0f && verdict < 0.5f;
  counts.of[STEP_CREDIT_ZERO] += to.advantage == 0.0f;
  counts.of[STEP_CREDIT_ZEROED] += to.advantage == 0.0f && advantage != 0.0f;
}

KERNEL(step_credit, StepCreditArgs, THREADS) {
  Counts counts{};
  for (int64_t sequence = blockIdx.x; sequence < a.sequences; sequence += gridDim.x) {
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    if (all.from < 0 && threadIdx.x == 0) raise_status(a.status, STATUS_BAD_GROUP);
    for (int64_t token = all.from + threadIdx.x; all.from >= 0 && token < all.to; token += THREADS) {
      if (a.mask[token] != 0) credit_token(a, token, sequence, counts);
    }
  }
  if (!a.counts) return;
#pragma unroll
  for (int i = 0; i < STEP_CREDIT_COUNTS; i++) {
    const unsigned of_warp = __reduce_add_sync(ALL_LANES, counts.of[i]);
    unsigned long long* total = reinterpret_cast<unsigned long long*>(a.counts) + i;
    if (lane_id() == 0 && of_warp > 0) atomicAdd(total, (unsigned long long)(of_warp));
  }
}

// alpha clip(mean of the labels around a token); 0 where the token is masked.
__device__ __forceinline__ float potential(const StepShapingArgs& a, const TokenRange& all, int64_t token) {
  if (token >= all.to || a.mask[token] == 0) return 0.0f;
  float sum = 0.0f, terms = 0.0f;
  for (int64_t at = token - a.reach; at <= token + a.reach; at++) {
    if (a.reads_masked) {
      const int64_t inside = at < all.from ? all.from : at >= all.to ? all.to - 1 : at;
      sum += a.labels[inside];
      terms += 1.0f;
    } else if (at >= all.from && at < all.to && a.mask[at] != 0) {
      sum += a.labels[at];
      terms += 1.0f;
    }
  }
  return a.alpha * fminf(fmaxf(sum / terms, -a.clip), a.clip);
}

KERNEL(step_shaping, StepShapingArgs, THREADS) {
  for (int64_t sequence = blockIdx.x; sequence < a.sequences; sequence += gridDim.x) {
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    if (all.from < 0 && threadIdx.x == 0) raise_status(a.status, STATUS_BAD_GROUP);
    for (int64_t token = all.from + threadIdx.x; all.from >= 0 && token < all.to; token += THREADS) {
      if (a.mask[token] == 0) continue;
      a.shaping[token] = a.gamma * potential(a, all, token + 1) - potential(a, all, token);
    }
  }
}
