// advantage_tokens.cu: advantages that differ from token to token: GAE and returns, whitening, the optimal token baseline.
//
// Contract   args/advantage.h. Packed sequences with a mask: of a masked token (tool output, padding) only the mask is
//            used, except where an option reproduces a peer that uses more. Sums in f64.
// Floor      GAE reads 9 and writes 8 bytes a token: 3.7 us for 1 M tokens at 4.8 TB/s. The baseline adds 21 bytes of workspace.
// Algorithm  advantage_scan: a warp a sequence, 32 tokens at a time from the end. A live token maps the advantage after
//            it, x, to b + a x; a masked one is the identity (or 0): maps compose, so a chunk is a scan of five shuffles.
//            The next chunk is loaded during the scan; a second scan is for a lambda of the critic's own. The value
//            after a token is that of the next live lane, found in the ballot. advantage_means: a warp a
//            sequence, for baselines that are means of token rewards. advantage_moments,
//            advantage_whiten: 2048 tokens a record; every block merges all records in the same order, so no third launch.
//            token_baseline_slots: a warp a sequence leaves return and accumulated variance of each slot (a position, or
//            the k-th live token). token_baseline: a block a group, a thread a slot, members in order.
// Hazards    Chunks are cut from a sequence's first token, so a token's bits depend on its sequence alone. Lanes past the
//            end are the identity. Tokens that are all equal whiten to exactly 0. A slot that no member counts has
//            energy 0: epsilon keeps 0 / 0 away.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/advantage.h"

constexpr int THREADS = 256;

struct TokenRange {
  int64_t from, length;  // length -1 where the offsets do not place the sequence
};

__device__ __forceinline__ TokenRange tokens_of(const int64_t* offsets, int64_t sequence, int64_t tokens) {
  const int64_t from = offsets[sequence], to = offsets[sequence + 1];
  return from >= 0 && from <= to && to <= tokens ? TokenRange{from, to - from} : TokenRange{0, -1};
}

__device__ __forceinline__ double shuffle_down(double value, int by) { return __shfl_down_sync(ALL_LANES, value, by); }
__device__ __forceinline__ double shuffle_up(double value, int by) { return __shfl_up_sync(ALL_LANES, value, by); }

// x -> b + a x.
struct Map {
  double a, b;
};

// What lane l makes of `after`, what comes after the warp: the maps of lanes l, l + 1, ... composed.
__device__ __forceinline__ double scan_backward(Map map, double after) {
#pragma unroll
  for (int by = 1; by < WARP; by *= 2) {
    const double a = shuffle_down(map.a, by), b = shuffle_down(map.b, by);
    if (lane_id() + by < WARP) map = Map{map.a * a, map.b + map.a * b};
  }
  return map.b + map.a * after;
}

__device__ __forceinline__ double scan_sum_forward(double value) {
#pragma unroll
  for (int by = 1; by < WARP; by *= 2) {
    const double before = shuffle_up(value, by);
    if (lane_id() >= by) value += before;
  }
  return value;
}

__device__ __forceinline__ int64_t live_tokens(const uint8_t* mask, const TokenRange& all) {
  unsigned live = 0;
  for (int64_t t = lane_id(); t < all.length; t += WARP) live += mask[all.from + t] != 0;
  return __reduce_add_sync(ALL_LANES, live);
}

// 32 tokens of a sequence, a lane each; zeros outside of it.
struct Chunk {
  uint8_t mask;
  float value, reward;
};

__device__ __forceinline__ Chunk load_chunk(const AdvantageScanArgs& a, const TokenRange& all, int64_t base) {
  const int64_t t = base + lane_id(), token = all.from + t;
  if (base < 0 || t >= all.length) return Chunk{0, 0.0f, 0.0f};
  return Chunk{a.mask[token], a.values ? a.values[token] : 0.0f, a.rewards[token]};
}

