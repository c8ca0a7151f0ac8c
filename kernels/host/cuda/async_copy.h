// async_copy.h: cp.async, 16 bytes from global to shared memory behind the thread's back.
//
// On the device the bytes arrive at some time between the issue and the wait for the group. An immediate copy would
// hide a missing wait, so the copy is done as late as allowed: at the wait. And because the device may be as early as
// the issue, the destination is filled with 0xFF there: whoever still reads the old content (a missing barrier before
// the issue) or reads before the wait gets NaN, and ThreadSanitizer sees a write at both ends of the interval.
// These functions are instrumented on purpose: the accesses are the kernel's own.
#pragma once

inline void cp_async16(void* shared, const void* global, GRADSTONE_SITE) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    gradstone_host::fail(GRADSTONE_HERE, "misaligned address in cp_async16: shared %p, global %p", shared, global);
  }
  gradstone_host::async_copy_issue({shared, global}, GRADSTONE_HERE);
  // The source must be readable now: an address sanitizer then reports the line of the issue, not of the wait.
  static_cast<void>(*static_cast<const volatile unsigned*>(global));
  static_cast<void>(*(static_cast<const volatile unsigned*>(global) + 3));
  uint4* destination = static_cast<uint4*>(shared);
  *destination = make_uint4(~0u, ~0u, ~0u, ~0u);
}

/// Closes the thread's current group of copies.
inline void cp_async_commit() { gradstone_host::async_copy_commit(); }

/// Waits until at most N of the thread's latest groups are in flight. Other threads still need a barrier after it.
template <int N>
inline void cp_async_wait() {
  static_assert(N >= 0, "a count of groups");
  gradstone_host::AsyncCopy copy;
  while (gradstone_host::async_copy_take_done(N, &copy)) {
    *static_cast<uint4*>(copy.shared) = *static_cast<const uint4*>(copy.global);
  }
}
