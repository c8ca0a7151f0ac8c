// warps.cu: collectives with a mask that does not fit.
#include "planted.h"

namespace {

// out = in, neighbours exchanged. Half a warp calls with everybody's mask; fixed: each half with its own.
template <bool correct>
__device__ void half_with_full_mask(const PlantedArgs& a) {
  const unsigned all = 0xffffffffu;
  const float mine = a.in[global_thread()];
  float theirs;
  if (threadIdx.x % 32 < 16) {
    theirs = __shfl_xor_sync(correct ? 0x0000ffffu : all, mine, 1);
  } else {
    theirs = __shfl_xor_sync(correct ? 0xffff0000u : all, mine, 1);
  }
  a.out[global_thread()] = theirs;
}

// out = in, neighbours exchanged.
template <bool correct>
__device__ void mask_without_caller(const PlantedArgs& a) {
  a.out[global_thread()] = __shfl_xor_sync(correct ? 0xffffffffu : 0x7fffffffu, a.in[global_thread()], 1);
}

// out = in, neighbours exchanged. A lane that has left is named all the same.
template <bool correct>
__device__ void lane_has_left(const PlantedArgs& a) {
  if (!correct && threadIdx.x == 5) return;
  a.out[global_thread()] = __shfl_xor_sync(0xffffffffu, a.in[global_thread()], 1);
}

// out = in, neighbours exchanged through shared memory: the shuffle between write and read orders no memory.
template <bool correct>
__device__ void shuffle_as_barrier(const PlantedArgs& a) {
  struct Exchange {
    float at[BLOCK];
  };
  Exchange& exchange = block_shared<Exchange>();
  exchange.at[threadIdx.x] = a.in[global_thread()];
  const float zero = __shfl_sync(0xffffffffu, 0.0f, 0);
  if (correct) __syncwarp();
  a.out[global_thread()] = exchange.at[threadIdx.x ^ 1] + zero;
}

// out = in. One half of each warp waits for the block, the other for its warp.
template <bool correct>
__device__ void wait_for_each_other(const PlantedArgs& a) {
  if (correct || threadIdx.x % 32 < 16) __syncthreads();
  if (correct || threadIdx.x % 32 >= 16) __syncwarp();
  a.out[global_thread()] = a.in[global_thread()];
}

}  // namespace

PLANTED(half_warp_full_mask, half_with_full_mask)
PLANTED(mask_without_caller, mask_without_caller)
PLANTED(lane_has_left, lane_has_left)
PLANTED(shuffle_as_barrier, shuffle_as_barrier)
PLANTED(deadlock, wait_for_each_other)