KERNEL_RESIDENT(advantage_scan, AdvantageScanArgs, THREADS, 1) {
  const int64_t warps = threads_in_grid() / WARP;
  const bool two = a.returns && a.critic_lambda >= 0.0;  // scans: else returns are of the same one
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    if (all.length < 0 && lane_id() == 0) raise_status(a.status, STATUS_BAD_GROUP);
    double lambda = a.lambda;
    if (a.length_alpha > 0.0 && all.length > 0) {
      const double live = double(live_tokens(a.mask, all)), adapted = 1.0 - 1.0 / (a.length_alpha * (live > 0.0 ? live : 1.0));
      lambda = adapted > 0.0 ? adapted : 0.0;
    }
    const double center = a.means && all.length > 0 ? double(a.means[sequence]) - double(a.relative[sequence]) : 0.0;
    const double bonus = a.bonus ? double(a.bonus[sequence]) : 0.0;
    double after = 0.0, critic_after = 0.0, value_after = 0.0;
    const int64_t last = all.length > 0 ? (all.length - 1) / WARP * WARP : -1;
    Chunk next = load_chunk(a, all, last);
    for (int64_t base = last; base >= 0; base -= WARP) {
      const Chunk own = next;
      next = load_chunk(a, all, base - WARP);  // under way during the scan
      const int64_t t = base + lane_id(), token = all.from + t;
      const bool inside = t < all.length, live = own.mask != 0;
      const double value = live ? double(own.value) : 0.0;
      const unsigned alive = __ballot_sync(ALL_LANES, live), above = lane_id() < WARP - 1 ? alive >> (lane_id() + 1) : 0;
      const int next_live = above ? lane_id() + __ffs(int(above)) : lane_id();
      const double next_value = __shfl_sync(ALL_LANES, value, next_live);
      const double delta = live ? double(own.reward) - center + a.gamma * (above ? next_value : value_after) - value : 0.0;
      const double passes = inside && a.reset ? 0.0 : 1.0;
      const double advantage = scan_backward(Map{live ? a.gamma * lambda : passes, delta}, after);
      double critic = advantage;
      if (two) critic = scan_backward(Map{live ? a.gamma * a.critic_lambda : passes, delta}, critic_after);
      if (inside && (live || a.carried)) {
        if (a.advantage) a.advantage[token] = float(live ? advantage + bonus : advantage);
        if (a.returns) a.returns[token] = float(critic + double(own.value));
      }
      after = __shfl_sync(ALL_LANES, advantage, 0);
      if (two) critic_after = __shfl_sync(ALL_LANES, critic, 0);
      const double first_value = __shfl_sync(ALL_LANES, value, alive ? __ffs(int(alive)) - 1 : 0);
      value_after = alive ? first_value : value_after;
    }
  }
}

KERNEL(advantage_means, AdvantageMeansArgs, THREADS) {
  const int64_t warps = threads_in_grid() / WARP;
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    if (all.length < 0 && lane_id() == 0) raise_status(a.status, STATUS_BAD_GROUP);
    double sum = 0.0;
    for (int64_t t = lane_id(); t < all.length; t += WARP) {
      if (a.mask[all.from + t] != 0) sum += double(a.values[all.from + t]);
    }
    sum = __shfl_sync(ALL_LANES, scan_sum_forward(sum), WARP - 1);
    const double live = double(live_tokens(a.mask, all));
    if (lane_id() == 0) a.means[sequence] = live > 0.0 ? float(sum / live) : NAN_F;
  }
}

// Commutative to the bit: the two lanes of a pair call it with swapped arguments.
struct MergeMoments {
  __device__ __forceinline__ AdvantageMoments operator()(const AdvantageMoments& a, const AdvantageMoments& b) const {
    const double count = a.count + b.count, apart = b.mean - a.mean;
    if (count == 0.0) return a;
    AdvantageMoments all;
    all.count = count;
    all.mean = (a.count * a.mean + b.count * b.mean) / count;
    all.squares = (a.squares + b.squares) + apart * apart * (a.count * b.count / count);
    all.least = fminf(a.least, b.least);
    all.most = fmaxf(a.most, b.most);
    return all;
  }
};

__device__ __forceinline__ AdvantageMoments no_moments() { return AdvantageMoments{0.0, 0.0, 0.0, INFINITY_F, -INFINITY_F}; }

KERNEL(advantage_moments, AdvantageWhitenArgs, THREADS) {
  const int64_t blocks = (a.tokens + ADVANTAGE_BLOCK - 1) / ADVANTAGE_BLOCK;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    AdvantageMoments all = no_moments();
    for (int i = 0; i < ADVANTAGE_BLOCK / THREADS; i++) {
      const int64_t token = block * ADVANTAGE_BLOCK + int64_t(i) * THREADS + threadIdx.x;
      if (token < a.tokens && a.mask[token] != 0) {
        const float x = a.values[token];
        all = MergeMoments()(all, AdvantageMoments{1.0, double(x), 0.0, x, x});
      }
    }
    all = block_reduce<THREADS>(all, MergeMoments());
    if (threadIdx.x == 0) a.moments[block] = all;
  }
}

KERNEL(advantage_whiten, AdvantageWhitenArgs, THREADS) {
  const int64_t blocks = (a.tokens + ADVANTAGE_BLOCK - 1) / ADVANTAGE_BLOCK;
  AdvantageMoments all = no_moments();
  for (int64_t block = threadIdx.x; block < blocks; block += THREADS) all = MergeMoments()(all, a.moments[block]);
  all = block_reduce<THREADS>(all, MergeMoments());
  const double factor = all.least < all.most ? 1.0 / sqrt(all.squares / (all.count - 1.0) + a.epsilon) : 0.0;
  for (int64_t token = thread_in_grid(); token < a.tokens; token += threads_in_grid()) {
    const bool takes = a.mask[token] != 0 || a.carried;
    a.values[token] = takes ? float((double(a.values[token]) - all.mean) * factor) : 0.0f;
  }
}

