// planted.h: what the kernels with planted errors share.
//
// Each error is a kernel `planted_<error>`, and beside it `planted_<error>_fixed` is the same without the error: that
// one every build must pass, so that a check which reports everything does not count as one that finds something.
// Blocks have BLOCK threads; what the fixed kernel writes is said at each pair. tests/planted.rs knows which build
// must find what.
#pragma once
#include "cuda_on_host.h"

constexpr unsigned BLOCK = 64;

struct PlantedArgs {
  const float* in;    // [blocks, BLOCK]
  float* out;         // [blocks, BLOCK]
  unsigned* counter;  // one word, 0
};

__device__ inline unsigned global_thread() { return blockIdx.x * BLOCK + threadIdx.x; }

#define PLANTED(name, body)                                         \
  KERNEL(planted_##name, PlantedArgs, BLOCK) { body<false>(a); }    \
  KERNEL(planted_##name##_fixed, PlantedArgs, BLOCK) { body<true>(a); }
