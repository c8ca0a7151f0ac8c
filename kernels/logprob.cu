// logprob.cu: what a policy gradient needs from the logits, in one read of them; and their gradient in place.
//
// Contract   args/logprob.h. A masked row (negative target) is never read; its outputs and gradient are 0. A target
//            beyond the vocabulary or a bad temperature masks the row and sets a status bit. A row of nothing but -inf has
//            log-prob and logsumexp -inf, entropy 0, argmax -1 and gradient 0. NaN stays in its row.
// Floor      forward: rows * vocab * sizeof(T) bytes read, 16 written a row. Backward: one read, one write. Both in
//            one launch: the same, where the second read finds the row in L2 (132 rows of 304 KB are 40 MB of 50).
// Algorithm  softmax_row.cuh: a warp sums units of 4096 logits, in 16-byte loads, four of them in flight on four
//            independent online states; one exponential (one instruction) and about ten instructions a logit. A row takes
//            up to eight warps, which is one block of 256 threads: chain c of its units is warp c's. With fewer rows
//            than keep the device busy the units are spread over blocks (logprob_units) and a second launch merges them
//            (logprob_merge): the same units and the same tree, so the same bits, whatever the number of rows.
//            The gradient needs no order: p is taken from the saved logsumexp, an element at a time, in tiles of 8192.
//            Both together: the block that summed a row differentiates it, its end first, while it is in L2.
// Hazards    -inf - -inf: a state that saw nothing compares with 0 and its power is exactly 0. A row that is not
//            aligned must not change the order of its sums: vectors are shifted into place, its first and last ids
//            read by single elements. fmaxf drops NaN where exponents must not. Unit and row indices pass 2^31.
//            A cluster of two blocks could keep a bf16 row in shared memory for both passes; L2 does it meanwhile.
// Measured   not yet run on a GPU.
#include "softmax_row.cuh"

constexpr int THREADS = LOGPROB_CHAINS * WARP;
constexpr int RESIDENT = 3;       // blocks: 24 warps with 2 KB of loads each, above what hides the memory's latency
constexpr int RESIDENT_BOTH = 2;  // the pass that writes needs more registers, and fewer loads in flight

// What row `i` of the logits is for.
struct RowTask {
  int64_t output;  // row of targets and outputs; negative: none
  int32_t target;  // negative: masked
  float temperature;
  uint32_t status;
};

__device__ __forceinline__ RowTask row_task(const int32_t* targets, const int32_t* row_of, const SoftmaxRule& rule,
                                            int64_t vocab, int64_t i) {
  const int64_t output = row_of ? int64_t(row_of[i]) : i;
  if (output < 0) return RowTask{-1, -1, 1.0f, 0};
  const int32_t target = targets[output];
  if (target < 0) return RowTask{output, -1, 1.0f, 0};
  if (target >= vocab) return RowTask{output, -1, 1.0f, STATUS_BAD_TARGET};
  const float temperature = rule.temperatures ? rule.temperatures[output] : rule.temperature;
  if (!positive_and_finite(temperature)) return RowTask{output, -1, 1.0f, STATUS_NON_FINITE};
  return RowTask{output, target, temperature, 0};
}

__device__ __forceinline__ void write_summary(const LogprobForwardArgs& a, const RowTask& task, const RowSummary& row) {
  if (task.output < 0) return;
  a.logprob[task.output] = row.logprob;
  a.logsumexp[task.output] = row.logsumexp;
  if (a.entropy) a.entropy[task.output] = row.entropy;
  if (a.argmax) a.argmax[task.output] = row.argmax;
  if (task.status) raise_status(a.status, task.status);
}

__device__ __forceinline__ RowSummary masked_summary() { return RowSummary{0.0f, 0.0f, 0.0f, -1}; }

// ---- forward: a block a row ----

