// softmax_row.cuh: one row of logits as a softmax, summed in one read. Shared by logprob.cu and sample.cu, so that what a
// sampler reports about a token and what a trainer computes are the same bits.
//
// A row is cut into units of LOGPROB_UNIT logits, whoever computes them. A warp sums a unit: vector v of 16 bytes belongs
// to lane v mod 32 and to one of its four states, by its place in the row and not in memory, so a row that is not
// aligned is shifted into place after 16-byte loads. Units are merged along LOGPROB_CHAINS chains, and these in order. So
// bits are a function of the row alone. Products and sums are spelled as intrinsics wherever a compiler could fuse them
// differently in two kernels.
#pragma once
#include "prim.cuh"
#include "args/logprob.h"

constexpr int STATES = 4;  // independent states of a lane, and 16-byte loads that it has in flight
constexpr float LEAST_EXPONENT = -127.0f;

// ---- a row's rule ----

struct RowRule {
  float temperature;
  float scale;  // log2(e) / temperature
  float softcap;
  const int32_t* banned;
  unsigned banned_count;
};

__device__ __forceinline__ double inverse_temperature(const RowRule& rule) { return 1.0 / double(rule.temperature); }

__device__ __forceinline__ bool positive_and_finite(float x) { return x > 0.0f && x < INFINITY_F; }

__device__ __forceinline__ RowRule row_rule(const SoftmaxRule& rule, float temperature) {
  const float scale = float(1.4426950408889634 / double(temperature));
  return RowRule{temperature, scale, rule.softcap, rule.banned, unsigned(rule.banned_count)};
}

// Places [from, to) of the ascending banned ids that lie in [first, end).
struct BannedRange {
  unsigned from, to;
};

