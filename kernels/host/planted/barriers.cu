// barriers.cu: barriers that are missing, divergent, or not reached.
#include "planted.h"

namespace {

struct Row {
  float at[BLOCK];
};

// out = in, each block reversed.
template <bool correct>
__device__ void reverse(const PlantedArgs& a) {
  Row& row = block_shared<Row>();
  row.at[threadIdx.x] = a.in[global_thread()];
  if (correct) __syncthreads();
  a.out[global_thread()] = row.at[BLOCK - 1 - threadIdx.x];
}

// out = in, each block rotated by four: four rounds through one buffer, so the barrier between the reads of one round
// and the writes of the next is the one that is easily forgotten.
template <bool correct>
__device__ void rotate(const PlantedArgs& a) {
  struct Ring {
    float at[BLOCK];
  };
  Ring& ring = block_shared<Ring>();
  float value = a.in[global_thread()];
  for (int round = 0; round < 4; ++round) {
    ring.at[threadIdx.x] = value;
    __syncthreads();
    value = ring.at[(threadIdx.x + 1) % BLOCK];
    if (correct) __syncthreads();
  }
  a.out[global_thread()] = value;
}

// out = in.
template <bool correct>
__device__ void two_barriers(const PlantedArgs& a) {
  if (correct || threadIdx.x < BLOCK / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in. A thread that leaves while others have yet to meet; the fixed one leaves with its whole block.
template <bool correct>
__device__ void leave_early(const PlantedArgs& a) {
  if (correct ? blockIdx.x >= gridDim.x : threadIdx.x == 3) return;
  __syncthreads();
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in. The threads that do not take part in a barrier leave after the others have come to it.
template <bool correct>
__device__ void skip_barrier(const PlantedArgs& a) {
  if (correct || threadIdx.x < BLOCK / 2) __syncthreads();
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in. Shared memory read before anybody wrote it.
template <bool correct>
__device__ void read_unwritten(const PlantedArgs& a) {
  struct Scratch {
    float at[BLOCK];
  };
  Scratch& scratch = block_shared<Scratch>();
  if (correct) scratch.at[threadIdx.x] = 0.0f;
  a.out[global_thread()] = a.in[global_thread()] + scratch.at[threadIdx.x];
}

}  // namespace

PLANTED(missing_barrier_write_read, reverse)
PLANTED(missing_barrier_read_write, rotate)
PLANTED(divergent_barrier, two_barriers)
PLANTED(early_exit, leave_early)
PLANTED(skipped_barrier, skip_barrier)
PLANTED(unwritten_shared, read_unwritten)
