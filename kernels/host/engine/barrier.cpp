// barrier.cpp: __syncthreads and its counting variants. See barrier.h for the rules.
#include "barrier.h"

#include "block.h"

namespace gradstone_host {

int BlockBarrier::meet(BlockRunner& block, Collective collective, int predicate, Site site) {
  if (block.left()) {
    fail(site, "%s after %u threads of the block have left the kernel", collective_name(collective), block.left());
  }
  if (arrived_ == 0) {
    collective_ = collective;
    site_ = site;
    gathered_ = collective == Collective::SyncThreadsAnd;
  } else if (collective_ != collective || !same_site(site_, site)) {
    fail(site, "divergent barrier: the thread is in %s here, %u others of its block wait in %s at %s:%d",
         collective_name(collective), arrived_, collective_name(collective_), site_.file, site_.line);
  }
  const int holds = predicate != 0;
  if (collective == Collective::SyncThreadsCount) gathered_ += holds;
  if (collective == Collective::SyncThreadsAnd) gathered_ &= holds;
  if (collective == Collective::SyncThreadsOr) gathered_ |= holds;

  const unsigned round = round_ & 1;
  happens_before(&order_[round]);
  if (++arrived_ < block.size()) {
    block.wait(State::AtBarrier, collective, site);
  } else {
    result_[round] = gathered_;
    arrived_ = 0;
    ++round_;
    // Nobody has left, so all others are waiting here.
    for (unsigned i = 0; i < block.size(); ++i) {
      if (&block.thread(i) != &block.self()) block.wake(block.thread(i));
    }
    block.yield();
  }
  happens_after(&order_[round]);
  return result_[round];
}

int block_barrier(Collective collective, int predicate, Site site) {
  return block_runner->barrier.meet(*block_runner, collective, predicate, site);
}

}  // namespace gradstone_host