__device__ __forceinline__ unsigned banned_below(const RowRule& rule, int64_t id) {
  unsigned low = 0, high = rule.banned_count;
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    if (rule.banned[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

__device__ __forceinline__ BannedRange banned_within(const RowRule& rule, int64_t first, int64_t end) {
  if (rule.banned_count == 0) return BannedRange{0, 0};
  return BannedRange{banned_below(rule, first), banned_below(rule, end)};
}

__device__ __forceinline__ bool is_banned(const RowRule& rule, int64_t id) {
  const BannedRange range = banned_within(rule, id, id + 1);
  return range.from < range.to;
}

__device__ __forceinline__ float capped(float z, float softcap) {
  return softcap > 0.0f ? __fmul_rn(softcap, tanhf(__fdiv_rn(z, softcap))) : z;
}

// One logit as the softmax sees it.
template <class T>
__device__ __forceinline__ float logit_at(const T* row, int64_t id, const RowRule& rule) {
  return is_banned(rule, id) ? -INFINITY_F : capped(to_float(row[id]), rule.softcap);
}

// ---- sums ----

__device__ __forceinline__ OnlineSoftmax empty_softmax() { return OnlineSoftmax{-INFINITY_F, 0.0f, 0.0f, -1}; }

// What logits are compared with: of nothing but -inf there is no largest, and -inf - -inf would be NaN.
__device__ __forceinline__ float reference_of(float max) { return max == -INFINITY_F ? 0.0f : max; }

__device__ __forceinline__ float exponent(float z, float reference, float scale) {
  return max_nan(__fmul_rn(__fsub_rn(z, reference), scale), LEAST_EXPONENT);
}

// The sums of `part` relative to `reference`, which is at least its largest logit.
__device__ __forceinline__ void rescale(OnlineSoftmax& part, float reference, float scale) {
  const float y = exponent(part.max, reference, scale), factor = exp2_flushed(y);
  part.weighted = __fmul_rn(factor, fmaf(y, part.sum, part.weighted));
  part.sum = __fmul_rn(factor, part.sum);
}

__device__ __forceinline__ OnlineSoftmax merge(OnlineSoftmax a, OnlineSoftmax b, float scale) {
  const float max = fmaxf(a.max, b.max), reference = reference_of(max);
  const int32_t first = a.argmax < b.argmax ? a.argmax : b.argmax;
  const int32_t argmax = a.max > b.max ? a.argmax : b.max > a.max ? b.argmax : first;
  rescale(a, reference, scale);
  rescale(b, reference, scale);
  return OnlineSoftmax{max, __fadd_rn(a.sum, b.sum), __fadd_rn(a.weighted, b.weighted), argmax};
}

// Adds SIZE logits, the first of which is id `first`. -inf adds exactly nothing.
template <int SIZE>
__device__ __forceinline__ void push(OnlineSoftmax& state, const float (&z)[SIZE], unsigned first, float scale) {
  float most = z[0];
#pragma unroll
  for (int e = 1; e < SIZE; e++) most = fmaxf(most, z[e]);
  if (most > state.max) {  // rare: a few times a lane
    rescale(state, most, scale);
    state.max = most;
#pragma unroll
    for (int e = SIZE - 1; e >= 0; e--) {
      if (z[e] == most) state.argmax = int32_t(first + unsigned(e));
    }
  }
  const float reference = reference_of(state.max);
#pragma unroll
  for (int e = 0; e < SIZE; e++) {
    const float y = exponent(z[e], reference, scale), power = exp2_flushed(y);
    state.sum = __fadd_rn(state.sum, power);
    state.weighted = fmaf(power, y, state.weighted);
  }
}

// The states of all lanes of a warp as one; every lane gets it.
__device__ __forceinline__ OnlineSoftmax merge_warp(OnlineSoftmax (&state)[STATES], float scale) {
  static_assert(STATES == 4, "the tree below");
  float max = fmaxf(fmaxf(state[0].max, state[1].max), fmaxf(state[2].max, state[3].max));
  max = warp_reduce(max, Max());
  const float reference = reference_of(max);
  unsigned argmax = 0xffffffffu;  // -1
#pragma unroll
  for (int j = 0; j < STATES; j++) {
    if (state[j].max == max) argmax = min(argmax, unsigned(state[j].argmax));
    rescale(state[j], reference, scale);
  }
  const OnlineSoftmax &a = state[0], &b = state[1], &c = state[2], &d = state[3];
  const float sum = __fadd_rn(__fadd_rn(a.sum, b.sum), __fadd_rn(c.sum, d.sum));
  const float weighted = __fadd_rn(__fadd_rn(a.weighted, b.weighted), __fadd_rn(c.weighted, d.weighted));
  return OnlineSoftmax{max, warp_reduce(sum, Sum()), warp_reduce(weighted, Sum()),
                       int32_t(__reduce_min_sync(ALL_LANES, argmax))};
}

// ---- reading ----

// Sixteen bytes that begin `skew` bytes into the aligned pair (low, high).
__device__ __forceinline__ uint4 shifted(uint4 low, uint4 high, unsigned skew) {
  unsigned word[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  if (skew & 8u) {
#pragma unroll
    for (int i = 0; i < 6; i++) word[i] = word[i + 2];
  }
  if (skew & 4u) {
#pragma unroll
    for (int i = 0; i < 5; i++) word[i] = word[i + 1];
  }
  if (skew & 2u) {
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = word[i] >> 16 | word[i + 1] << 16;
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// A word of minus infinities.
__device__ __forceinline__ constexpr unsigned minus_infinity_word(float) { return 0xff800000u; }
__device__ __forceinline__ constexpr unsigned minus_infinity_word(bf16) { return 0xff80ff80u; }
__device__ __forceinline__ constexpr unsigned minus_infinity_word(f16) { return 0xfc00fc00u; }

// Vectors of a row at any alignment of the row. Ids are unsigned: a vocabulary has less than 2^31, and rounds pass its end.
template <class T>
struct RowReader {
  static constexpr unsigned SIZE = Vec16<T>::SIZE;
  const T* row;
  unsigned vocab;
  unsigned skew;    // bytes from the last multiple of 16 to the row
  unsigned behind;  // the same in elements
  unsigned inside;  // vectors at [behind, behind + inside) touch aligned words of nothing but the row

  __device__ __forceinline__ RowReader(const T* row, unsigned vocab) : row(row), vocab(vocab) {
    skew = unsigned(reinterpret_cast<unsigned long long>(row) & 15u);
    behind = skew / unsigned(sizeof(T));
    const unsigned needed = skew == 0 ? SIZE : 2 * SIZE;
    inside = vocab >= needed ? vocab - needed + 1 : 0;
  }

  __device__ __forceinline__ const uint4* words(unsigned at) const { return reinterpret_cast<const uint4*>(row + (at - behind)); }

  // Vector `at` by single elements; -inf beyond the row.
  __device__ __forceinline__ uint4 elements(unsigned at) const {
    union {
      Vec16<T> vec;
      uint4 words;
    } both;
#pragma unroll
    for (unsigned e = 0; e < SIZE; e++) both.vec.at[e] = at + e < vocab ? row[at + e] : from_float<T>(-INFINITY_F);
    return both.words;
  }

  // The vectors at `at`, `at + step`, ...: their loads are in flight together.
  __device__ __forceinline__ void round(unsigned at, unsigned step, uint4 (&vector)[STATES]) const {
    const unsigned nothing = minus_infinity_word(T{});
    unsigned ragged = 0;
#pragma unroll
    for (unsigned j = 0; j < STATES; j++) {
      const unsigned first = at + j * step;
      vector[j] = make_uint4(nothing, nothing, nothing, nothing);
      if (first - behind < inside) {
        vector[j] = *words(first);
      } else if (first < vocab) {
        ragged |= 1u << j;
      }
    }
    if (skew != 0) {  // the second word is the next lane's first: it is in the cache by now
#pragma unroll
      for (unsigned j = 0; j < STATES; j++) {
        const unsigned first = at + j * step;
        if (first - behind < inside) vector[j] = shifted(vector[j], words(first)[1], skew);
      }
    }
    while (ragged) {  // one or two vectors of a row
      const unsigned which = unsigned(__ffs(int(ragged))) - 1;
      ragged &= ragged - 1;
      const uint4 of = elements(at + which * step);
#pragma unroll
      for (unsigned j = 0; j < STATES; j++) {
        if (j == which) vector[j] = of;
      }
    }
  }
};

template <int SIZE>
__device__ __forceinline__ void restrict_logits(float (&z)[SIZE], unsigned at, unsigned vocab, const RowRule& rule) {
  if (rule.softcap > 0.0f) {  // what lies beyond the row stays -inf: a cap would make it finite
#pragma unroll
    for (int e = 0; e < SIZE; e++) z[e] = at + unsigned(e) < vocab ? capped(z[e], rule.softcap) : -INFINITY_F;
  }
  const BannedRange banned = banned_within(rule, at, at + SIZE);
  for (unsigned place = banned.from; place < banned.to; place++) {
    const unsigned e_banned = unsigned(rule.banned[place]) - at;
#pragma unroll
    for (int e = 0; e < SIZE; e++) {
      if (unsigned(e) == e_banned) z[e] = -INFINITY_F;
    }
  }
}

// The sums of one unit of a row, by one warp.
template <class T>
__device__ __forceinline__ OnlineSoftmax sum_unit(const T* row, int64_t vocab, unsigned unit, const RowRule& rule) {
  constexpr unsigned SIZE = Vec16<T>::SIZE, STEP = WARP * SIZE;
  static_assert(LOGPROB_UNIT % (STATES * STEP) == 0, "only the last unit has a round that is not full");
  const unsigned first = unit * LOGPROB_UNIT;
  const unsigned end = unsigned(vocab) - first < LOGPROB_UNIT ? unsigned(vocab) : first + LOGPROB_UNIT;
  const RowReader<T> reader(row, unsigned(vocab));
  const BannedRange banned = banned_within(rule, first, end);
  const bool restricted = rule.softcap > 0.0f || banned.from < banned.to;  // where not, vectors are not asked
  const bool whole = reader.skew == 0 && end - first == LOGPROB_UNIT;      // as nearly all units are: nothing is ragged
  OnlineSoftmax state[STATES];
#pragma unroll
  for (int j = 0; j < STATES; j++) state[j] = empty_softmax();
  for (unsigned round = first; round < end; round += STATES * STEP) {
    const unsigned at = round + unsigned(lane_id()) * SIZE;
    uint4 vector[STATES];
    if (whole) {
      const uint4* words = reader.words(at);
#pragma unroll
      for (unsigned j = 0; j < STATES; j++) vector[j] = words[j * WARP];
    } else {
      reader.round(at, STEP, vector);
    }
#pragma unroll
    for (unsigned j = 0; j < STATES; j++) {
      float z[SIZE];
      widen<T>(vector[j], z);
      if (restricted) restrict_logits(z, at + j * STEP, unsigned(vocab), rule);
      push(state[j], z, at + j * STEP, rule.scale);
    }
  }
  return merge_warp(state, rule.scale);
}

__device__ __forceinline__ unsigned units_of(int64_t vocab) { return (unsigned(vocab) + LOGPROB_UNIT - 1) / LOGPROB_UNIT; }
__device__ __forceinline__ int chains_of(unsigned units) { return units < LOGPROB_CHAINS ? int(units) : LOGPROB_CHAINS; }

struct RowChains {
  OnlineSoftmax chain[LOGPROB_CHAINS];
};

// The sums of a row, by a block that has at least one warp for each chain. All threads call it and get the result. Unit
// sums are kept in `units` where that is not null. Has a barrier before and after: what a thread wrote before is seen by
// all after.
template <class T>
__device__ __forceinline__ OnlineSoftmax sum_row(const T* row, int64_t vocab, const RowRule& rule, OnlineSoftmax* units) {
  RowChains& shared = block_shared<RowChains>();
  const unsigned count = units_of(vocab);
  const int chains = chains_of(count);
  __syncthreads();  // the readers of an earlier row are done
  for (unsigned unit = unsigned(warp_id()); warp_id() < chains && unit < count; unit += LOGPROB_CHAINS) {
    const OnlineSoftmax of_unit = sum_unit(row, vocab, unit, rule);
    if (lane_id() == 0) {  // the chain waits in shared memory: registers are for loads
      OnlineSoftmax& chain = shared.chain[warp_id()];
      chain = unit < LOGPROB_CHAINS ? of_unit : merge(chain, of_unit, rule.scale);
      if (units) units[unit] = of_unit;
    }
  }
  __syncthreads();
  OnlineSoftmax sums = chains > 0 ? shared.chain[0] : empty_softmax();
  for (int chain = 1; chain < chains; chain++) sums = merge(sums, shared.chain[chain], rule.scale);
  return sums;
}

// ---- a row's statistics ----

struct RowSummary {
  float logprob, entropy, logsumexp;
  int32_t argmax;
};

// `target` is the target's logit as the softmax sees it. A row without any logit above -inf has log-prob and logsumexp
// -inf and entropy 0.
__device__ __forceinline__ RowSummary summarize(const OnlineSoftmax& row, float target, const RowRule& rule) {
  if (row.sum == 0.0f) return RowSummary{-INFINITY_F, 0.0f, -INFINITY_F, row.argmax};
  const double log_sum = log(double(row.sum)), max = double(row.max), inverse = inverse_temperature(rule);
  const double entropy = fma(-0.6931471805599453, double(row.weighted) / double(row.sum), log_sum);
  return RowSummary{float(fma(double(target) - max, inverse, -log_sum)),
                    entropy < 0.0 ? 0.0f : float(entropy), float(fma(max, inverse, log_sum)), row.argmax};
}
