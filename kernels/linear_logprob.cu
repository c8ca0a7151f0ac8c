// linear_logprob.cu: what the linear log-prob needs beside its matrix products and logprob.cu.
//
// Contract   args/linear_logprob.h. The launch code takes chunks of live rows through: gather of hidden states, logits =
//            hidden * weight^T in f32 (cuBLASLt), logprob.cu on them in place, then dhidden = dlogits * weight and
//            dweight += dlogits^T * hidden, the latter in f32 into the caller's buffer. For 16-bit operands dlogits is
//            rounded once, to their type, by the kernel that computes it; logits are never rounded.
// Floor      the products: 2 rows width vocab floating-point operations forward, 6 with gradients that are known before, 8
//            in two passes. 14 bytes a logit pass through memory in between, 2 % of the products' time at width 4096.
// Algorithm  live_rows: one block scans the targets (and gradients) and writes the indices of live rows in order; nothing
//            goes to the host. Where the host knows how many rows are live it says so and only so many are multiplied;
//            where it does not, the chunks cover all rows and dead ones, packed behind the live ones, cost their share
//            of the products on zeros, but no exponential and no read of their hidden states.
//            gather, scatter: a thread an element with the grid as its stride. add_columns: a thread a column.
// Hazards    A row index times the width passes 2^31. dweight is a sum over chunks: its bits depend on the budget that
//            decides them, as on the CPU; everything else is row by row, as far as the product's own bits are.
//            The place of a hand-written forward: a product on the tensor cores that keeps (max, sum, weighted) of
//            128 x 256 tiles of logits in registers and never writes them. It would write OnlineSoftmax units, with a unit
//            of 256 logits, and logprob_merge would finish: so it is one more kernel beside logprob_units and no second
//            path. It saves 4 bytes a logit of traffic; the backward pass would still want chunks.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/linear_logprob.h"

constexpr int THREADS = 256;
constexpr int SCAN_THREADS = 1024;

struct WarpCounts {
  int of_warp[SCAN_THREADS / WARP];
};

KERNEL(linear_logprob_rows, LiveRowsArgs, SCAN_THREADS) {
  int* counts = block_shared<WarpCounts>().of_warp;
  int64_t found = 0;  // the same in all threads
  for (int64_t first = 0; first < a.rows; first += SCAN_THREADS) {
    const int64_t row = first + threadIdx.x;
    bool live = row < a.rows && a.targets[row] >= 0;
    if (live && (a.dlogprob || a.dentropy)) {
      live = (a.dlogprob && a.dlogprob[row] != 0.0f) || (a.dentropy && a.dentropy[row] != 0.0f);
    }
    const unsigned of_warp = __ballot_sync(ALL_LANES, live);
    __syncthreads();  // the counts of the round before were read
    if (lane_id() == 0) counts[warp_id()] = __popc(of_warp);
    __syncthreads();
    int64_t before = found;
    for (int warp = 0; warp < SCAN_THREADS / WARP; warp++) {
      if (warp < warp_id()) before += counts[warp];
      found += counts[warp];
    }
    const int64_t place = before + __popc(of_warp & ((1u << lane_id()) - 1u));
    if (live && place < a.capacity) a.row_of[place] = int32_t(row);
  }
  for (int64_t place = found + threadIdx.x; place < a.capacity; place += SCAN_THREADS) a.row_of[place] = -1;
  if (threadIdx.x == 0 && found > a.capacity) raise_status(a.status, STATUS_BAD_INDEX);
}

template <class T>
__device__ __forceinline__ void gather_rows(const GatherLiveArgs& a) {
  for (int64_t i = thread_in_grid(); i < a.count * a.width; i += threads_in_grid()) {
    const int64_t row = a.row_of[i / a.width];
    T* out = static_cast<T*>(a.out) + i;
    *out = row >= 0 && row < a.rows ? static_cast<const T*>(a.x)[row * a.width + i % a.width] : from_float<T>(0.0f);
  }
}

KERNEL(linear_logprob_scatter, ScatterLiveArgs, THREADS) {
  for (int64_t i = thread_in_grid(); i < a.count * a.width; i += threads_in_grid()) {
    const int64_t row = a.row_of[i / a.width];
    if (row >= 0 && row < a.rows) a.out[row * a.width + i % a.width] = a.x[i];
  }
}

template <class T>
__device__ __forceinline__ void add_columns(const AddColumnsArgs& a) {
  for (int64_t column = thread_in_grid(); column < a.width; column += threads_in_grid()) {
    float sum = a.sum[column];
    const T* x = static_cast<const T*>(a.x) + column;
    for (int64_t row = 0; row < a.rows; row++) sum += to_float(x[row * a.width]);
    a.sum[column] = sum;
  }
}

#define LINEAR_LOGPROB(T, suffix)                                              \
  KERNEL(linear_logprob_gather_##suffix, GatherLiveArgs, THREADS) { gather_rows<T>(a); } \
  KERNEL(linear_logprob_bias_##suffix, AddColumnsArgs, THREADS) { add_columns<T>(a); }
LINEAR_LOGPROB(float, f32)
LINEAR_LOGPROB(bf16, bf16)
LINEAR_LOGPROB(f16, f16)
