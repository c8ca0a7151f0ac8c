// advantage.cu: what a reward is worth beside its group's.
//
// Contract   args/advantage.h. Statistics in f64, in two passes; a response that is not scored (NaN) is in none of them and
//            has advantage 0. A group never looks at another, except through `batch` and the finish.
// Floor      8 bytes a response: for 64 k responses the launch itself.
// Algorithm  The estimator is data: a centre and a factor a group. advantage_batch: one block, all rewards. advantage: a block
//            takes eight groups in a row. A warp does a small one; then the block does the large ones among the eight
//            together. Lane l adds elements l, l + 32, ... in order, then a tree: the order is a function of the group's
//            size. advantage_finish: one block whitens or scales all advantages in place. Estimators with a baseline a
//            token are advantage_tokens.cu's.
// Hazards    A group whose rewards are all equal is told by max == min: the rounding of a mean divided by 1e-6 would be
//            a gradient; its responses differ from the centre by exactly 0, one outside the basis may not. Offsets out of
//            order read nothing. Counts are integers: their atomics have no order.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/advantage.h"

constexpr int THREADS = 256;
constexpr int GROUPS = THREADS / WARP;  // of a block

struct Rewards {
  double sum;
  float least, most;
  unsigned scored, infinite;
};

struct MergeRewards {
  __device__ __forceinline__ Rewards operator()(const Rewards& a, const Rewards& b) const {
    return Rewards{a.sum + b.sum, fminf(a.least, b.least), fmaxf(a.most, b.most), a.scored + b.scored, a.infinite | b.infinite};
  }
};

struct SumF64 {
  __device__ __forceinline__ double operator()(double a, double b) const { return a + b; }
};

// A weighted sum and its weights.
struct Weighed {
  double sum, weight;
};

struct SumWeighed {
  __device__ __forceinline__ Weighed operator()(const Weighed& a, const Weighed& b) const {
    return Weighed{a.sum + b.sum, a.weight + b.weight};
  }
};

// The two largest rewards and where the first of the largest stands.
struct Best {
  float best, second;
  int64_t index;
};

struct MergeBest {
  __device__ __forceinline__ Best operator()(const Best& a, const Best& b) const {
    const bool first = a.best > b.best || (a.best == b.best && a.index < b.index);
    const Best &high = first ? a : b, &low = first ? b : a;
    return Best{high.best, fmaxf(high.second, low.best), high.index};
  }
};

struct Statistics {
  double mean, std;
  unsigned scored;
  bool all_equal;
};

__device__ __forceinline__ bool scored(float reward) { return fabsf(reward) < INFINITY_F; }  // false for NaN

// A warp or a block, by how it reduces.
struct ByWarp {
  static constexpr int SIZE = WARP;
  __device__ __forceinline__ int index() const { return lane_id(); }
  template <class T, class F>
  __device__ __forceinline__ T reduce(T value, F combine) const {
    return warp_reduce(value, combine);
  }
};

template <int COUNT>
struct ByBlock {
  static constexpr int SIZE = COUNT;
  __device__ __forceinline__ int index() const { return int(threadIdx.x); }
  template <class T, class F>
  __device__ __forceinline__ T reduce(T value, F combine) const {
    return block_reduce<COUNT>(value, combine);
  }
};

// The statistics of `count` rewards; `reward(i)` is the i-th.
template <class Team, class Get>
__device__ __forceinline__ Statistics statistics(const Team& team, int64_t count, Get reward, uint32_t* status) {
  Rewards all{0.0, INFINITY_F, -INFINITY_F, 0, 0};
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const float r = reward(i);
    if (scored(r)) {
      all = MergeRewards()(all, Rewards{double(r), r, r, 1, 0});
    } else if (r == r) {
      all.infinite = 1;
    }
  }
  all = team.reduce(all, MergeRewards());
  if (all.infinite && team.index() == 0) raise_status(status, STATUS_NON_FINITE);
  const bool all_equal = all.scored == 0 || all.least == all.most;
  const double mean = all.scored == 0 ? 0.0 : all_equal ? double(all.most) : all.sum / double(all.scored);
  double squares = 0.0;
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const float r = reward(i);
    if (scored(r)) squares += (double(r) - mean) * (double(r) - mean);
  }
  squares = team.reduce(squares, SumF64());
  return Statistics{mean, all_equal ? 0.0 : sqrt(squares / double(all.scored - 1)), all.scored, all_equal};
}

