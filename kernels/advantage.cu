// advantage.cu: what a reward is worth beside its group's.
//
// Contract   args/advantage.h. Statistics in f64, in two passes; a response that is not scored (NaN) is in none of them and
//            has advantage 0. A group never looks at another, except through `batch_std`.
// Floor      8 bytes a response: for 64 k responses the launch itself.
// Algorithm  The estimator is data: a centre and a factor. A block takes eight groups in a row. A warp does a small one; then
//            the block does the large ones among the eight together. Lane l adds elements l, l + 32, ... in order, then a
//            tree: the order is a function of the group's size. New estimators with one factor a group are one more
//            AdvantageFactor; those with a baseline a token are another kernel.
// Hazards    A group whose rewards are all equal is told by max == min: the rounding of a mean divided by 1e-6 would be
//            a gradient. Offsets out of order read nothing. Counts are integers: their atomics have no order.
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
  return 1.0 / ((std > a.least_std ? std : a.least_std) + a.epsilon);
}

__device__ __forceinline__ Affine affine(const AdvantageArgs& a, const Statistics& group) {
  const bool by_std = a.factor == ADVANTAGE_OVER_STD;
  if (group.scored == 1 && a.singleton_reward) return Affine{0.0, by_std ? over_std(a, a.batch_std ? *a.batch_std : 1.0) : 1.0};
  if (group.all_equal) return Affine{group.mean, 0.0};
  if (by_std) return Affine{group.mean, over_std(a, a.batch_std ? *a.batch_std : group.std)};
  const double others = double(group.scored - 1);
  return Affine{group.mean, a.factor == ADVANTAGE_LEAVE_ONE_OUT ? double(group.scored) / others : 1.0};
}

template <class Team>
__device__ __forceinline__ void one_group(const AdvantageArgs& a, const Team& team, int64_t group, int64_t from, int64_t count) {
  const auto response = [&](int64_t i) {
    const int64_t place = from + i;
    if (!a.order) return place;
    const int64_t of_place = a.order[place];
    return of_place >= 0 && of_place < a.responses ? of_place : int64_t(-1);
  };
  const auto reward = [&](int64_t i) {
    const int64_t at = response(i);
    return at >= 0 ? a.rewards[at] : NAN_F;
  };
  const Statistics of = statistics(team, count, reward, a.status);
  const Affine map = affine(a, of);
  for (int64_t i = team.index(); i < count; i += Team::SIZE) {
    const int64_t at = response(i);
    if (at < 0) {
      raise_status(a.status, STATUS_BAD_INDEX);
    } else {
      const float r = a.rewards[at];
      a.advantage[at] = scored(r) ? float((double(r) - map.center) * map.factor) : 0.0f;
    }
  }
  if (team.index() != 0) return;
  if (a.mean) a.mean[group] = float(of.mean);
  if (a.std) a.std[group] = float(of.std);
  const bool unscored = int64_t(of.scored) < count;
  if (a.flags) {
    a.flags[group] = uint8_t((of.all_equal ? ADVANTAGE_DEGENERATE : 0) | (of.scored == 1 ? ADVANTAGE_SINGLETON : 0) |
                             (unscored ? ADVANTAGE_NAN : 0));
  }
  if (a.counts && count > 0) {
    unsigned long long* counts = reinterpret_cast<unsigned long long*>(a.counts);
    atomicAdd(counts, 1ull);
    if (of.all_equal) atomicAdd(counts + 1, 1ull);
    if (unscored) atomicAdd(counts + 2, (unsigned long long)(count - int64_t(of.scored)));
  }
}

// The responses of a group, -1 for one whose offsets are not in order.
__device__ __forceinline__ int64_t count_of(const AdvantageArgs& a, int64_t group) {
  const int64_t from = a.offsets[group], to = a.offsets[group + 1];
  return from >= 0 && from <= to && to <= a.responses ? to - from : -1;
}

KERNEL(advantage, AdvantageArgs, THREADS) {
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

KERNEL(advantage_batch_std, AdvantageBatchArgs, BATCH_THREADS) {
  const auto reward = [&](int64_t i) { return a.rewards[i]; };
  const Statistics all = statistics(ByBlock<BATCH_THREADS>(), a.responses, reward, static_cast<uint32_t*>(nullptr));
  if (threadIdx.x == 0) *a.std = all.std;
}