template <class T>
__device__ __forceinline__ void forward(const LogprobForwardArgs& a) {
  for (int64_t i = blockIdx.x; i < a.rows; i += gridDim.x) {
    const RowTask task = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
    if (task.target < 0) {
      if (threadIdx.x == 0) write_summary(a, task, masked_summary());
      continue;  // the whole block
    }
    const RowRule rule = row_rule(a.softmax, task.temperature);
    const T* row = static_cast<const T*>(a.logits) + i * a.vocab;
    const OnlineSoftmax sums = sum_row(row, a.vocab, rule, static_cast<OnlineSoftmax*>(nullptr));
    if (threadIdx.x == 0) {  // read again what would have taken registers from the loads
      const RowTask again = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
      write_summary(a, again, summarize(sums, logit_at(row, again.target, rule), rule));
    }
  }
}

// ---- forward: a warp a unit, then a warp a row ----

template <class T>
__device__ __forceinline__ void units(const LogprobForwardArgs& a) {
  const int64_t units = units_of(a.vocab), warps = threads_in_grid() / WARP;
  for (int64_t item = thread_in_grid() / WARP; item < a.rows * units; item += warps) {
    const int64_t i = item / units;
    const RowTask task = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
    if (task.target < 0) continue;  // the whole warp
    const RowRule rule = row_rule(a.softmax, task.temperature);
    const T* row = static_cast<const T*>(a.logits) + i * a.vocab;
    const OnlineSoftmax sums = sum_unit(row, a.vocab, unsigned(item % units), rule);
    if (lane_id() == 0) a.units[item] = sums;
  }
}

template <class T>
__device__ __forceinline__ void merge_units(const LogprobForwardArgs& a) {
  const int64_t units = units_of(a.vocab), warps = threads_in_grid() / WARP;
  const int chains = chains_of(unsigned(units));
  for (int64_t i = thread_in_grid() / WARP; i < a.rows; i += warps) {
    const RowTask task = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
    if (task.target < 0) {
      if (lane_id() == 0) write_summary(a, task, masked_summary());
      continue;  // the whole warp
    }
    const RowRule rule = row_rule(a.softmax, task.temperature);
    const OnlineSoftmax* of_row = a.units + i * units;
    OnlineSoftmax chain = empty_softmax();
    for (int64_t unit = lane_id(); lane_id() < chains && unit < units; unit += LOGPROB_CHAINS) {
      chain = unit < LOGPROB_CHAINS ? of_row[unit] : merge(chain, of_row[unit], rule.scale);
    }
    OnlineSoftmax sums = chain;  // lane 0's is the first chain
    for (int other = 1; other < chains; other++) {
      const OnlineSoftmax next{__shfl_sync(ALL_LANES, chain.max, other), __shfl_sync(ALL_LANES, chain.sum, other),
                               __shfl_sync(ALL_LANES, chain.weighted, other), __shfl_sync(ALL_LANES, chain.argmax, other)};
      sums = merge(sums, next, rule.scale);
    }
    const T* row = static_cast<const T*>(a.logits) + i * a.vocab;
    if (lane_id() == 0) write_summary(a, task, summarize(sums, logit_at(row, task.target, rule), rule));
  }
}

// ---- the gradient ----

// dz = p (constant + slope y) with p = 2^y, and `once` more at the target.
struct Gradient {
  float inverse_temperature, logsumexp, constant, slope, once;
  int32_t target;
  bool zero;  // the row gets 0 and is not read
};

__device__ __forceinline__ Gradient zero_gradient() { return Gradient{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, -1, true}; }

__device__ __forceinline__ Gradient gradient_of(const RowRule& rule, int32_t target, float logsumexp, float entropy,
                                                float dlogprob, float dentropy) {
  if ((dlogprob == 0.0f && dentropy == 0.0f) || logsumexp == -INFINITY_F) return zero_gradient();
  const double inverse = inverse_temperature(rule);
  // With no entropy gradient the saved entropy may be anything.
  const double constant = dentropy == 0.0f ? double(dlogprob) : fma(double(dentropy), double(entropy), double(dlogprob));
  return Gradient{float(inverse),
                  logsumexp,
                  float(-inverse * constant),
                  float(-inverse * double(dentropy) * 0.6931471805599453),
                  float(inverse * double(dlogprob)),
                  target,
                  false};
}

