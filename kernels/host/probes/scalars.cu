// scalars.cu: the functions of one thread: conversions, bit counts, wide products, atomics.
#include "cuda_on_host.h"

struct ScalarsArgs {
  unsigned first;           // the first of the patterns below
  float* widened;           // [65536]: every f16 as f32
  unsigned short* narrowed;  // [n]: f32 patterns first, first + step, ... as f16
  unsigned step, n;
};

KERNEL(probe_half, ScalarsArgs, 128) {
  const unsigned threads = gridDim.x * blockDim.x;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < 65536; i += threads) {
    a.widened[i] = half_bits_to_float((unsigned short)i);
  }
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < a.n; i += threads) {
    a.narrowed[i] = float_to_half_bits(__uint_as_float(a.first + i * a.step));
  }
}

struct BitsArgs {
  unsigned long long* results;  // [16]
  unsigned* counters;           // [4]: 0, all ones, 5, 0
};

KERNEL(probe_bits, BitsArgs, 64) {
  atomicAdd(a.counters, 3u);
  atomicMin(a.counters + 1, threadIdx.x + 7);
  atomicInc(a.counters + 2, 9u);
  atomicMax(a.counters + 3, threadIdx.x);
  if (threadIdx.x != 0) return;
  unsigned long long* out = a.results;
  *out++ = __popc(0xf0f01u);
  *out++ = __popcll(0xf0f0100000000ull);
  *out++ = __clz(1);
  *out++ = __clz(0);
  *out++ = __clzll(1);
  *out++ = __ffs(8);
  *out++ = __ffsll(0);
  *out++ = __brev(0x00000003u);
  *out++ = __brevll(1);
  *out++ = __umulhi(0xffffffffu, 0xffffffffu);
  *out++ = __umul64hi(~0ull, ~0ull);
  *out++ = __byte_perm(0x33221100u, 0x77665544u, 0x7531u);
  *out++ = __funnelshift_l(0x80000000u, 1u, 1);
  *out++ = (unsigned long long)__float2int_rn(2.5f);
  *out++ = (unsigned long long)__float2int_rz(-3e38f) & 0xffffffffu;
  *out++ = (unsigned long long)min(-1, 3u);
}
