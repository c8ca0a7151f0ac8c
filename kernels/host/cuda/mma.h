// mma.h: tensor-core products of one warp, with PTX's fragment layout. See engine/mma.cpp.
//
// d += a * b, d in f32. All 32 lanes must call. `mma_m16n8k16_*`: a is 16 x 16 row-major, b 16 x 8 column-major, two
// 16-bit values in each register, the lower k in the lower half. `mma_m16n8k8_tf32`: a is 16 x 8, b 8 x 8, registers
// hold f32 bits of which the tensor core ignores the low 13.
#pragma once

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], GRADSTONE_SITE) {
  gradstone_host::warp_mma_16x8x16(gradstone_host::Collective::MmaBf16, d, a, b, GRADSTONE_HERE);
}
inline void mma_m16n8k16_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], GRADSTONE_SITE) {
  gradstone_host::warp_mma_16x8x16(gradstone_host::Collective::MmaF16, d, a, b, GRADSTONE_HERE);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], GRADSTONE_SITE) {
  gradstone_host::warp_mma_16x8x8_tf32(d, a, b, GRADSTONE_HERE);
}