// advantage = (reward - center) * factor.
struct Affine {
  double center, factor;
};

__device__ __forceinline__ double over_std(const AdvantageArgs& a, double std) {
  const double divisor = (std > a.least_std ? std : a.least_std) + a.epsilon;
  return divisor > 0.0 ? 1.0 / divisor : 0.0;
}

__device__ __forceinline__ double factor_of(const AdvantageArgs& a, const Statistics& group) {
  switch (a.factor) {
    case ADVANTAGE_OVER_STD: return over_std(a, a.batch_std ? a.batch->std : group.all_equal ? 1.0 : group.std);
    case ADVANTAGE_OF_BATCH: return a.batch->scale;
    case ADVANTAGE_LEAVE_ONE_OUT: return group.scored > 1 ? double(group.scored) / double(group.scored - 1) : 1.0;
    default: return 1.0;
  }
}

__device__ __forceinline__ Affine affine(const AdvantageArgs& a, const Statistics& group, double center) {
  const bool alone = group.scored == 1 && a.singleton_reward && a.center <= ADVANTAGE_LENGTH_MEAN;
  const bool nothing = group.scored == 0 && a.center <= ADVANTAGE_LENGTH_MEAN;  // to compare with
  const double factor = nothing || group.std * group.std < a.variance_threshold ? 0.0 : a.scale * factor_of(a, group);
  return Affine{alone ? 0.0 : center, factor};
}

// The responses of a group: `response(i)` is the i-th, -1 where the order is broken.
struct Members {
  const AdvantageArgs& a;
  int64_t from;
  __device__ __forceinline__ int64_t response(int64_t i) const {
    const int64_t place = from + i;
    if (!a.order) return place;
    const int64_t of_place = a.order[place];
    return of_place >= 0 && of_place < a.responses ? of_place : int64_t(-1);
  }
  __device__ __forceinline__ float reward(int64_t i) const {
    const int64_t at = response(i);
    return at >= 0 ? a.rewards[at] : NAN_F;
  }
  // NaN for a response that is not in the statistics.
  __device__ __forceinline__ float in_basis(int64_t i) const {
    const int64_t at = response(i);
    return at >= 0 && (!a.basis || a.basis[at] != 0) ? a.rewards[at] : NAN_F;
  }
  __device__ __forceinline__ double length(int64_t i) const {
    const int64_t at = response(i), tokens = at >= 0 ? a.lengths[at] : 0;
    return tokens > 0 ? double(tokens) : 0.0;
  }
};

template <class Team>
__device__ __forceinline__ double center_of(const AdvantageArgs& a, const Team& team, const Members& group, int64_t count,
                                            const Statistics& of) {
  if (a.center == ADVANTAGE_NO_CENTER || a.center == ADVANTAGE_GREEDY) return 0.0;
  if (a.center == ADVANTAGE_MEAN || of.all_equal) return of.mean;
  Weighed all{0.0, 0.0};
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const float r = group.in_basis(i);
    if (scored(r)) all = SumWeighed()(all, Weighed{double(r) * group.length(i), group.length(i)});
  }
  all = team.reduce(all, SumWeighed());
  return all.weight > 0.0 ? all.sum / all.weight : of.mean;
}

// The best response has its distance to the second, the others 0; a tie has none.
template <class Team>
__device__ __forceinline__ void best_of_group(const AdvantageArgs& a, const Team& team, const Members& group, int64_t count,
                                              const Statistics& of) {
  Best top{-INFINITY_F, -INFINITY_F, count};
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const float r = group.in_basis(i);
    if (scored(r)) top = MergeBest()(top, Best{r, -INFINITY_F, i});
  }
  top = team.reduce(top, MergeBest());
  const double distance = of.scored > 1 ? double(top.best) - double(top.second) : 0.0;
  const Affine map = affine(a, of, 0.0);
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const int64_t at = group.response(i);
    if (at >= 0) a.advantage[at] = i == top.index ? float(distance * map.factor) : 0.0f;
  }
}

