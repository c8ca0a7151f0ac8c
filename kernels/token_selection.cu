// token_selection.cu: the tokens that Clip-Cov, KL-Cov and the top of the entropies pick, for policy_loss.cu.
//
// Contract   args/token_selection.h. Of a masked token only the mask is read. The same tokens are picked as on the host:
//            keys are the same words, among equal keys the first token goes first, a NaN is never picked.
// Floor      13 bytes a token in, 1 out: 3 us for 1 M tokens at 4.8 TB/s, which one block does not reach; it is one step in
//            front of an update that computes 10^12 operations, and one launch.
// Algorithm  One block. It sums advantages and log-probs (f64, a fixed tree), gives each token a key of 32 bits whose order
//            is the order of picking (the covariance, the entropy, a Philox number of the token's place), and finds the
//            key of the wanted rank by its bytes, the highest first: a histogram of 256 counts in shared memory, four
//            times. A last walk in the order of the tokens marks what lies before that key, and as many of the equal ones
//            as are left, a ballot and a scan of 32 warps a tile. Counts are integers: no order matters.
// Hazards    The quantile lies between two neighbours: the second is the next larger key, or the same one when it is
//            there more than once.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/token_selection.h"

constexpr int THREADS = TOKEN_SELECTION_BLOCK;
constexpr int WARPS = THREADS / WARP;
constexpr int DIGITS = 256;
constexpr unsigned NO_CANDIDATE = 0xffffffffu;

struct Moments {
  double advantage, logprob;
  unsigned long long live;
};

struct AddMoments {
  __device__ __forceinline__ Moments operator()(const Moments& a, const Moments& b) const {
    return Moments{a.advantage + b.advantage, a.logprob + b.logprob, a.live + b.live};
  }
};

struct AddCount {
  __device__ __forceinline__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a + b; }
};

struct LeastKey {
  __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return a < b ? a : b; }
};

// A word whose order is that of the floats.
__device__ __forceinline__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(unsigned key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

__device__ __forceinline__ unsigned key_of(const TokenSelectionArgs& a, int64_t token, float mean_advantage, float mean_logprob) {
  if (a.mask[token] == 0) return NO_CANDIDATE;
  if (a.kind == SELECT_TOP_ENTROPY) {
    const float entropy = a.entropy[token];
    return entropy != entropy ? NO_CANDIDATE : ordered(entropy);
  }
  const float advantage = a.advantage[token], logprob = a.logprob[token];
  const float cov = __fmul_rn(advantage - mean_advantage, logprob - mean_logprob);
  if (a.kind == SELECT_KL_COV) return cov != cov ? NO_CANDIDATE : ~ordered(cov);  // the largest first
  const float ratio = expf(logprob - a.old_logprob[token]);
  const bool clipped = (advantage > 0.0f && ratio > a.clip_high) || (advantage < 0.0f && ratio < a.clip_low);
  if (!(cov > a.least && cov < a.most) || clipped) return NO_CANDIDATE;
  const Random4 random = philox(a.seed, a.stream, a.number, uint32_t(token >> 2));
  const unsigned word = random.word[token & 3];
  return word < NO_CANDIDATE ? word : NO_CANDIDATE - 1;
}

struct Histogram {
  unsigned count[DIGITS];
};

// Where the wanted rank lies: thread 0's finding for all.
struct Found {
  unsigned long long before;  // candidates with a smaller key
  unsigned long long equal;   // with this one
  unsigned key;
};

// The key of the candidate of rank `rank`, from 0; there are more candidates than that.
__device__ Found key_of_rank(const TokenSelectionArgs& a, unsigned long long rank) {
  Histogram& histogram = block_shared<Histogram>();
  Found& found = block_shared<Found>();
  if (threadIdx.x == 0) found = Found{0, 0, 0u};
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < DIGITS) histogram.count[threadIdx.x] = 0;
    __syncthreads();
    const unsigned prefix = found.key;
    for (int64_t token = threadIdx.x; token < a.tokens; token += THREADS) {
      const unsigned key = a.keys[token];
      const bool fits = shift == 24 || key >> (shift + 8) == prefix >> (shift + 8);
      if (fits && key != NO_CANDIDATE) atomicAdd(&histogram.count[key >> shift & 255u], 1u);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned digit = 0;
      while (digit < DIGITS - 1 && found.before + histogram.count[digit] <= rank) found.before += histogram.count[digit++];
      found.key |= digit << shift;
      found.equal = histogram.count[digit];
    }
    __syncthreads();
  }
  return found;
}

