// async_copy.cpp: the queue of deferred copies of a thread. See async_copy.h.
#include "async_copy.h"

#include "block.h"

namespace gradstone_host {

void AsyncCopies::reset() {
  queue_.clear();
  group_ends_.clear();
  taken_ = 0;
}

void AsyncCopies::issue(AsyncCopy copy, Site site) { queue_.push_back({copy, site}); }

// An empty group counts too: kernels commit one in their last rounds so that the arithmetic of waits stays the same.
void AsyncCopies::commit() { group_ends_.push_back(queue_.size()); }

bool AsyncCopies::take_done(unsigned groups_in_flight, AsyncCopy* copy) {
  while (group_ends_.size() > groups_in_flight) {
    if (taken_ < group_ends_.front()) {
      *copy = queue_[taken_++].copy;
      return true;
    }
    group_ends_.erase(group_ends_.begin());
  }
  if (group_ends_.empty() && taken_ == queue_.size()) {
    queue_.clear();
    taken_ = 0;
  }
  return false;
}

void async_copy_issue(AsyncCopy copy, Site site) {
  if (!block_runner->shared.contains(copy.shared, 16)) {
    fail(site, "cp_async16 to %p, which is not shared memory", copy.shared);
  }
  if (block_runner->shared.contains(copy.global, 16)) {
    fail(site, "cp_async16 from %p, which is shared memory, not global", copy.global);
  }
  block_runner->self().copies.issue(copy, site);
}

void async_copy_commit() { block_runner->self().copies.commit(); }

bool async_copy_take_done(unsigned groups_in_flight, AsyncCopy* copy) {
  return block_runner->self().copies.take_done(groups_in_flight, copy);
}

}  // namespace gradstone_host
