// warp.cpp: __syncwarp, shuffles, votes, matches and reductions of a warp. See warp.h for the rules.
//
// A shuffle orders no memory, as in CUDA: code that leans on one as if it were a barrier is reported by
// ThreadSanitizer. Only __syncwarp orders.
#include "warp.h"

#include "block.h"

namespace gradstone_host {

void Warp::reset() {
  present = left = 0;
  used_meetings = 0;
}

const WarpMeeting* Warp::waiting_for(unsigned lane) const {
  for (unsigned i = 0; i < used_meetings; ++i) {
    const WarpMeeting& meeting = meetings[i];
    if (meeting.open && (meeting.mask & ~meeting.arrived) >> lane & 1) return &meeting;
  }
  return nullptr;
}

namespace {

// The open meeting of this mask, or a free one made into it.
WarpMeeting& find_meeting(Warp& warp, Collective collective, unsigned mask, Site site) {
  WarpMeeting* unused = nullptr;
  for (unsigned i = 0; i < warp.used_meetings; ++i) {
    WarpMeeting& meeting = warp.meetings[i];
    if (meeting.open && meeting.mask == mask) return meeting;
    if (meeting.unread == 0 && !unused) unused = &meeting;
  }
  if (!unused) unused = &warp.meetings[warp.used_meetings++];
  unused->mask = mask;
  unused->arrived = 0;
  unused->unread = 0;
  unused->open = true;
  unused->collective = collective;
  unused->site = site;
  return *unused;
}

unsigned lanes_with_value(const WarpMeeting& meeting, uint64_t value) {
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (meeting.arrived >> lane & 1 && meeting.value[lane] == value) lanes |= 1u << lane;
  }
  return lanes;
}

uint32_t combine(Collective collective, uint32_t a, uint32_t b) {
  switch (collective) {
    case Collective::ReduceAdd: return a + b;
    case Collective::ReduceMin: return a < b ? a : b;
    case Collective::ReduceMax: return a > b ? a : b;
    case Collective::ReduceMinSigned: return int32_t(a) < int32_t(b) ? a : b;
    case Collective::ReduceMaxSigned: return int32_t(a) > int32_t(b) ? a : b;
    case Collective::ReduceAnd:
    case Collective::All: return a & b;
    case Collective::ReduceXor: return a ^ b;
    default: return a | b;  // ReduceOr, Any
  }
}

void reduce(Warp&, WarpMeeting& meeting) {
  if (meeting.collective == Collective::Ballot) {
    meeting.result = lanes_with_value(meeting, 1);
    return;
  }
  bool first = true;
  uint32_t total = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(meeting.arrived >> lane & 1)) continue;
    const uint32_t value = uint32_t(meeting.value[lane]);
    total = first ? value : combine(meeting.collective, total, value);
    first = false;
  }
  meeting.result = total;
}

}  // namespace

WarpMeeting& meet_warp(Collective collective, unsigned mask, uint64_t value, Site site, Completion completion) {
  BlockRunner& block = *block_runner;
  Warp& warp = block.warp();
  const Thread& caller = block.self().view;
  const unsigned bit = 1u << caller.lane;
  if (!(mask & bit)) {
    fail(site, "%s with mask %08x, which does not name its caller, lane %u", collective_name(collective), mask,
         caller.lane);
  }
  if (mask & warp.left) {
    fail(site, "%s with mask %08x, which names lanes that have left the kernel (%08x)", collective_name(collective),
         mask, mask & warp.left);
  }
  WarpMeeting& meeting = find_meeting(warp, collective, mask, site);
  if (meeting.collective != collective || !same_site(meeting.site, site)) {
    fail(site, "divergent warp collective: the thread is in %s here, lanes %08x of the same mask wait in %s at %s:%d",
         collective_name(collective), meeting.arrived, collective_name(meeting.collective), meeting.site.file,
         meeting.site.line);
  }
  const bool orders_memory = collective == Collective::SyncWarp;
  meeting.value[caller.lane] = value;
  meeting.arrived |= bit;
  ++meeting.unread;
  if (orders_memory) happens_before(&meeting.order);
  const unsigned awaited = mask & warp.present;
  if (meeting.arrived != awaited) {
    block.wait(State::InCollective, collective, site);
  } else {
    if (completion) completion(warp, meeting);
    meeting.open = false;
    const unsigned first_thread = caller.warp * 32;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if ((awaited & ~bit) >> lane & 1) block.wake(block.thread(first_thread + lane));
    }
    block.yield();
  }
  if (orders_memory) happens_after(&meeting.order);
  return meeting;
}

void warp_barrier(unsigned mask, Site site) {
  done_reading(meet_warp(Collective::SyncWarp, mask, 0, site, nullptr));
}

uint64_t warp_shuffle(Collective collective, unsigned mask, uint64_t value, unsigned operand, int width, Site site) {
  if (width < 1 || width > 32 || (width & (width - 1))) {
    fail(site, "%s with width %d, which is no power of two up to 32", collective_name(collective), width);
  }
  WarpMeeting& meeting = meet_warp(collective, mask, value, site, nullptr);
  const int lane = int(block_runner->self().view.lane);
  const int first = lane & ~(width - 1), last = first + width - 1;  // of the segment
  // A source outside the segment gives the caller its own value. In 64 bits: the operand may be any 32.
  int64_t source = lane;
  switch (collective) {
    case Collective::Shuffle:
      source = first + int(operand & unsigned(width - 1));
      break;
    case Collective::ShuffleUp:
      source = int64_t(lane) - operand < first ? lane : int64_t(lane) - operand;
      break;
    case Collective::ShuffleDown:
      source = int64_t(lane) + operand > last ? lane : int64_t(lane) + operand;
      break;
    default:  // xor may reach an earlier segment, not a later one
      source = int64_t(unsigned(lane) ^ operand) > last ? lane : int64_t(unsigned(lane) ^ operand);
      break;
  }
  // What a lane that takes no part would give is undefined; all ones is NaN in every float and -1 in every int.
  const uint64_t received = meeting.arrived >> source & 1 ? meeting.value[source] : ~uint64_t(0);
  done_reading(meeting);
  return received;
}

uint32_t warp_reduce(Collective collective, unsigned mask, uint32_t value, Site site) {
  WarpMeeting& meeting = meet_warp(collective, mask, value, site, reduce);
  const uint32_t result = uint32_t(meeting.result);
  done_reading(meeting);
  return result;
}

unsigned warp_match(Collective collective, unsigned mask, uint64_t value, int* all_equal, Site site) {
  WarpMeeting& meeting = meet_warp(collective, mask, value, site, nullptr);
  unsigned lanes = lanes_with_value(meeting, value);
  if (collective == Collective::MatchAll) {
    *all_equal = lanes == meeting.arrived;
    if (!*all_equal) lanes = 0;
  }
  done_reading(meeting);
  return lanes;
}

}  // namespace gradstone_host
