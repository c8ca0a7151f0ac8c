// bounds.cu: accesses outside of global and shared memory, and misaligned ones.
#include "planted.h"

namespace {

// Keeps a load whose value does not matter.
__device__ void use(float value, float* out) {
  if (value == 12345.678f) *out = value;
}

// out = in; the last thread of the grid reads one element past the end.
template <bool correct>
__device__ void read_past_the_end(const PlantedArgs& a) {
  a.out[global_thread()] = a.in[global_thread()];
  use(a.in[global_thread() + (correct ? 0 : 1)], a.out);
}

struct Tile {
  float at[BLOCK];
};

// out = in. Through a pointer, so that the compiler cannot know the size.
template <bool correct>
__device__ void write_past_a_tile(const PlantedArgs& a) {
  float* at = block_shared<Tile>().at;
  at[threadIdx.x + (correct ? 0 : 2)] = a.in[global_thread()];
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in, each block reversed.
template <bool correct>
__device__ void read_past_a_tile(const PlantedArgs& a) {
  struct Reversed {
    float at[BLOCK];
  };
  float* at = block_shared<Reversed>().at;
  at[threadIdx.x] = a.in[global_thread()];
  __syncthreads();
  a.out[global_thread()] = at[BLOCK - (correct ? 1 : 0) - threadIdx.x];
}

// out = in. The array is indexed by name, so the compiler checks the index.
template <bool correct>
__device__ void index_past_an_array(const PlantedArgs& a) {
  struct Indexed {
    float at[BLOCK];
    float behind[BLOCK];  // memory that is there: only the bound is broken
  };
  Indexed& indexed = block_shared<Indexed>();
  indexed.at[threadIdx.x + (correct ? 0 : 1)] = a.in[global_thread()];
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in; the launch gives BLOCK floats of dynamic shared memory.
template <bool correct>
__device__ void write_past_dynamic(const PlantedArgs& a) {
  float* at = dynamic_shared<float>();
  at[threadIdx.x + (correct ? 0 : 1)] = a.in[global_thread()];
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in; a vector load one float off.
template <bool correct>
__device__ void load_misaligned(const PlantedArgs& a) {
  a.out[global_thread()] = a.in[global_thread()];
  if (threadIdx.x == 0) use(reinterpret_cast<const float4*>(a.in + (correct ? 4 : 1))->x, a.out);
}

template <bool correct>
__device__ void load_misaligned_hinted(const PlantedArgs& a) {
  a.out[global_thread()] = a.in[global_thread()];
  if (threadIdx.x == 0) use(__ldcs(reinterpret_cast<const float4*>(a.in + (correct ? 4 : 1))).x, a.out);
}

// out = in.
template <bool correct>
__device__ void load_null(const PlantedArgs& a) {
  const float* volatile values = correct ? a.in : nullptr;  // volatile: else a compiler may drop what must not happen
  if (threadIdx.x == 7) use(*values, a.out);
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in; an index that is off by a terabyte.
template <bool correct>
__device__ void load_wild(const PlantedArgs& a) {
  volatile long long index = correct ? 0 : 1ll << 38;
  if (threadIdx.x == 7) use(a.in[index], a.out);
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in; frames that the stack cannot hold.
template <bool correct>
__device__ float sum_down(volatile int levels) {
  volatile float frame[1024];
  frame[levels % 1024] = float(levels);
  return levels > 0 ? sum_down<correct>(levels - 1) + frame[levels % 1024] : 0.0f;
}
template <bool correct>
__device__ void recurse(const PlantedArgs& a) {
  if (threadIdx.x == 7) use(sum_down<correct>(correct ? 4 : 1000), a.out);
  a.out[global_thread()] = a.in[global_thread()];
}

// out = in; 64 KiB of static shared memory is more than a kernel can have.
template <bool correct>
__device__ void ask_for_too_much(const PlantedArgs& a) {
  struct Large {
    float at[correct ? 1024 : 16 * 1024];
  };
  block_shared<Large>().at[threadIdx.x] = 0.0f;
  a.out[global_thread()] = a.in[global_thread()];
}

}  // namespace

PLANTED(global_read_past_end, read_past_the_end)
PLANTED(static_shared_write, write_past_a_tile)
PLANTED(static_shared_read, read_past_a_tile)
PLANTED(array_index, index_past_an_array)
PLANTED(dynamic_shared_write, write_past_dynamic)
PLANTED(misaligned_vector, load_misaligned)
PLANTED(misaligned_hinted, load_misaligned_hinted)
PLANTED(null_pointer, load_null)
PLANTED(too_much_shared, ask_for_too_much)
PLANTED(wild_pointer, load_wild)
PLANTED(stack_overflow, recurse)
