// fiber.h: a stack and a place in the code that can be left and come back to.
//
// One CUDA thread is one fiber, because only then can a barrier deep inside a device function wait: the function's
// frame has to survive while the other threads of the block catch up. An OS thread for each would do the same and
// costs a hundred times more; swapcontext makes a system call to save the signal mask and costs ten times more;
// C++20 coroutines would have to be written into the kernels. So: a dozen instructions of assembly that save the
// registers a call must preserve, exchange the stack pointers, and return on the other stack.
// Floating-point control words are not exchanged: no kernel changes a rounding mode.
#pragma once
#include <stddef.h>

#include "sanitizer.h"

namespace gradstone_host {

struct Fiber {
  void* stack_pointer = nullptr;  ///< its registers lie there while it does not run
  SanitizedFiber sanitized;
};

/// Address space for `count` stacks, each with inaccessible pages below it, taken from the system when first used.
class Stacks {
 public:
  explicit Stacks(unsigned count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  static constexpr size_t bytes = 128 * 1024;
  /// The lowest usable byte of stack `index`; there are `bytes` of them.
  char* bottom(unsigned index);

 private:
  char* region_;
  size_t region_bytes_, guard_bytes_;
  unsigned guarded_ = 0;  ///< stacks 0..guarded_ have their guard set
};

/// Makes `fiber` begin `entry` on this stack when it is switched to. `entry` must not return.
/// `index` colours the stack: see the definition.
void prepare(Fiber& fiber, char* bottom, unsigned index, void (*entry)());

/// Leaves `from`, which is running, and goes on in `to`. Returns when something switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

/// The same for a fiber at its end.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

}  // namespace gradstone_host
