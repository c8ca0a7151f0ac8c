// warp.h: meetings of the lanes of a warp.
//
// A warp collective is a meeting of exactly the lanes in its mask. Meetings are told apart by their mask: two half
// warps, each with a mask of its own, meet at the same time. All lanes of a meeting must be at the same line with the
// same operation; a mask that leaves out its caller, or names a lane that has left the kernel, is an error. Lanes that
// the block does not have (its size is no multiple of 32) are not waited for.
// The lane that completes a meeting computes what the others will read (`Completion`), once for all of them.
#pragma once
#include "interface.h"

namespace gradstone_host {

struct WarpMeeting {
  unsigned mask;
  unsigned arrived;  ///< lanes that have come
  unsigned unread;   ///< of them, those that have not yet taken their result; 0: free for the next meeting
  bool open;         ///< some are still waited for
  Collective collective;
  Site site;
  uint64_t value[32];  ///< one word from each lane
  uint64_t result;
  char order;  ///< its address orders __syncwarp for ThreadSanitizer
};

/// The operands of a tensor-core product; `d` holds the result after the meeting. See mma.cpp.
struct MmaFragments {
  unsigned a[4], b[2];
  float d[4];
};

struct Warp {
  unsigned present;  ///< lanes that the block has
  unsigned left;     ///< of them, those that have left the kernel
  // A lane is in one meeting at a time and holds it until it has read, so there are never more than lanes.
  WarpMeeting meetings[32];
  unsigned used_meetings;
  // One product at a time: it takes all lanes, so none can begin the next before all have read this one.
  MmaFragments fragments[32];

  void reset();
  /// An open meeting that waits for `lane`, or null.
  const WarpMeeting* waiting_for(unsigned lane) const;
};

using Completion = void (*)(Warp&, WarpMeeting&);

/// The running thread brings `value` to the meeting of `mask`. Returns when all lanes are there; `done_reading` follows.
WarpMeeting& meet_warp(Collective collective, unsigned mask, uint64_t value, Site site, Completion completion);
inline void done_reading(WarpMeeting& meeting) { --meeting.unread; }

}  // namespace gradstone_host