// The gradient by one logit; `once` at the target, else 0. CAPPED is the same for a whole launch.
template <bool CAPPED>
__device__ __forceinline__ float differentiate(float z, float once, const Gradient& g, float softcap) {
  const float t = CAPPED ? tanhf(__fdiv_rn(z, softcap)) : 0.0f;
  const float log_p = fmaf(CAPPED ? __fmul_rn(softcap, t) : z, g.inverse_temperature, -g.logsumexp);
  const float y = max_nan(__fmul_rn(log_p, 1.4426950408889634f), LEAST_EXPONENT);
  const float dz = fmaf(exp2_flushed(y), fmaf(g.slope, y, g.constant), once);
  return CAPPED ? __fmul_rn(dz, fmaf(-t, t, 1.0f)) : dz;
}

// Where the ids of a tile are read and written by one or two 16-byte operations of SIZE elements.
template <class In, class Out>
struct Groups {
  static constexpr int SIZE = 16 / (sizeof(In) < sizeof(Out) ? sizeof(In) : sizeof(Out));
  static constexpr int IN = SIZE / Vec16<In>::SIZE, OUT = SIZE / Vec16<Out>::SIZE;
  int64_t start, count;  // the first id of the first group; groups

  __device__ __forceinline__ Groups(const In* logits, const Out* dlogits, int64_t first, int64_t end) {
    const int64_t head = sizeof(In) < sizeof(Out) ? ragged_head(logits + first, end - first) : ragged_head(dlogits + first, end - first);
    start = aligned16(logits + first + head) && aligned16(dlogits + first + head) ? first + head : end;
    count = (end - start) / SIZE;
  }
  template <class T>
  static __device__ __forceinline__ bool aligned16(const T* address) {
    return (reinterpret_cast<unsigned long long>(address) & 15u) == 0;
  }
  static __device__ __forceinline__ void store(Out* address, const float (&dz)[SIZE]) {
#pragma unroll
    for (int i = 0; i < OUT; i++) {
      const int first = i * Vec16<Out>::SIZE;
      __stwb(reinterpret_cast<uint4*>(address + first), narrow<Out>(dz + first));
    }
  }
};

// Zeros at the ids [first, end) of a row, by a block.
template <class In, class Out>
__device__ __forceinline__ void clear_tile(const In* logits, Out* dlogits, int64_t first, int64_t end) {
  const Groups<In, Out> groups(logits, dlogits, first, end);
  const float zeros[Groups<In, Out>::SIZE] = {};
  for (int64_t id = first + threadIdx.x; id < groups.start; id += blockDim.x) dlogits[id] = from_float<Out>(0.0f);
  for (int64_t group = threadIdx.x; group < groups.count; group += blockDim.x) {
    groups.store(dlogits + groups.start + group * groups.SIZE, zeros);
  }
  for (int64_t id = groups.start + groups.count * groups.SIZE + threadIdx.x; id < end; id += blockDim.x) {
    dlogits[id] = from_float<Out>(0.0f);
  }
}