template <class Team>
__device__ __forceinline__ void one_group(const AdvantageArgs& a, const Team& team, int64_t group, int64_t from, int64_t count) {
  const Members members{a, from};
  const auto reward = [&](int64_t i) { return members.in_basis(i); };
  const Statistics of = statistics(team, count, reward, a.status);
  const double center = center_of(a, team, members, count, of);
  Statistics correct{0.0, 0.0, 0, true};
  if (a.length_bonus != 0.0) {
    const auto length = [&](int64_t i) {
      const float r = members.in_basis(i);
      return scored(r) && double(r) > a.correct_above ? float(members.length(i)) : NAN_F;
    };
    correct = statistics(team, count, length, static_cast<uint32_t*>(nullptr));
  }
  if (a.best_only) {
    best_of_group(a, team, members, count, of);
  } else {
    const Affine map = affine(a, of, center);
    for (int64_t i = team.index(); i < count; i += Team::SIZE) {
      const int64_t at = members.response(i);
      if (at < 0) {
        raise_status(a.status, STATUS_BAD_INDEX);
        continue;
      }
      const float r = a.rewards[at];
      const float baseline = a.center == ADVANTAGE_GREEDY ? a.greedy[at] : 0.0f;
      const double bonus = !correct.all_equal && double(r) > a.correct_above
                               ? a.length_bonus * (correct.mean - double(float(members.length(i)))) / correct.std
                               : 0.0;
      const bool taken = scored(r) && scored(baseline);
      a.advantage[at] = taken ? float((double(r) - (map.center + double(baseline))) * map.factor + bonus) : 0.0f;
    }
  }
  unsigned unscored = 0;
  for (int64_t i = team.index(); i < count; i += Team::SIZE) unscored += !scored(members.reward(i));
  unscored = unsigned(team.reduce(double(unscored), SumF64()));
  if (team.index() != 0) return;
  if (a.mean) a.mean[group] = float(of.mean);
  if (a.std) a.std[group] = float(of.std);
  if (a.flags) {
    a.flags[group] = uint8_t((of.all_equal ? ADVANTAGE_DEGENERATE : 0) | (of.scored == 1 ? ADVANTAGE_SINGLETON : 0) |
                             (unscored ? ADVANTAGE_NAN : 0));
  }
  if (a.counts && count > 0) {
    unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
    atomicAdd(counts, 1ull);
    if (of.all_equal) atomicAdd(counts + 1, 1ull);
    if (unscored) atomicAdd(counts + 2, (unsigned long long)(unscored));
  }
}

// The responses of a group, -1 for one whose offsets are not in order.
__device__ __forceinline__ int64_t count_of(const AdvantageArgs& a, int64_t group) {
  const int64_t from = a.offsets[group], to = a.offsets[group + 1];
  return from >= 0 && from <= to && to <= a.responses ? to - from : -1;
}

KERNEL_RESIDENT(advantage, AdvantageArgs, THREADS, 1) {
  for (int64_t first = int64_t(blockIdx.x) * GROUPS; first < a.groups; first += int64_t(gridDim.x) * GROUPS) {
    const int64_t own = first + warp_id();
    const int64_t own_count = own < a.groups ? count_of(a, own) : 0;
    if (own_count < 0 && lane_id() == 0) {
      raise_status(a.status, STATUS_BAD_GROUP);
      if (a.mean) a.mean[own] = 0.0f;
      if (a.std) a.std[own] = 0.0f;
      if (a.flags) a.flags[own] = ADVANTAGE_DEGENERATE;
    }
    if (own < a.groups && own_count >= 0 && own_count <= ADVANTAGE_WARP_GROUP) {
      one_group(a, ByWarp(), own, a.offsets[own], own_count);
    }
    for (int64_t group = first; group < first + GROUPS && group < a.groups; group++) {
      const int64_t count = count_of(a, group);  // the same in the whole block
      if (count > ADVANTAGE_WARP_GROUP) one_group(a, ByBlock<THREADS>(), group, a.offsets[group], count);
    }
  }
}

constexpr int BATCH_THREADS = 1024;

