// copies.cu: asynchronous copies that are read too early. All reverse: out = in, each block reversed.
#include "planted.h"

namespace {

template <class Tag>
struct __align__(16) Stage {
  float at[BLOCK];
};

// Threads 0 to 15 copy a row, four floats each: the block's own, or `ahead` further on.
template <class Tag>
__device__ Stage<Tag>& begin_copy(const PlantedArgs& a, unsigned ahead = 0) {
  Stage<Tag>& stage = block_shared<Stage<Tag>>();
  const float* row = a.in + (blockIdx.x + ahead) % gridDim.x * BLOCK;
  if (threadIdx.x < BLOCK / 4) cp_async16(&stage.at[4 * threadIdx.x], row + 4 * threadIdx.x);
  return stage;
}

template <bool correct>
__device__ void without_wait(const PlantedArgs& a) {
  struct Tag {};
  Stage<Tag>& stage = begin_copy<Tag>(a);
  cp_async_commit();
  if (correct) cp_async_wait<0>();
  __syncthreads();
  a.out[global_thread()] = stage.at[BLOCK - 1 - threadIdx.x];
  if (!correct) cp_async_wait<0>();  // too late, but nothing is left in flight
}

// One group may be in flight: the very one that is read.
template <bool correct>
__device__ void wait_for_older(const PlantedArgs& a) {
  struct Tag {};
  Stage<Tag>& stage = begin_copy<Tag>(a);
  cp_async_commit();
  cp_async_wait<correct ? 0 : 1>();
  __syncthreads();
  a.out[global_thread()] = stage.at[BLOCK - 1 - threadIdx.x];
}

template <bool correct>
__device__ void without_commit(const PlantedArgs& a) {
  struct Tag {};
  Stage<Tag>& stage = begin_copy<Tag>(a);
  if (correct) cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  a.out[global_thread()] = stage.at[BLOCK - 1 - threadIdx.x];
}

// A wait is for the caller's own copies: others' need a barrier.
template <bool correct>
__device__ void without_barrier(const PlantedArgs& a) {
  struct Tag {};
  Stage<Tag>& stage = begin_copy<Tag>(a);
  cp_async_commit();
  cp_async_wait<0>();
  if (correct) __syncthreads();
  a.out[global_thread()] = stage.at[BLOCK - 1 - threadIdx.x];
}

// The next copy begins while others still read the last one.
template <bool correct>
__device__ void too_early(const PlantedArgs& a) {
  struct Tag {};
  Stage<Tag>& stage = begin_copy<Tag>(a);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const float value = stage.at[BLOCK - 1 - threadIdx.x];
  if (correct) __syncthreads();
  begin_copy<Tag>(a, 1);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  a.out[global_thread()] = value;
}

}  // namespace

PLANTED(copy_without_wait, without_wait)
PLANTED(copy_wait_too_few, wait_for_older)
PLANTED(copy_without_commit, without_commit)
PLANTED(copy_without_barrier, without_barrier)
PLANTED(copy_too_early, too_early)
