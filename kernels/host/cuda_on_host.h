// cuda_on_host.h: the CUDA that our kernels may use, for a C++ compiler that knows nothing of CUDA.
//
// A kernel source includes prim.cuh and nothing else; prim.cuh includes this file when the compiler is not nvcc or
// NVRTC. What is offered here is what CUDA offers, with CUDA's meaning, and nothing more: a shuffle of a struct, a raw
// __shared__ array or <<<>>> must fail to compile here because they fail (or are banned by our rules) there.
//
//   cuda/vector_types.h  float4 and its kin          cuda/collectives.h  barriers, shuffles, votes, reductions
//   cuda/atomics.h       atomics and fences          cuda/loads.h        __ldg, __ldcs, __stcs
//   cuda/bits.h          bit casts and counts        cuda/arithmetic.h   min, max, intrinsics, f16 conversion
//   cuda/shared.h        block_shared<T>()           cuda/async_copy.h   cp_async16, commit, wait
//   cuda/mma.h           tensor-core products
//
// Not defined on purpose: __shared__ (use block_shared), __noinline__ (libstdc++ spells its attribute so), INFINITY
// comes from <math.h>. A qualifier that only the device needs is an empty macro.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static __attribute__((unused))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#include "engine/interface.h"

#define threadIdx (::gradstone_host::current_thread->thread_index)
#define blockIdx (::gradstone_host::current_thread->block_index)
#define blockDim (::gradstone_host::current_thread->block_dim)
#define gridDim (::gradstone_host::current_thread->grid_dim)
static constexpr int warpSize __attribute__((unused)) = 32;

#include "cuda/arithmetic.h"
#include "cuda/async_copy.h"
#include "cuda/atomics.h"
#include "cuda/bits.h"
#include "cuda/collectives.h"
#include "cuda/loads.h"
#include "cuda/mma.h"
#include "cuda/shared.h"

/// Defines the kernel `name`, which takes one plain struct `a` by value and blocks of at most `threads` threads, and
/// enters it in the table that a launch looks names up in. The object files must be linked whole: nothing refers to
/// the entry, so a linker that picks members of an archive would leave the kernel out.
#define KERNEL(name, Args, threads)                                                                             \
  static_assert(std::is_trivially_copyable_v<Args>, "arguments of a kernel are plain data");                    \
  static_assert(sizeof(Args) <= 4096, "the driver takes at most 4096 bytes of arguments");                      \
  static void name(const Args a);                                                                               \
  static const ::gradstone_host::Registration name##_registration{::gradstone_host::Kernel{                     \
      #name, sizeof(Args), alignof(Args), (threads), __FILE__,                                                  \
      [](const void* args) { name(*static_cast<const Args*>(args)); }}};                                        \
  static void name([[maybe_unused]] const Args a)
