// cast.cu: floats of one storage type as another.
//
// Contract   args/cast.h. Widening is exact; narrowing rounds to nearest even, overflow to infinity, NaN stays NaN.
// Floor      one read and one write of the elements.
// Algorithm  A thread takes eight elements, the grid as stride: 16 bytes of the narrower type at once, twice 16 of f32.
//            Where an array is not aligned the same elements come one by one.
// Hazards    f32 to f16 flushes nothing: subnormal halves are rounded as the others.
// Measured   not yet run on a GPU.
#include "row_walk.cuh"
#include "args/cast.h"

template <class From, class To>
__device__ __forceinline__ void cast(const CastArgs& a) {
  constexpr int N = CAST_GROUP;
  const From* x = static_cast<const From*>(a.x);
  To* out = static_cast<To*>(a.out);
  for (int64_t at = thread_in_grid() * N; at < a.len; at += threads_in_grid() * N) {
    store_rounded(out + at, load_wide<N>(x + at, a.len - at, a.aligned), a.len - at, a.aligned);
  }
}

KERNEL(cast_f32_bf16, CastArgs, ROW_BLOCK) { cast<float, bf16>(a); }
KERNEL(cast_f32_f16, CastArgs, ROW_BLOCK) { cast<float, f16>(a); }
KERNEL(cast_bf16_f32, CastArgs, ROW_BLOCK) { cast<bf16, float>(a); }
KERNEL(cast_bf16_f16, CastArgs, ROW_BLOCK) { cast<bf16, f16>(a); }
KERNEL(cast_f16_f32, CastArgs, ROW_BLOCK) { cast<f16, float>(a); }
KERNEL(cast_f16_bf16, CastArgs, ROW_BLOCK) { cast<f16, bf16>(a); }
