// half.h: f16 from and to f32 by bit operations, the same in every compiler.
//
// gcc 12 and clang 14 disagree on where _Float16 exists and which library call converts it, so neither is used.
// Rounding is to nearest, ties to even; NaN stays NaN (the top bits of its payload are kept, quiet bit set).
#pragma once

inline float half_bits_to_float(unsigned short half) {
  const unsigned sign = unsigned(half & 0x8000u) << 16;
  const unsigned exponent = half >> 10 & 0x1fu;
  const unsigned fraction = half & 0x3ffu;
  unsigned bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | fraction << 13 | (fraction ? 0x00400000u : 0u);
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    // Zero or subnormal: fraction * 2^-24 is exact in f32.
    const float magnitude = float(fraction) * 0x1p-24f;
    __builtin_memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  }
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned short float_to_half_bits(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const unsigned sign = bits >> 16 & 0x8000u;
  const unsigned magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (unsigned short)(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x33000001u) return (unsigned short)sign;               // 2^-25 and below round to zero
  const int exponent = int(magnitude >> 23) - 127;
  const unsigned fraction = (magnitude & 0x7fffffu) | 0x800000u;
  // How many of the 24 bits fall away: 13, and one more for each step below the smallest normal exponent.
  const int dropped = exponent < -14 ? -1 - exponent : 13;
  const unsigned kept = fraction >> dropped;
  const unsigned rest = fraction & ((1u << dropped) - 1u);
  const unsigned middle = 1u << (dropped - 1);
  const unsigned rounded = kept + (rest > middle || (rest == middle && (kept & 1u)));
  // A normal number brings its implicit bit (0x400) with it; a carry out of the fraction goes into the exponent.
  const unsigned base = exponent < -14 ? 0u : unsigned(exponent + 14) << 10;
  return (unsigned short)(sign | (base + rounded));
}