// The gradients of the ids [first, end) of a row, by a block. Element by element: alignment cannot change a bit.
template <bool CAPPED, class In, class Out>
__device__ __forceinline__ void differentiate_ids(const In* logits, Out* dlogits, int64_t first, int64_t end, const Gradient& g,
                                                  const RowRule& rule) {
  const Groups<In, Out> groups(logits, dlogits, first, end);
  // Four loads in flight; a softcap needs its registers elsewhere, and its arithmetic hides more.
  constexpr int SIZE = groups.SIZE, BATCH = CAPPED ? 16 / SIZE : 4 / groups.IN;
  const BannedRange banned = banned_within(rule, first, end);
  const auto one = [&](int64_t id) {
    float dz = differentiate<CAPPED>(to_float(logits[id]), id == g.target ? g.once : 0.0f, g, rule.softcap);
    for (unsigned place = banned.from; place < banned.to; place++) {
      if (rule.banned[place] == id) dz = 0.0f;
    }
    dlogits[id] = from_float<Out>(dz);
  };
  for (int64_t id = first + threadIdx.x; id < groups.start; id += blockDim.x) one(id);
  for (int64_t id = groups.start + groups.count * SIZE + threadIdx.x; id < end; id += blockDim.x) one(id);
  for (int64_t batch = threadIdx.x; batch < groups.count; batch += int64_t(BATCH) * blockDim.x) {
    uint4 words[BATCH][groups.IN];  // loaded before any is stored: the compiler must think that they overlap
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int64_t group = batch + int64_t(j) * blockDim.x;
      if (group < groups.count) {
        const uint4* address = reinterpret_cast<const uint4*>(logits + groups.start + group * SIZE);
#pragma unroll
        for (int i = 0; i < groups.IN; i++) words[j][i] = address[i];
      }
    }
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
      const int64_t group = batch + int64_t(j) * blockDim.x, id = groups.start + group * SIZE;
      if (group >= groups.count) break;
      float z[SIZE], dz[SIZE];
#pragma unroll
      for (int i = 0; i < groups.IN; i++) {
        float some[Vec16<In>::SIZE];
        widen<In>(words[j][i], some);
#pragma unroll
        for (int e = 0; e < Vec16<In>::SIZE; e++) z[i * Vec16<In>::SIZE + e] = some[e];
      }
#pragma unroll
      for (int e = 0; e < SIZE; e++) dz[e] = differentiate<CAPPED>(z[e], 0.0f, g, rule.softcap);
      const unsigned place = unsigned(g.target) - unsigned(id);  // ids fit 31 bits
      if (place < unsigned(SIZE)) {  // once a row: what no other element is asked
#pragma unroll
        for (int e = 0; e < SIZE; e++) {
          if (unsigned(e) == place) dz[e] = differentiate<CAPPED>(z[e], g.once, g, rule.softcap);
        }
      }
      for (unsigned at = banned.from; at < banned.to; at++) {
        const int64_t e_banned = rule.banned[at] - id;
#pragma unroll
        for (int e = 0; e < SIZE; e++) {
          if (e == e_banned) dz[e] = 0.0f;
        }
      }
      groups.store(dlogits + id, dz);
    }
  }
}

// What is the same for a row is asked once a tile, not once an id.
template <class In, class Out>
__device__ __forceinline__ void differentiate_tile(const In* logits, Out* dlogits, int64_t first, int64_t end,
                                                   const Gradient& g, const RowRule& rule) {
  if (g.zero) {
    clear_tile(logits, dlogits, first, end);
  } else if (rule.softcap > 0.0f) {
    differentiate_ids<true>(logits, dlogits, first, end, g, rule);
  } else {
    differentiate_ids<false>(logits, dlogits, first, end, g, rule);
  }
}

__device__ __forceinline__ int64_t tiles_of(int64_t vocab) { return (vocab + LOGPROB_TILE - 1) / LOGPROB_TILE; }

template <class In, class Out>
__device__ __forceinline__ void backward(const LogprobBackwardArgs& a) {
  const int64_t tiles = tiles_of(a.vocab);
  for (int64_t item = blockIdx.x; item < a.rows * tiles; item += gridDim.x) {
    const int64_t i = item / tiles, first = item % tiles * LOGPROB_TILE;
    const int64_t end = first + LOGPROB_TILE < a.vocab ? first + LOGPROB_TILE : a.vocab;
    const RowTask task = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
    const RowRule rule = row_rule(a.softmax, task.temperature);
    Gradient g = zero_gradient();
    if (task.target >= 0) {
      g = gradient_of(rule, task.target, a.logsumexp[task.output], a.entropy ? a.entropy[task.output] : 0.0f,
                      a.dlogprob ? a.dlogprob[task.output] : 0.0f, a.dentropy ? a.dentropy[task.output] : 0.0f);
    }
    differentiate_tile(static_cast<const In*>(a.logits) + i * a.vocab, static_cast<Out*>(a.dlogits) + i * a.vocab, first, end,
                       g, rule);
  }
}

