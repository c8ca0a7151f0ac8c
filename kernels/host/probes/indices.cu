// indices.cu: every thread counts itself and writes where it is, in all three dimensions.
#include "cuda_on_host.h"

struct IndicesArgs {
  unsigned* visits;     // [blocks, threads]
  unsigned (*places)[6];  // [blocks, threads]: threadIdx, blockIdx
};

KERNEL(probe_indices, IndicesArgs, 128) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  atomicAdd(a.visits + i, 1u);
  const unsigned place[6] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z};
  for (int k = 0; k < 6; ++k) a.places[i][k] = place[k];
}
