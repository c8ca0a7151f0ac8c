// bits.h: bit casts and bit counts, with CUDA's signatures.
#pragma once

#define GRADSTONE_BIT_CAST(name, To, From)            \
  inline To name(From value) {                        \
    static_assert(sizeof(To) == sizeof(From), "");    \
    To bits;                                          \
    __builtin_memcpy(&bits, &value, sizeof bits);     \
    return bits;                                      \
  }
GRADSTONE_BIT_CAST(__float_as_uint, unsigned, float)
GRADSTONE_BIT_CAST(__float_as_int, int, float)
GRADSTONE_BIT_CAST(__uint_as_float, float, unsigned)
GRADSTONE_BIT_CAST(__int_as_float, float, int)
GRADSTONE_BIT_CAST(__double_as_longlong, long long, double)
GRADSTONE_BIT_CAST(__longlong_as_double, double, long long)
#undef GRADSTONE_BIT_CAST

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
inline unsigned long long __brevll(unsigned long long x) {
  return (unsigned long long)__brev(unsigned(x)) << 32 | __brev(unsigned(x >> 32));
}

/// Bytes of {y, x} chosen by the four nibbles of `selector`; the sign-copying mode (nibble bit 3) included.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 0xf;
    unsigned byte = unsigned(bytes >> (8 * (nibble & 7))) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}
/// The upper word of {high, low} << (shift & 31).
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
/// The lower word of {high, low} >> (shift & 31).
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