// ---- both: a block a row ----

template <class In, class Out>
__device__ __forceinline__ void both(const LogprobBothArgs& all) {
  const LogprobForwardArgs& a = all.forward;
  for (int64_t i = blockIdx.x; i < a.rows; i += gridDim.x) {
    const RowTask task = row_task(a.targets, a.row_of, a.softmax, a.vocab, i);
    const RowRule rule = row_rule(a.softmax, task.temperature);
    const In* row = static_cast<const In*>(a.logits) + i * a.vocab;
    RowSummary summary = masked_summary();
    Gradient g = zero_gradient();
    if (task.target >= 0) {  // the same for the whole block
      const OnlineSoftmax sums = sum_row(row, a.vocab, rule, static_cast<OnlineSoftmax*>(nullptr));
      summary = summarize(sums, logit_at(row, task.target, rule), rule);
      g = gradient_of(rule, task.target, summary.logsumexp, summary.entropy, all.dlogprob ? all.dlogprob[task.output] : 0.0f,
                      all.dentropy ? all.dentropy[task.output] : 0.0f);
      __syncthreads();  // every thread has read the target's logit
    }
    if (threadIdx.x == 0) write_summary(a, task, summary);
    for (int64_t tile = tiles_of(a.vocab) - 1; tile >= 0; tile--) {
      const int64_t first = tile * LOGPROB_TILE, end = first + LOGPROB_TILE < a.vocab ? first + LOGPROB_TILE : a.vocab;
      differentiate_tile(row, static_cast<Out*>(all.dlogits) + i * a.vocab, first, end, g, rule);
    }
  }
}

#define LOGPROB(T, suffix)                                                                            \
  KERNEL_RESIDENT(logprob_forward_##suffix, LogprobForwardArgs, THREADS, RESIDENT) { forward<T>(a); } \
  KERNEL_RESIDENT(logprob_units_##suffix, LogprobForwardArgs, THREADS, RESIDENT) { units<T>(a); }     \
  KERNEL(logprob_merge_##suffix, LogprobForwardArgs, THREADS) { merge_units<T>(a); }
LOGPROB(float, f32)
LOGPROB(bf16, bf16)
LOGPROB(f16, f16)

#define LOGPROB_BACKWARD(In, Out, suffix) \
  KERNEL(logprob_backward_##suffix, LogprobBackwardArgs, THREADS) { backward<In, Out>(a); }
LOGPROB_BACKWARD(float, float, f32)
LOGPROB_BACKWARD(bf16, bf16, bf16)
LOGPROB_BACKWARD(f16, f16, f16)
LOGPROB_BACKWARD(float, bf16, f32_bf16)
LOGPROB_BACKWARD(float, f16, f32_f16)
LOGPROB_BACKWARD(bf16, float, bf16_f32)
LOGPROB_BACKWARD(f16, float, f16_f32)

#define LOGPROB_BOTH(In, Out, suffix) \
  KERNEL_RESIDENT(logprob_both_##suffix, LogprobBothArgs, THREADS, RESIDENT_BOTH) { both<In, Out>(a); }
LOGPROB_BOTH(float, float, f32)
LOGPROB_BOTH(bf16, bf16, bf16)
LOGPROB_BOTH(f16, f16, f16)
LOGPROB_BOTH(float, bf16, f32_bf16)
LOGPROB_BOTH(float, f16, f32_f16)