struct WarpCounts {
  unsigned of_warp[WARPS];
};

// Marks the candidates before `key`, and the first `ties` that have it.
__device__ void mark(const TokenSelectionArgs& a, unsigned key, unsigned long long ties) {
  WarpCounts& counts = block_shared<WarpCounts>();
  unsigned long long seen = 0;
  for (int64_t tile = 0; tile < a.tokens; tile += THREADS) {
    const int64_t token = tile + threadIdx.x;
    const unsigned of_token = token < a.tokens ? a.keys[token] : NO_CANDIDATE;
    const bool tied = of_token == key && key != NO_CANDIDATE;
    const unsigned ballot = __ballot_sync(ALL_LANES, tied);
    __syncthreads();  // the last tile's counts are read
    if (lane_id() == 0) counts.of_warp[warp_id()] = __popc(ballot);
    __syncthreads();
    unsigned long long rank = seen + __popc(ballot & ((1u << lane_id()) - 1u));
    for (int warp = 0; warp < WARPS; warp++) {
      if (warp < warp_id()) rank += counts.of_warp[warp];
      seen += counts.of_warp[warp];
    }
    if (token < a.tokens) a.selected[token] = of_token < key || (tied && rank < ties) ? 1 : 0;
  }
}

KERNEL(token_selection, TokenSelectionArgs, THREADS) {
  Moments moments{0.0, 0.0, 0};
  for (int64_t token = threadIdx.x; token < a.tokens; token += THREADS) {
    if (a.mask[token] == 0) continue;
    moments.live++;
    if (a.kind == SELECT_TOP_ENTROPY) continue;
    moments.advantage += double(a.advantage[token]);
    moments.logprob += double(a.logprob[token]);
  }
  moments = block_reduce<THREADS>(moments, AddMoments());
  const double live = moments.live > 0 ? double(moments.live) : 1.0;
  const float mean_advantage = float(moments.advantage / live), mean_logprob = float(moments.logprob / live);
  unsigned long long candidates = 0;
  for (int64_t token = threadIdx.x; token < a.tokens; token += THREADS) {
    const unsigned key = key_of(a, token, mean_advantage, mean_logprob);
    a.keys[token] = key;
    candidates += key != NO_CANDIDATE;
  }
  candidates = block_reduce<THREADS>(candidates, AddCount());  // its barriers make the keys seen
  TokenSelectionReport report{moments.live, candidates, 0, 0.0f, 0u};
  if (candidates == 0) {
    mark(a, 0u, 0);
  } else if (a.kind == SELECT_TOP_ENTROPY) {
    const double place = a.share * double(candidates - 1);
    const unsigned long long below = (unsigned long long)(floor(place));
    const Found low = key_of_rank(a, below);
    unsigned next = NO_CANDIDATE;
    for (int64_t token = threadIdx.x; token < a.tokens; token += THREADS) {
      const unsigned key = a.keys[token];
      if (key > low.key && key < next) next = key;
    }
    next = block_reduce<THREADS>(next, LeastKey());
    if (below + 1 < low.before + low.equal || next == NO_CANDIDATE) next = low.key;
    const double from = double(from_ordered(low.key)), to = double(from_ordered(next));
    report.threshold = float(from + (to - from) * (place - floor(place)));
    unsigned long long picked = 0;
    for (int64_t token = threadIdx.x; token < a.tokens; token += THREADS) {
      const unsigned key = a.keys[token];
      const bool is_picked = key != NO_CANDIDATE && from_ordered(key) >= report.threshold;
      a.selected[token] = is_picked ? 1 : 0;
      picked += is_picked;
    }
    report.picked = block_reduce<THREADS>(picked, AddCount());
  } else {
    const unsigned long long wanted = (unsigned long long)(a.share * double(moments.live));
    const unsigned long long count = wanted < 1 ? 1 : wanted > moments.live ? moments.live : wanted;
    report.picked = count < candidates ? count : candidates;
    const Found last = key_of_rank(a, report.picked - 1);
    mark(a, last.key, report.picked - last.before);
  }
  if (threadIdx.x == 0) *a.report = report;
}
