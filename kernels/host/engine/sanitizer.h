// sanitizer.h: what the sanitizers must be told about fibers and memory, in one place; nothing in the plain build.
//
// AddressSanitizer has to know which stack is in use, so every switch is announced before and confirmed after.
// ThreadSanitizer gets one of its own fibers for each of ours and so treats each CUDA thread as a thread: a missing
// barrier is then a data race, found whatever the order the threads really ran in. A switch is announced as one that
// orders nothing (else running on one OS thread would order everything); order comes only from `happens_before` and
// `happens_after`, which the barriers call on an address that stands for them.
// GRADSTONE_HOST_ASAN and GRADSTONE_HOST_TSAN are set by build.rs for kernels and engine alike; the engine itself is
// never instrumented (see interface.h).
#pragma once
#include <pthread.h>
#include <stddef.h>

#if defined(GRADSTONE_HOST_ASAN)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack_save, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack_save, const void** bottom_old, size_t* size_old);
void __asan_poison_memory_region(void const volatile* address, size_t size);
void __asan_unpoison_memory_region(void const volatile* address, size_t size);
}
#endif
#if defined(GRADSTONE_HOST_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif

namespace gradstone_host {

/// The sanitizers' share of a fiber.
struct SanitizedFiber {
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;  ///< AddressSanitizer's, while the fiber does not run
  void* race_thread = nullptr;  ///< ThreadSanitizer's fiber
};

inline const char* sanitizer_name() {
#if defined(GRADSTONE_HOST_ASAN)
  return "address";
#elif defined(GRADSTONE_HOST_TSAN)
  return "thread";
#else
  return "none";
#endif
}

/// `fiber` stands for the OS thread that calls, with its own stack.
inline void adopt_os_thread([[maybe_unused]] SanitizedFiber& fiber) {
#if defined(GRADSTONE_HOST_ASAN)
  static __thread void* bottom = nullptr;  // kept: for the main thread the question reads /proc
  static __thread size_t size = 0;
  if (!bottom) {
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &size);
    pthread_attr_destroy(&attributes);
  }
  fiber.stack_bottom = bottom;
  fiber.stack_size = size;
#elif defined(GRADSTONE_HOST_TSAN)
  fiber.race_thread = __tsan_get_current_fiber();
#endif
}

/// `fiber` starts afresh on the stack given.
inline void begin_fiber([[maybe_unused]] SanitizedFiber& fiber, [[maybe_unused]] void* bottom,
                        [[maybe_unused]] size_t size) {
#if defined(GRADSTONE_HOST_ASAN)
  fiber.stack_bottom = bottom;
  fiber.stack_size = size;
  fiber.fake_stack = nullptr;
#elif defined(GRADSTONE_HOST_TSAN)
  // Kept from block to block: the end of a block is ordered before the next (block.cpp), so a fresh one would know
  // no less, and to make one costs more than a small block.
  if (!fiber.race_thread) fiber.race_thread = __tsan_create_fiber(0);
#endif
}

/// `fiber` was left in the middle of a kernel and will not go on there. What it did comes before whatever follows a later
/// `happens_after` on `order`: its stack is used again.
inline void abandon_fiber([[maybe_unused]] SanitizedFiber& fiber, [[maybe_unused]] void* order) {
#if defined(GRADSTONE_HOST_ASAN)
  // Frames that never return leave their guards poisoned.
  if (fiber.stack_size) __asan_unpoison_memory_region(fiber.stack_bottom, fiber.stack_size);
#elif defined(GRADSTONE_HOST_TSAN)
  // Its shadow call stack still holds the abandoned frames.
  if (!fiber.race_thread) return;
  constexpr unsigned orders_nothing = 1;
  void* const here = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(fiber.race_thread, orders_nothing);
  __tsan_release(order);
  __tsan_switch_to_fiber(here, orders_nothing);
  __tsan_destroy_fiber(fiber.race_thread);
  fiber.race_thread = nullptr;
#endif
}

/// Called on the stack of `from`, just before the switch to `to`. `ends`: `from` will not run again.
inline void before_switch([[maybe_unused]] SanitizedFiber& from, [[maybe_unused]] SanitizedFiber& to,
                          [[maybe_unused]] bool ends) {
#if defined(GRADSTONE_HOST_ASAN)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
#elif defined(GRADSTONE_HOST_TSAN)
  constexpr unsigned orders_nothing = 1;
  __tsan_switch_to_fiber(to.race_thread, orders_nothing);
#endif
}

/// Called on the stack of `now`, just after a switch brought it back, or first of all in a new fiber.
inline void after_switch([[maybe_unused]] SanitizedFiber& now) {
#if defined(GRADSTONE_HOST_ASAN)
  __sanitizer_finish_switch_fiber(now.fake_stack, nullptr, nullptr);
#endif
}

/// All that the caller did so far comes before whatever follows a later `happens_after` on the same address.
inline void happens_before([[maybe_unused]] void* address) {
#if defined(GRADSTONE_HOST_TSAN)
  __tsan_release(address);
#endif
}
inline void happens_after([[maybe_unused]] void* address) {
#if defined(GRADSTONE_HOST_TSAN)
  __tsan_acquire(address);
#endif
}

/// From now on an access to these bytes is an error (to AddressSanitizer), or is none again.
inline void forbid([[maybe_unused]] void* address, [[maybe_unused]] size_t size) {
#if defined(GRADSTONE_HOST_ASAN)
  __asan_poison_memory_region(address, size);
#endif
}
inline void allow([[maybe_unused]] void* address, [[maybe_unused]] size_t size) {
#if defined(GRADSTONE_HOST_ASAN)
  __asan_unpoison_memory_region(address, size);
#endif
}

}  // namespace gradstone_host
