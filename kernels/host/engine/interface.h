// interface.h: the line between kernels and engine. Everything a kernel's inline functions call is declared here.
//
// The line is also the line of instrumentation. Kernels (and the headers in cuda/, which become part of them) are
// compiled with the sanitizers, the engine never is: its own bookkeeping, done on behalf of many CUDA threads, would
// look to ThreadSanitizer like a race of those threads. So values that pass between threads (a shuffled word, a
// barrier's count) are touched by engine functions only, and no template of the headers may reach into engine memory,
// except the running thread's own `Thread`.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../cuda/vector_types.h"

namespace gradstone_host {

/// Where in a kernel something was asked for; the defaults of GRADSTONE_SITE fill it in at the caller's line.
struct Site {
  const char* file;
  int line;
};

inline bool same_site(Site a, Site b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

// Two plain default arguments, not one braced Site: in a braced default gcc 12 reports this header's own line.
#define GRADSTONE_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define GRADSTONE_HERE \
  ::gradstone_host::Site { file_, line_ }

/// What the running CUDA thread can know of itself.
struct Thread {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  unsigned linear, lane, warp;  ///< linear = x + y * X + z * X * Y; lane = linear % 32
  bool fenced;                  ///< it has called __threadfence: see cuda/atomics.h
};

/// The CUDA thread that runs on this OS thread. `__thread`, because `thread_local` of another file goes through an
/// initialisation check at each use; and a fiber never moves to another OS thread, so the address may be cached.
extern __thread Thread* current_thread;

/// Everything that several threads do together. The threads that meet must all have asked for the same.
enum class Collective : unsigned char {
  SyncThreads, SyncThreadsCount, SyncThreadsAnd, SyncThreadsOr,
  SyncWarp, Shuffle, ShuffleUp, ShuffleDown, ShuffleXor, Ballot, Any, All, MatchAny, MatchAll,
  ReduceAdd, ReduceMin, ReduceMinSigned, ReduceMax, ReduceMaxSigned, ReduceAnd, ReduceOr, ReduceXor,
  MmaBf16, MmaF16, MmaTf32,
};

/// Ends the launch with a message that names file, line, kernel, block and thread.
[[noreturn]] void fail(Site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// barrier.cpp
int block_barrier(Collective, int predicate, Site);

// warp.cpp
void warp_barrier(unsigned mask, Site);
uint64_t warp_shuffle(Collective, unsigned mask, uint64_t value, unsigned operand, int width, Site);
uint32_t warp_reduce(Collective, unsigned mask, uint32_t value, Site);
unsigned warp_match(Collective, unsigned mask, uint64_t value, int* all_equal, Site);

// mma.cpp: the fragments are PTX's; `d` is accumulated into
void warp_mma_16x8x16(Collective, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site);
void warp_mma_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site);

// shared_memory.cpp
void* static_shared_memory(const void* key, size_t size, size_t alignment, const char* type, Site);
void* dynamic_shared_memory(size_t alignment, Site);

// async_copy.cpp
struct AsyncCopy {
  void* shared;
  const void* global;
};
void async_copy_issue(AsyncCopy, Site);
void async_copy_commit();
bool async_copy_take_done(unsigned groups_in_flight, AsyncCopy* copy);

// launch.cpp
struct Kernel {
  const char* name;
  size_t args_size, args_alignment;
  unsigned max_threads;
  const char* file;
  void (*run)(const void* args);
};
struct Registration {
  explicit Registration(const Kernel& kernel);
};

}  // namespace gradstone_host
