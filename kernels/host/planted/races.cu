// races.cu: sums into global memory by several threads. All leave out = in and *counter = blocks * BLOCK, or as said.
#include "planted.h"

namespace {

template <bool correct>
__device__ void add_in_block(const PlantedArgs& a) {
  a.out[global_thread()] = a.in[global_thread()];
  if (blockIdx.x != 0) return;
  if (correct) {
    atomicAdd(a.counter, gridDim.x);
  } else {
    *a.counter = *a.counter + gridDim.x;
  }
}

template <bool correct>
__device__ void add_between_blocks(const PlantedArgs& a) {
  a.out[global_thread()] = a.in[global_thread()];
  if (threadIdx.x != 0) return;
  if (correct) {
    atomicAdd(a.counter, BLOCK);
  } else {
    *a.counter = *a.counter + BLOCK;
  }
}

// The block that finishes last copies the row of the first: the atomic says who is last, the fence makes rows visible.
template <bool correct>
__device__ void last_block_done(const PlantedArgs& a) {
  struct Last {
    bool here;
  };
  Last& last = block_shared<Last>();
  a.out[global_thread()] = a.in[global_thread()];
  if (correct) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last.here = atomicAdd(a.counter, BLOCK) == (gridDim.x - 1) * BLOCK;
  __syncthreads();
  if (last.here) {
    if (correct) __threadfence();
    a.out[threadIdx.x] = a.out[threadIdx.x] + 0.0f;
  }
}

}  // namespace

PLANTED(racy_add_in_block, add_in_block)
PLANTED(racy_add_between_blocks, add_between_blocks)
PLANTED(last_block_without_fence, last_block_done)
