// order.h: which of the threads that can run runs next, and in which order blocks are taken.
//
// CUDA promises no order, so a kernel's result may depend on none, and a test runs it under several. The greedy orders
// let one warp run ahead of the others as far as the barriers allow, from below or from above: they find the missing
// barrier between a read and the next write, which a fair order nearly always hides. Round robin keeps all threads in
// step, as a device often does. Random is seeded, so a failure can be repeated.
#pragma once
#include <stdint.h>

namespace gradstone_host {

struct Order {
  enum class Kind : uint32_t { LowestFirst, HighestFirst, RoundRobin, Random };
  Kind kind;
  uint64_t seed;  ///< of Random
};

constexpr unsigned max_block_threads = 1024;

/// The threads of a block that can run, as a bit set.
class ReadyThreads {
 public:
  /// No thread is ready; `threads` is the size of the block.
  void reset(Order order, unsigned threads, uint64_t block);
  void add(unsigned thread) { words_[thread / 64] |= uint64_t(1) << (thread % 64); }
  /// Takes out the thread that runs next, or gives -1.
  int take();

 private:
  int lowest_from(unsigned thread) const;
  int highest() const;

  Order order_;
  uint64_t words_[max_block_threads / 64];
  uint64_t random_;
  unsigned threads_, used_words_, latest_;
};

/// The blocks of a launch, counted from its first, in the order in which they are begun.
class BlockOrder {
 public:
  BlockOrder(Order order, uint64_t blocks);
  uint64_t block(uint64_t position) const;

 private:
  Order::Kind kind_;
  uint64_t blocks_, step_ = 1, start_ = 0;
};

}  // namespace gradstone_host
