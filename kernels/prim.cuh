// prim.cuh: the whole vocabulary of the kernels. Nothing here knows an operation by name.
//
// The same kernel sources are compiled by nvcc (and NVRTC) for a GPU and by an ordinary C++ compiler for the engine in
// host/, which runs every CUDA thread as a fiber. What differs between the two worlds differs here and in no kernel:
//   KERNEL(name, Args, threads)   declares a kernel that takes one plain struct `a` and is launched with at most
//                                 `threads` threads a block;
//   KERNEL_RESIDENT(..., blocks)  the same, with so few registers that `blocks` fit on a multiprocessor at once;
//   block_shared<T>()             a T in shared memory, one for each type T (declare a local struct for each use);
//   dynamic_shared<T>()           the shared memory that the launch asked for;
//   cp_async*, mma_*              wrappers around PTX, with portable bodies in host/.
// Every sum is in f32 and in an order that depends on the summed dimension alone; there are no float atomics.
#pragma once

#if defined(__CUDACC__)
#define KERNEL(name, Args, threads) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args a)
#define KERNEL_RESIDENT(name, Args, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a)
#define INFINITY_F __int_as_float(0x7f800000)
#define NAN_F __int_as_float(0x7fffffff)
template <class T>
__device__ __forceinline__ T& block_shared() {
  __shared__ T object;
  return object;
}
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}
#else
#include "cuda_on_host.h"
#define KERNEL_RESIDENT(name, Args, threads, blocks) KERNEL(name, Args, threads)
#define INFINITY_F __builtin_inff()
#define NAN_F __builtin_nanf("")
#endif

#include "args/types.h"

#define ALL_LANES 0xffffffffu
constexpr int WARP = 32;

// ---- storage types: bits in memory, f32 in registers ----

struct bf16 {
  unsigned short bits;
};
struct f16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ __forceinline__ float to_float(f16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#elif defined(__CUDACC__)
  return float(value.bits);  // nvcc's own host pass: never run
#else
  return half_bits_to_float(value.bits);
#endif
}

// Rounds to nearest even; a NaN stays one (on a device with bits of its own).
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bf16{bits};
#else
  const unsigned bits = __float_as_uint(value);
  const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return bf16{(unsigned short)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded)};
#endif
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float value) {
#if defined(__CUDA_ARCH__)
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return f16{bits};
#elif defined(__CUDACC__)
  return f16{(unsigned short)value};
#else
  return f16{float_to_half_bits(value)};
#endif
}

