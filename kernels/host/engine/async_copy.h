// async_copy.h: the cp.async copies that one thread has in flight. See cuda/async_copy.h for what they model.
#pragma once
#include <vector>

#include "interface.h"

namespace gradstone_host {

class AsyncCopies {
 public:
  void reset();
  void issue(AsyncCopy copy, Site site);
  void commit();
  /// Gives the oldest copy of a group that may no longer be in flight when at most `groups_in_flight` may.
  bool take_done(unsigned groups_in_flight, AsyncCopy* copy);

  size_t pending() const { return queue_.size() - taken_; }
  Site first_pending() const { return queue_[taken_].site; }

 private:
  struct Issued {
    AsyncCopy copy;
    Site site;
  };
  std::vector<Issued> queue_;  ///< all since the queue was last empty; the first `taken_` are done
  std::vector<size_t> group_ends_;  ///< positions in the queue, of groups not yet retired
  size_t taken_ = 0;
};

}  // namespace gradstone_host
