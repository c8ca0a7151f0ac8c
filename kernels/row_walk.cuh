// row_walk.cuh: how a row is walked by the threads that share it. Nothing here knows an operation by name.
//
// A short row belongs to a warp, a long one to a block. Either way thread t of THREADS takes the elements
// [t N, t N + N), then those THREADS N further on: a split that depends on the row's width alone, so its sums do too,
// whatever the alignment. Where rows are aligned a group of N elements is 16 bytes of the storage type; where they are
// not, the same elements come one by one.
#pragma once
#include "prim.cuh"
#include "args/row_walk.h"

constexpr int ROW_BLOCK = 256;  // threads of a block
constexpr int HELD_GROUPS = 4;  // groups of a thread that stay in registers between two walks of a row

// n / d of numbers that are not negative: the 32-bit division where both fit, it is several times cheaper.
__device__ __forceinline__ int64_t quotient(int64_t n, int64_t d) {
  return ((n | d) >> 32) == 0 ? int64_t(uint32_t(n) / uint32_t(d)) : n / d;
}

template <class T, int N>
struct Group {
  T at[N];
};

// N elements as they lie in memory: registers hold two 16-bit values each until they are worked on.
template <class T, int N>
struct Words {
  static constexpr int COUNT = N / Vec16<T>::SIZE;
  uint4 at[COUNT];
};

template <int N, class T>
__device__ __forceinline__ Words<T, N> load_words(const T* address) {
  Words<T, N> words;
#pragma unroll
  for (int i = 0; i < words.COUNT; i++) words.at[i] = reinterpret_cast<const uint4*>(address)[i];
  return words;
}

// The same, zeros from `count` on, at any alignment.
template <int N, class T>
__device__ __forceinline__ Words<T, N> load_words(const T* address, int64_t count, bool aligned) {
  if (aligned && count >= N) return load_words<N>(address);
  union {
    Words<T, N> words;
    T at[N];
  } both;
#pragma unroll
  for (int i = 0; i < N; i++) both.at[i] = i < count ? address[i] : T{};
  return both.words;
}

template <class T, int N>
__device__ __forceinline__ Group<float, N> widened(const Words<T, N>& words) {
  constexpr int SIZE = Vec16<T>::SIZE;
  Group<float, N> group;
#pragma unroll
  for (int i = 0; i < words.COUNT; i++) {
    float values[SIZE];
    widen<T>(words.at[i], values);
#pragma unroll
    for (int j = 0; j < SIZE; j++) group.at[i * SIZE + j] = values[j];
  }
  return group;
}

// N elements, zeros from `count` on. `aligned`: the address is a multiple of 16.
template <int N, class T>
__device__ __forceinline__ Group<T, N> load_group(const T* address, int64_t count, bool aligned) {
  constexpr int SIZE = Vec16<T>::SIZE;
  static_assert(N % SIZE == 0, "whole vectors");
  Group<T, N> group;
  if (aligned && count >= N) {
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
      const Vec16<T> vec = load16(address + i);
#pragma unroll
      for (int j = 0; j < SIZE; j++) group.at[i + j] = vec.at[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) group.at[i] = i < count ? address[i] : T{};
  }
  return group;
}

// The first `count` of N elements, all of them where there is room for more.
template <int N, class T>
__device__ __forceinline__ void store_group(T* address, const Group<T, N>& group, int64_t count, bool aligned) {
  constexpr int SIZE = Vec16<T>::SIZE;
  if (aligned && count >= N) {
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
      Vec16<T> vec;
#pragma unroll
      for (int j = 0; j < SIZE; j++) vec.at[j] = group.at[i + j];
      store16(address + i, vec);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (i < count) address[i] = group.at[i];
    }
  }
}

// The rows of one group of THREADS threads: for (RowTurn<THREADS> turn; turn.row < rows; turn.next()).
template <int THREADS>
struct RowTurn {
  static_assert(THREADS == WARP || THREADS == ROW_BLOCK, "a warp or a block");
  int64_t row = int64_t(blockIdx.x) * (ROW_BLOCK / THREADS) + threadIdx.x / THREADS;
  __device__ __forceinline__ void next() { row += int64_t(gridDim.x) * (ROW_BLOCK / THREADS); }
};

template <int THREADS>
__device__ __forceinline__ int thread_of_row() {
  return int(threadIdx.x) % THREADS;
}

// Calls f(k, at) for every group of this thread: `at` is its first element; k counts up to HELD_GROUPS and stays there,
// and is known at compile time, so that it can index registers.
template <int N, int THREADS, class F>
__device__ __forceinline__ void for_each_group(int64_t width, F f) {
#pragma unroll
  for (int k = 0; k < HELD_GROUPS; k++) {
    const int64_t at = int64_t(k * THREADS + thread_of_row<THREADS>()) * N;
    if (at < width) f(k, at);
  }
  for (int64_t at = int64_t(HELD_GROUPS * THREADS + thread_of_row<THREADS>()) * N; at < width; at += THREADS * N) {
    f(HELD_GROUPS, at);
  }
}

