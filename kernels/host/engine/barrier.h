// barrier.h: the state of a block's __syncthreads.
//
// The rules are strict, because what breaks them works on some devices and hangs on others: all threads of the block
// come to the same line, and none has left the kernel before.
#pragma once
#include "interface.h"

namespace gradstone_host {

class BlockRunner;

class BlockBarrier {
 public:
  void reset() { arrived_ = 0; }
  /// The running thread of `block` arrives; returns when all have.
  int meet(BlockRunner& block, Collective collective, int predicate, Site site);

  unsigned arrived() const { return arrived_; }
  Site site() const { return site_; }
  Collective collective() const { return collective_; }

 private:
  unsigned arrived_ = 0;  ///< how many wait; 0 between two rounds
  unsigned round_ = 0;
  Collective collective_ = Collective::SyncThreads;
  Site site_{nullptr, 0};
  int gathered_ = 0;
  // Of this round and the one before: a fast thread may arrive at the next barrier before a slow one has read the
  // last result, but cannot pass it. The same for the address that orders a round for ThreadSanitizer: with a single
  // one, a slow thread would be ordered after what a fast thread did in between, and a missing barrier not be seen.
  int result_[2] = {0, 0};
  char order_[2] = {0, 0};
};

}  // namespace gradstone_host