KERNEL(advantage_batch, AdvantageBatchArgs, BATCH_THREADS) {
  const ByBlock<BATCH_THREADS> team;
  const auto reward = [&](int64_t i) { return a.rewards[i]; };
  const Statistics all = statistics(team, a.responses, reward, static_cast<uint32_t*>(nullptr));
  double scored_ones = 0.0;
  for (int64_t i = threadIdx.x; i < a.responses; i += BATCH_THREADS) scored_ones += scored(a.rewards[i]) && a.rewards[i] != 0.0f;
  const double nonzero = team.reduce(scored_ones, SumF64());
  if (threadIdx.x == 0) *a.batch = AdvantageBatch{all.all_equal ? 1.0 : all.std, double(all.scored) / (nonzero > 1.0 ? nonzero : 1.0)};
}

struct Extent {
  Weighed of;
  float least, most;
};

struct MergeExtent {
  __device__ __forceinline__ Extent operator()(const Extent& a, const Extent& b) const {
    return Extent{SumWeighed()(a.of, b.of), fminf(a.least, b.least), fmaxf(a.most, b.most)};
  }
};

KERNEL(advantage_finish, AdvantageFinishArgs, BATCH_THREADS) {
  const ByBlock<BATCH_THREADS> team;
  if (a.finish == ADVANTAGE_FILTER_SCALE) {
    const double live = double(a.counts[0] - a.counts[1]), counted = a.per_responses ? double(a.responses) : double(a.counts[0]);
    const double ratio = live > 0.0 ? counted / live : a.cap, scale = ratio < a.cap ? ratio : a.cap;
    for (int64_t i = threadIdx.x; i < a.responses; i += BATCH_THREADS) a.advantage[i] = float(double(a.advantage[i]) * scale);
    return;
  }
  const auto weight = [&](int64_t i) {
    const int64_t tokens = !a.lengths ? 1 : a.lengths[i] > 0 ? a.lengths[i] : 0;
    return scored(a.rewards[i]) ? double(tokens) : 0.0;
  };
  Extent all{{0.0, 0.0}, INFINITY_F, -INFINITY_F};
  for (int64_t i = threadIdx.x; i < a.responses; i += BATCH_THREADS) {
    const double w = weight(i);
    const float x = a.advantage[i];
    if (w > 0.0) all = MergeExtent()(all, Extent{{w * double(x), w}, x, x});
  }
  all = team.reduce(all, MergeExtent());
  const bool all_equal = !(all.least < all.most);
  const double mean = all.of.weight > 0.0 ? all.of.sum / all.of.weight : 0.0;
  double squares = 0.0;
  for (int64_t i = threadIdx.x; i < a.responses; i += BATCH_THREADS) {
    const double w = weight(i), away = double(a.advantage[i]) - mean;
    if (w > 0.0) squares += w * away * away;
  }
  squares = team.reduce(squares, SumF64());
  const double variance = all_equal ? 0.0 : squares / (all.of.weight - 1.0);
  const double factor =
      all_equal ? 0.0 : a.finish == ADVANTAGE_WHITEN ? 1.0 / sqrt(variance + a.epsilon) : 1.0 / (sqrt(variance) + a.epsilon);
  if (a.std && threadIdx.x == 0) *a.std = sqrt(variance);
  __syncthreads();
  for (int64_t i = threadIdx.x; i < a.responses; i += BATCH_THREADS) {
    const bool counts = weight(i) > 0.0;
    a.advantage[i] = counts ? float((double(a.advantage[i]) - mean) * factor) : 0.0f;
  }
}

KERNEL(advantage_rewards, AdvantageRewardsArgs, THREADS) {
  for (int64_t i = thread_in_grid(); i < a.responses; i += threads_in_grid()) {
    double sum = 0.0;
    bool any = false;
    for (int64_t f = 0; f < a.functions; f++) {
      const float r = a.rewards[i * a.functions + f];
      if (a.columns) a.columns[f * a.responses + i] = r;
      if (r != r) continue;
      any = true;
      if (a.sums) sum += a.weights[f] * double(a.scores ? a.scores[f * a.responses + i] : r);
    }
    if (a.sums) a.sums[i] = any ? float(sum) : NAN_F;
  }
}
