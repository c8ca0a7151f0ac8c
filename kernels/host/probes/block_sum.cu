// block_sum.cu: a reduction as kernels write it, through shuffles, shared memory and barriers. Used to test the engine
// and to time it: eight rendezvous for each thread and few instructions between them.
#include "cuda_on_host.h"

struct BlockSumArgs {
  const float* values;  // [blocks, threads]
  float* sums;          // [blocks]
};

KERNEL(probe_block_sum, BlockSumArgs, 1024) {
  struct Partials {
    float of_warp[32];
  };
  Partials& partials = block_shared<Partials>();
  const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  float sum = a.values[(size_t)blockIdx.x * blockDim.x + thread];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (lane == 0) partials.of_warp[warp] = sum;
  __syncthreads();
  if (thread == 0) {
    float total = 0.0f;
    for (unsigned i = 0; i < blockDim.x / 32; ++i) total += partials.of_warp[i];
    a.sums[blockIdx.x] = total;
  }
  __syncthreads();
}