// Two values rounded to T in one word, `low` in its lower half.
template <class T>
__device__ __forceinline__ unsigned pack2(float low, float high) {
  return unsigned(from_float<T>(low).bits) | unsigned(from_float<T>(high).bits) << 16;
}
#if defined(__CUDA_ARCH__)
template <>
__device__ __forceinline__ unsigned pack2<bf16>(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
__device__ __forceinline__ unsigned pack2<f16>(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
#endif

// The two values of a word, the lower half first. One instruction each, where a half that is taken out first costs two.
template <class T>
__device__ __forceinline__ float2 unpack2(unsigned word);
template <>
__device__ __forceinline__ float2 unpack2<bf16>(unsigned word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack2<f16>(unsigned word) {
  return make_float2(to_float(f16{(unsigned short)word}), to_float(f16{(unsigned short)(word >> 16)}));
}

// ---- arithmetic that CUDA C++ has no name for ----

// 2^x to two units in the last place, exactly 0 below the normal numbers, NaN for NaN: one instruction.
__device__ __forceinline__ float exp2_flushed(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#elif defined(__CUDACC__)
  return x;  // nvcc's own host pass: never run
#else
  return x < -126.0f ? 0.0f : exp2f(x);
#endif
}

// The larger one, NaN when either is: fmaxf would drop it.
__device__ __forceinline__ float max_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return a != a || a > b ? a : b;
#endif
}

// ---- 16-byte memory operations ----

// Sixteen bytes of T, loaded and stored at once; the address must be a multiple of 16.
template <class T>
struct __align__(16) Vec16 {
  static constexpr int SIZE = 16 / sizeof(T);
  T at[SIZE];
};

template <class T>
__device__ __forceinline__ Vec16<T> load16(const T* address) {
  union {
    uint4 words;
    Vec16<T> vec;
  } both;
  both.words = *reinterpret_cast<const uint4*>(address);
  return both.vec;
}

// Sixteen bytes of T as floats, and floats as sixteen bytes.
template <class T>
__device__ __forceinline__ void widen(uint4 words, float (&values)[Vec16<T>::SIZE]) {
  const unsigned word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 4) {
      values[i] = __uint_as_float(word[i]);
    } else {
      const float2 pair = unpack2<T>(word[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}
template <class T>
__device__ __forceinline__ uint4 narrow(const float* values) {
  unsigned word[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(T) == 4) {
      word[i] = __float_as_uint(values[i]);
    } else {
      word[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
    }
  }
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// A load of what is read once and by nobody else: it shall not displace the cache's content.
template <class T>
__device__ __forceinline__ Vec16<T> load16_streaming(const T* address) {
  union {
    uint4 words;
    Vec16<T> vec;
  } both;
  both.words = __ldcs(reinterpret_cast<const uint4*>(address));
  return both.vec;
}

// One store: an assignment through a uint4 pointer becomes four.
template <class T>
__device__ __forceinline__ void store16(T* address, const Vec16<T>& value) {
  union {
    uint4 words;
    Vec16<T> vec;
  } both;
  both.vec = value;
  __stwb(reinterpret_cast<uint4*>(address), both.words);
}

// Elements from `address` to the next multiple of 16 bytes, at most `len`.
template <class T>
__device__ __forceinline__ int64_t ragged_head(const T* address, int64_t len) {
  const int64_t head = int64_t((16u - unsigned(reinterpret_cast<unsigned long long>(address) & 15u)) & 15u) / int64_t(sizeof(T));
  return head < len ? head : len;
}

// ---- threads ----

__device__ __forceinline__ int lane_id() { return int(threadIdx.x) & (WARP - 1); }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / WARP; }
__device__ __forceinline__ int64_t thread_in_grid() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t threads_in_grid() { return int64_t(gridDim.x) * blockDim.x; }

__device__ __forceinline__ void raise_status(uint32_t* status, uint32_t bits) {
  if (status) atomicOr(status, bits);
}

// 0x80 in each byte of a word that is not 0: four marks of tokens at once.
__device__ __forceinline__ uint32_t marked_bytes(uint32_t word) {
  return (((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word) & 0x80808080u;
}
__device__ __forceinline__ bool is_marked(uint32_t marks, int byte) { return (marks & 0x80u << 8 * byte) != 0; }

// ---- reductions: a fixed tree, every thread gets the result ----

struct Sum {
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The value of lane `lane ^ mask`, for any T of whole words: CUDA exchanges scalars only.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) % 4 == 0, "whole words");
  constexpr int WORDS = sizeof(T) / 4;
  struct Words {
    unsigned word[WORDS];
  };
  union Both {
    T object;
    Words words;
    __device__ Both() {}
  } mine, theirs;
  mine.object = value;
#pragma unroll
  for (int i = 0; i < WORDS; i++) theirs.words.word[i] = __shfl_xor_sync(ALL_LANES, mine.words.word[i], mask);
  return theirs.object;
}

// `combine` must be commutative to the bit: the two lanes of a pair call it with swapped arguments.
template <class T, class F>
__device__ __forceinline__ T warp_reduce(T value, F combine) {
#pragma unroll
  for (int mask = WARP / 2; mask > 0; mask /= 2) value = combine(value, shuffle_xor(value, mask));
  return value;
}

template <class T, int COUNT>
struct __align__(16) Partials {
  unsigned char bytes[sizeof(T) * COUNT];  // raw: a T may have constructors, shared memory may not
};

// Over a block of THREADS threads, a multiple of 32. Uses a barrier before and after: call it with all threads.
template <int THREADS, class T, class F>
__device__ __forceinline__ T block_reduce(T value, F combine) {
  static_assert(THREADS % WARP == 0, "whole warps");
  if (THREADS == WARP) return warp_reduce(value, combine);
  T* partials = reinterpret_cast<T*>(block_shared<Partials<T, THREADS / WARP>>().bytes);
  value = warp_reduce(value, combine);
  __syncthreads();  // an earlier reduction's readers are done
  if (lane_id() == 0) partials[warp_id()] = value;
  __syncthreads();
  T result = partials[0];
#pragma unroll
  for (int warp = 1; warp < THREADS / WARP; warp++) result = combine(result, partials[warp]);
  return result;
}

// ---- Philox4x32-10, the bits of src/rng.rs ----

struct Random4 {
  uint32_t word[4];
};

__device__ __forceinline__ Random4 philox(uint64_t seed, uint32_t stream, uint64_t a, uint32_t b) {
  uint32_t c0 = b, c1 = uint32_t(a), c2 = uint32_t(a >> 32), c3 = stream;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Random4{{c0, c1, c2, c3}};
}

// A float in [0, 1) with 24 random bits.
__device__ __forceinline__ float unit_float(uint32_t bits) { return float(bits >> 8) * (1.0f / 16777216.0f); }

// ---- asynchronous copies and tensor-core products: PTX here, portable bodies in host/cuda_on_host.h ----

#if defined(__CUDACC__)

// Starts a copy of 16 bytes from global to shared memory; both addresses are multiples of 16. Nobody may read the
// destination before `cp_async_wait` and a barrier.
__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
#if defined(__CUDA_ARCH__)
  const unsigned destination = unsigned(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(destination), "l"(global) : "memory");
#endif
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's newest groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// d [16, 8] += a [16, 16] * b [16, 8] over a warp, in the fragment layout of PTX's mma.sync. Lane l = 4 g + t holds
// d = {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}; a = pairs {(g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)};
// b = pairs {(2t.., g), (2t+8.., g)}; the element with the lower index in the lower half of a word.
#define MMA_16BIT(name, type)                                                                                      \
  __device__ __forceinline__ void name(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {           \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
                 "{%0,%1,%2,%3};"                                                                                  \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
  }
MMA_16BIT(mma_m16n8k16_bf16, "bf16")
MMA_16BIT(mma_m16n8k16_f16, "f16")
#undef MMA_16BIT

// d [16, 8] += a [16, 8] * b [8, 8], operands f32 of which the tensor core reads the upper 19 bits. Lane l = 4 g + t
// holds a = {(g, t), (g+8, t), (g, t+4), (g+8, t+4)}, b = {(t, g), (t+4, g)}, d as above.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

// ---- 16 x 16 tiles in shared memory as fragments of tensor-core products ----

// The four 8 x 8 quarters of a tile of 16-bit values whose rows lie `stride` apart, each row 16-byte aligned: word i is
// of quarter (rows 8 (i & 1).., columns 8 (i / 2)..); lane 4 g + t holds row g, columns 2 t and 2 t + 1. So `words` is
// the fragment a of an mma over this tile; {0, 2} and {1, 3} are the fragments b of its upper and lower rows as
// columns of a product. All 32 lanes call.
template <class T>
__device__ __forceinline__ void load_tile(unsigned (&words)[4], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  const T* row = tile + (lane_id() & 15) * stride + (lane_id() >> 4) * 8;
  const unsigned address = unsigned(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
#else
  for (int i = 0; i < 4; i++) {
    const T* pair = tile + ((lane_id() >> 2) + (i & 1) * 8) * stride + (i >> 1) * 8 + 2 * (lane_id() & 3);
    words[i] = unsigned(pair[0].bits) | unsigned(pair[1].bits) << 16;
  }
#endif
}

// The same quarters, each transposed: lane 4 g + t holds rows 2 t and 2 t + 1 of column g. {0, 1} and {2, 3} are the
// fragments b of the tile's left and right columns.
template <class T>
__device__ __forceinline__ void load_tile_transposed(unsigned (&words)[4], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  const T* row = tile + (lane_id() & 15) * stride + (lane_id() >> 4) * 8;
  const unsigned address = unsigned(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
#else
  for (int i = 0; i < 4; i++) {
    const T* pair = tile + (2 * (lane_id() & 3) + (i & 1) * 8) * stride + (i >> 1) * 8 + (lane_id() >> 2);
    words[i] = unsigned(pair[0].bits) | unsigned(pair[stride].bits) << 16;
  }
#endif
}
