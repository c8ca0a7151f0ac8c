// mma.cu: one tensor-core product for each operand type, fragments loaded from plain matrices by PTX's layout.
#include "cuda_on_host.h"

struct MmaArgs {
  const unsigned short* a16;  // [16, 16] row-major, bf16 or f16 bits
  const unsigned short* b16;  // [16, 8] row-major
  const float* a32;           // [16, 8] row-major
  const float* b32;           // [8, 8] row-major
  float* d;                   // [3, 16, 8]: bf16, f16, tf32; added to
};

namespace {

__device__ float* element(float* d, int i) {
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  return d + (g + 8 * (i / 2)) * 8 + 2 * t + i % 2;
}

__device__ unsigned pair(const unsigned short* at, int stride) { return unsigned(at[0]) | unsigned(at[stride]) << 16; }

}  // namespace

KERNEL(probe_mma, MmaArgs, 32) {
  const int lane = int(threadIdx.x), g = lane / 4, t = lane % 4;
  unsigned fragment_a[4], fragment_b[2];
  float d[4];

  for (int r = 0; r < 4; ++r) fragment_a[r] = pair(a.a16 + (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2), 1);
  for (int r = 0; r < 2; ++r) fragment_b[r] = pair(a.b16 + (2 * t + 8 * r) * 8 + g, 8);
  for (int i = 0; i < 4; ++i) d[i] = *element(a.d, i);
  mma_m16n8k16_bf16(d, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) *element(a.d, i) = d[i];
  for (int i = 0; i < 4; ++i) d[i] = *element(a.d + 128, i);
  mma_m16n8k16_f16(d, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) *element(a.d + 128, i) = d[i];

  for (int r = 0; r < 4; ++r) fragment_a[r] = __float_as_uint(a.a32[(g + 8 * (r % 2)) * 8 + t + 4 * (r / 2)]);
  for (int r = 0; r < 2; ++r) fragment_b[r] = __float_as_uint(a.b32[(t + 4 * r) * 8 + g]);
  for (int i = 0; i < 4; ++i) d[i] = *element(a.d + 256, i);
  mma_m16n8k8_tf32(d, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) *element(a.d + 256, i) = d[i];
}