KERNEL(token_baseline_slots, AdvantageTokenBaselineArgs, THREADS) {
  const int64_t warps = threads_in_grid() / WARP;
  for (int64_t sequence = thread_in_grid() / WARP; sequence < a.sequences; sequence += warps) {
    const TokenRange all = tokens_of(a.offsets, sequence, a.tokens);
    const int64_t live_count = live_tokens(a.mask, all);
    if (lane_id() == 0) {
      if (all.length < 0) raise_status(a.status, STATUS_BAD_GROUP);
      a.live[sequence] = int32_t(live_count);
      a.slots[sequence] = int32_t(all.length < 0 ? -1 : a.compact ? live_count : all.length);
    }
    double energy = 0.0;
    int64_t rank = 0;  // live tokens before this chunk
    for (int64_t base = 0; base < all.length; base += WARP) {
      const int64_t t = base + lane_id(), token = all.from + t;
      const bool inside = t < all.length, live = inside && a.mask[token] != 0;
      double own = 0.0;
      if (live) {
        const double weight = a.weight ? double(a.weight[token]) : 1.0;
        own = (1.0 - 2.0 * exp(double(a.logprob[token])) + double(a.sum_squares[token])) * weight * weight;
      }
      const double sum = energy + scan_sum_forward(own);
      const unsigned alive = __ballot_sync(ALL_LANES, live);
      const int64_t slot = a.compact ? rank + __popc(alive & ((1u << lane_id()) - 1u)) : t;
      if (inside && (live || !a.compact)) {
        a.energy[all.from + slot] = live ? sum : 0.0;
        a.place[all.from + slot] = int32_t(t);
      }
      energy = __shfl_sync(ALL_LANES, sum, WARP - 1);
      rank += __popc(alive);
    }
    double after = 0.0;
    for (int64_t base = all.length > 0 ? (all.length - 1) / WARP * WARP : -1; base >= 0; base -= WARP) {
      const int64_t t = base + lane_id(), token = all.from + t;
      const bool inside = t < all.length, live = inside && a.mask[token] != 0;
      const unsigned alive = __ballot_sync(ALL_LANES, live);
      rank -= __popc(alive);
      const double to_go = scan_backward(Map{1.0, live ? double(a.rewards[token]) : 0.0}, after);
      const int64_t slot = a.compact ? rank + __popc(alive & ((1u << lane_id()) - 1u)) : t;
      if (inside && (live || !a.compact)) a.to_go[all.from + slot] = live ? to_go : 0.0;
      if (a.returns && inside && (live || a.carried)) a.returns[token] = float(to_go);
      after = __shfl_sync(ALL_LANES, to_go, 0);
    }
  }
}

// The two longest sequences of a group, by live tokens.
struct Longest {
  int most, second, sequences;
  int64_t slots;
};

__device__ __forceinline__ int64_t member(const AdvantageTokenBaselineArgs& a, int64_t place) {
  const int64_t sequence = a.order ? a.order[place] : place;
  return sequence >= 0 && sequence < a.sequences && a.slots[sequence] >= 0 ? sequence : -1;
}

KERNEL(token_baseline, AdvantageTokenBaselineArgs, THREADS) {
  for (int64_t group = blockIdx.x; group < a.group_count; group += gridDim.x) {
    const int64_t from = a.groups[group], to = a.groups[group + 1];
    if (!(from >= 0 && from <= to && to <= a.sequences)) {
      if (threadIdx.x == 0) raise_status(a.status, STATUS_BAD_GROUP);
      continue;
    }
    Longest of{-1, -1, 0, 0};
    for (int64_t at = from; at < to; at++) {
      const int64_t sequence = member(a, at);
      if (sequence < 0) continue;
      const int live = a.live[sequence];
      of.sequences += !a.compact || live > 0;
      of.slots = a.slots[sequence] > of.slots ? a.slots[sequence] : of.slots;
      of.second = live > of.most ? of.most : live > of.second ? live : of.second;
      of.most = live > of.most ? live : of.most;
    }
    for (int64_t slot = threadIdx.x; slot < of.slots; slot += THREADS) {
      double sum = 0.0, energy = 0.0;
      for (int64_t at = from; at < to; at++) {
        const int64_t sequence = member(a, at);
        if (sequence < 0 || slot >= a.slots[sequence]) continue;
        const int64_t i = a.offsets[sequence] + slot;
        sum += a.to_go[i] * a.energy[i];
        energy += a.energy[i];
      }
      const double baseline = of.sequences > 1 ? sum / (energy + a.epsilon) : 0.0;
      for (int64_t at = from; at < to; at++) {
        const int64_t sequence = member(a, at);
        if (sequence < 0 || slot >= a.slots[sequence]) continue;
        const int64_t first = a.offsets[sequence], token = first + a.place[first + slot];
        const bool tail = a.zero_tail && of.most > of.second && a.live[sequence] == of.most && slot >= of.second;
        if (a.mask[token] != 0) a.advantage[token] = float(a.to_go[first + slot] - (tail ? 0.0 : baseline));
      }
    }
  }
}
