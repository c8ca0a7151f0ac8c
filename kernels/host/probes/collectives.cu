// collectives.cu: every collective once, its result in a table, for the test to compare with CUDA's definition.
#include "cuda_on_host.h"

struct CollectivesArgs {
  const int* values;       // [threads]
  const float* floats;     // [threads]
  int* table;              // [COLUMNS, threads]
  float* float_table;      // [2, threads]
  int operand, width;      // of the shuffles
};

KERNEL(probe_collectives, CollectivesArgs, 256) {
  const unsigned all = 0xffffffffu, thread = threadIdx.x, threads = blockDim.x;
  const int value = a.values[thread];
  int column = 0;
  const auto put = [&](int result) { a.table[column++ * threads + thread] = result; };
  put(__shfl_sync(all, value, a.operand, a.width));
  put(__shfl_up_sync(all, value, unsigned(a.operand), a.width));
  put(__shfl_down_sync(all, value, unsigned(a.operand), a.width));
  put(__shfl_xor_sync(all, value, a.operand, a.width));
  put(int(__ballot_sync(all, value > 0)));
  put(__any_sync(all, value == 7));
  put(__all_sync(all, value < 100));
  put(int(__match_any_sync(all, value)));
  int equal;
  put(int(__match_all_sync(all, value / 1000, &equal)));
  put(equal);
  put(__reduce_add_sync(all, value));
  put(__reduce_min_sync(all, value));
  put(__reduce_max_sync(all, value));
  put(int(__reduce_min_sync(all, unsigned(value))));
  put(int(__reduce_max_sync(all, unsigned(value))));
  put(int(__reduce_and_sync(all, unsigned(value))));
  put(int(__reduce_or_sync(all, unsigned(value))));
  put(int(__reduce_xor_sync(all, unsigned(value))));
  put(__syncthreads_count(value > 0));
  put(__syncthreads_and(value < 100));
  put(__syncthreads_or(value == 7));
  // Half warps with masks of their own, in different turns of a loop that the others do not take.
  int sum = value;
  if (thread % 32 < 16) {
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, distance);
  } else {
    sum = __shfl_sync(0xffff0000u, sum, 31);
  }
  put(sum);
  a.float_table[thread] = __shfl_xor_sync(all, a.floats[thread], 1);
  a.float_table[threads + thread] = float(__shfl_down_sync(all, double(a.floats[thread]), 1));
}
