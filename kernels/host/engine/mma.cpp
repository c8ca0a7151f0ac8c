// mma.cpp: mma.sync of one warp, on the fragments that PTX defines.
//
// Layout (PTX ISA, "Matrix Fragments"): with g = lane / 4 and t = lane % 4, a lane holds of a 16 x 8 result the elements
// (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1). Of a 16-bit operand a (16 x 16) register r holds row g + 8 (r % 2), columns
// 2t + 8 (r / 2) and the next; of b (16 x 8) register r holds rows 2t + 8 r and the next, column g. Of a tf32 operand a
// (16 x 8) register r holds row g + 8 (r % 2), column t + 4 (r / 2); of b (8 x 8) register r holds row t + 4 r, column g.
//
// Arithmetic: the product of two 16-bit or tf32 values is exact in f32 (barring over- and underflow of the exponent),
// so only the sums round: here one after another with k rising, to nearest. A tensor core sums in wider groups and cuts
// off; a comparison with a device needs a tolerance, and so it does between two generations of devices.
// The last lane to come computes the whole product: the operands are unpacked once, not once a lane.
#include "../cuda/half.h"
#include "block.h"

namespace gradstone_host {
namespace {

constexpr unsigned whole_warp = 0xffffffffu;

float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
float bf16_to_float(unsigned short bits) { return bits_to_float(uint32_t(bits) << 16); }
float tf32_to_float(uint32_t bits) { return bits_to_float(bits & 0xffffe000u); }

template <unsigned K>
void multiply(Warp& warp, const float (&a)[16][K], const float (&b)[K][8]) {
  float d[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2] = warp.fragments[lane].d[i];
  }
  for (unsigned row = 0; row < 16; ++row) {
    for (unsigned k = 0; k < K; ++k) {
      for (unsigned column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 4; ++i) warp.fragments[lane].d[i] = d[lane / 4 + 8 * (i / 2)][lane % 4 * 2 + i % 2];
  }
}

template <float (*to_float)(unsigned short)>
void product_16bit(Warp& warp, WarpMeeting&) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MmaFragments& fragments = warp.fragments[lane];
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned half = 0; half < 2; ++half) {
      for (unsigned r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][2 * t + 8 * (r / 2) + half] = to_float((unsigned short)(fragments.a[r] >> (16 * half)));
      }
      for (unsigned r = 0; r < 2; ++r) {
        b[2 * t + 8 * r + half][g] = to_float((unsigned short)(fragments.b[r] >> (16 * half)));
      }
    }
  }
  multiply<16>(warp, a, b);
}

void product_tf32(Warp& warp, WarpMeeting&) {
  float a[16][8], b[8][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const MmaFragments& fragments = warp.fragments[lane];
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned r = 0; r < 4; ++r) a[g + 8 * (r % 2)][t + 4 * (r / 2)] = tf32_to_float(fragments.a[r]);
    for (unsigned r = 0; r < 2; ++r) b[t + 4 * r][g] = tf32_to_float(fragments.b[r]);
  }
  multiply<8>(warp, a, b);
}

void meet_for_product(Collective collective, Completion product, float (&d)[4], const unsigned (&a)[4],
                      const unsigned (&b)[2], Site site) {
  Warp& warp = block_runner->warp();
  if (warp.present != whole_warp) fail(site, "%s in a warp of fewer than 32 threads", collective_name(collective));
  MmaFragments& mine = warp.fragments[block_runner->self().view.lane];
  for (unsigned i = 0; i < 4; ++i) {
    mine.a[i] = a[i];
    mine.d[i] = d[i];
  }
  for (unsigned i = 0; i < 2; ++i) mine.b[i] = b[i];
  WarpMeeting& meeting = meet_warp(collective, whole_warp, 0, site, product);
  for (unsigned i = 0; i < 4; ++i) d[i] = mine.d[i];
  done_reading(meeting);
}

}  // namespace

void warp_mma_16x8x16(Collective collective, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                      Site site) {
  meet_for_product(collective,
                   collective == Collective::MmaF16 ? product_16bit<half_bits_to_float> : product_16bit<bf16_to_float>,
                   d, a, b, site);
}

void warp_mma_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site) {
  meet_for_product(Collective::MmaTf32, product_tf32, d, a, b, site);
}

}  // namespace gradstone_host
