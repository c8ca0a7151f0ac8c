// arithmetic.h: min, max and CUDA's arithmetic intrinsics.
//
// The fast ones (__expf and its kin) are the exact libm functions here; the device's are a few ulp off. So bits are
// equal from host run to host run, and a comparison with a device needs a tolerance. Directed roundings that no
// kernel uses are left out. The rest of the maths (expf, fmaf, fmaxf, ...) is <math.h>'s, as in CUDA.
#pragma once

#include <limits>

#include "half.h"

inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline long min(long a, long b) { return a < b ? a : b; }
inline unsigned long min(unsigned long a, unsigned long b) { return a < b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline long max(long a, long b) { return a > b ? a : b; }
inline unsigned long max(unsigned long a, unsigned long b) { return a > b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 wide;
  return (unsigned long long)(wide(a) * b >> 64);
}

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float* sine, float* cosine) {
  *sine = sinf(x);
  *cosine = cosf(x);
}
#if !defined(__USE_GNU)
inline void sincosf(float x, float* sine, float* cosine) { __sincosf(x, sine, cosine); }
#endif
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }  // NaN gives 0, as on the device
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }

// Round to nearest even, and never contracted into a fused multiply-add: the build says -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1.0 / sqrt(double(x))); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

namespace gradstone_host {
/// A float as an integer the way the device does it: out of range saturates, NaN is 0 (in C++ both are undefined).
template <class Integer>
inline Integer saturating(double rounded) {
  constexpr Integer low = std::numeric_limits<Integer>::min(), high = std::numeric_limits<Integer>::max();
  if (rounded != rounded) return 0;
  if (rounded <= double(low)) return low;
  if (rounded >= double(high)) return high;
  return Integer(rounded);
}
}  // namespace gradstone_host

inline int __float2int_rn(float x) { return gradstone_host::saturating<int>(rint(double(x))); }
inline int __float2int_rz(float x) { return gradstone_host::saturating<int>(trunc(double(x))); }
inline int __float2int_rd(float x) { return gradstone_host::saturating<int>(floor(double(x))); }
inline int __float2int_ru(float x) { return gradstone_host::saturating<int>(ceil(double(x))); }
inline unsigned __float2uint_rn(float x) { return gradstone_host::saturating<unsigned>(rint(double(x))); }
inline unsigned __float2uint_rz(float x) { return gradstone_host::saturating<unsigned>(trunc(double(x))); }
inline unsigned __float2uint_rd(float x) { return gradstone_host::saturating<unsigned>(floor(double(x))); }
inline unsigned __float2uint_ru(float x) { return gradstone_host::saturating<unsigned>(ceil(double(x))); }
inline long long __float2ll_rn(float x) { return gradstone_host::saturating<long long>(rint(double(x))); }
inline long long __float2ll_rz(float x) { return gradstone_host::saturating<long long>(trunc(double(x))); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline float __ull2float_rn(unsigned long long x) { return float(x); }
inline float __double2float_rn(double x) { return float(x); }
