// cast.cu: floats of one storage type as another.
//
// Contract   args/cast.h. Widening is exact; narrowing rounds to nearest even, overflow to infinity, NaN stays NaN.
// Floor      one read and one write of the elements.
// Algorithm  A thread an element, the grid as stride: accesses coalesce at any alignment.
// Hazards    f32 to f16 flushes nothing: subnormal halves are rounded as the others.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/cast.h"

template <class From, class To>
__device__ __forceinline__ void cast(const CastArgs& a) {
  const From* x = static_cast<const From*>(a.x);
  To* out = static_cast<To*>(a.out);
  for (int64_t i = thread_in_grid(); i < a.len; i += threads_in_grid()) out[i] = from_float<To>(to_float(x[i]));
}

KERNEL(cast_f32_bf16, CastArgs, 256) { cast<float, bf16>(a); }
KERNEL(cast_f32_f16, CastArgs, 256) { cast<float, f16>(a); }
KERNEL(cast_bf16_f32, CastArgs, 256) { cast<bf16, float>(a); }
KERNEL(cast_bf16_f16, CastArgs, 256) { cast<bf16, f16>(a); }
KERNEL(cast_f16_f32, CastArgs, 256) { cast<f16, float>(a); }
KERNEL(cast_f16_bf16, CastArgs, 256) { cast<f16, bf16>(a); }