// N elements as floats, zeros from `count` on. `aligned`: the address is a multiple of 16.
template <int N, class T>
__device__ __forceinline__ Group<float, N> load_wide(const T* address, int64_t count, bool aligned) {
  return widened<T, N>(load_words<N>(address, count, aligned));
}

// N floats rounded to T, the first `count` of them.
template <class T, int N>
__device__ __forceinline__ void store_rounded(T* address, const Group<float, N>& group, int64_t count, bool aligned) {
  constexpr int SIZE = Vec16<T>::SIZE;
  if (aligned && count >= N) {
#pragma unroll
    for (int i = 0; i < N; i += SIZE) __stwb(reinterpret_cast<uint4*>(address + i), narrow<T>(group.at + i));
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (i < count) address[i] = from_float<T>(group.at[i]);
    }
  }
}

// A row that is walked more than once: what fits stays in registers, as it lies in memory, and is asked for at once, so
// that its loads are in flight together; the rest is read in every walk (from a cache, after the first).
template <class T, int N>
struct HeldRow {
  const T* row;
  int64_t width;
  bool aligned;
  Words<T, N> kept[HELD_GROUPS];

  template <int THREADS>
  static __device__ __forceinline__ HeldRow load(const T* row, int64_t width, bool aligned) {
    HeldRow held;
    held.row = row;
    held.width = width;
    held.aligned = aligned;
    bool ragged = false;
#pragma unroll
    for (int k = 0; k < HELD_GROUPS; k++) {
      const int64_t at = int64_t(k * THREADS + thread_of_row<THREADS>()) * N;
      held.kept[k] = Words<T, N>{};
      if (aligned && at + N <= width) {  // nothing but loads: no branch stands between them
        held.kept[k] = load_words<N>(row + at);
      } else if (at < width) {
        ragged = true;
      }
    }
    if (ragged) {
#pragma unroll
      for (int k = 0; k < HELD_GROUPS; k++) {
        const int64_t at = int64_t(k * THREADS + thread_of_row<THREADS>()) * N;
        if (at < width && !(aligned && at + N <= width)) held.kept[k] = load_words<N>(row + at, width - at, aligned);
      }
    }
    return held;
  }

  // In any walk.
  __device__ __forceinline__ Group<float, N> values(int k, int64_t at) const {
    return widened<T, N>(k < HELD_GROUPS ? kept[k] : load_words<N>(row + at, width - at, aligned));
  }
};

// The sums of term(i, row) over WEIGHT_SUM_ROWS rows at a time, in order, a thread a column: the gradient of a weight that
// all rows share. `i` is the element in row `row` and this thread's column.
template <class F>
__device__ __forceinline__ void column_partials(float* partial, int64_t rows, int64_t width, F term) {
  const int64_t column = thread_in_grid();
  if (column >= width) return;
  const int64_t stride = int64_t(gridDim.y) * WEIGHT_SUM_ROWS;
  for (int64_t first = int64_t(blockIdx.y) * WEIGHT_SUM_ROWS; first < rows; first += stride) {
    const int64_t end = first + WEIGHT_SUM_ROWS < rows ? first + WEIGHT_SUM_ROWS : rows;
    float sum = 0.0f;
    for (int64_t row = first; row < end; row++) sum += term(row * width + column, row);
    partial[first / WEIGHT_SUM_ROWS * width + column] = sum;
  }
}

struct SumPair {
  float first, second;
};
struct AddPairs {
  __device__ __forceinline__ SumPair operator()(SumPair a, SumPair b) const {
    return SumPair{a.first + b.first, a.second + b.second};
  }
};

// One kernel a storage type: the width decides who shares a row. `blocks` is how many shall fit on a multiprocessor: what
// a thread holds of its row must stay in registers, and left to itself the compiler spills a word to fit one more.
#define ROW_KERNEL(name, suffix, T, Args, blocks)                \
  KERNEL_RESIDENT(name##_##suffix, Args, ROW_BLOCK, blocks) {    \
    if (a.width <= WARP_ROW_WIDTH) {                             \
      name<T, WARP>(a);                                          \
    } else {                                                     \
      name<T, ROW_BLOCK>(a);                                     \
    }                                                            \
  }
#define ROW_KERNELS(name, Args, blocks)       \
  ROW_KERNEL(name, f32, float, Args, blocks)  \
  ROW_KERNEL(name, bf16, bf16, Args, blocks)  \
  ROW_KERNEL(name, f16, f16, Args, blocks)
