// fiber.cpp: the switch in assembly, and the memory of the stacks. See fiber.h for why.
//
// Layout of a stack that does not run, from `stack_pointer` upwards: the callee-saved registers, then the address to
// go on at. `prepare` writes the same picture by hand, so that the first switch to a fiber "returns" into its entry.
#include "fiber.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// Named by an asm label, so that the symbol is the same where the platform puts an underscore before C names.
extern "C" void gradstone_host_exchange_stacks(void** save, void* load) __asm__("gradstone_host_exchange_stacks");

#if defined(__x86_64__)
// rdi: where to save the old stack pointer; rsi: the new one. System V preserves rbp, rbx, r12 to r15.
__asm__(R"(
.text
.globl gradstone_host_exchange_stacks
gradstone_host_exchange_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
namespace {
constexpr unsigned entry_word = 6;  // above the six registers
// `ret` takes the entry from the stack; a function expects the stack 8 off a multiple of 16 there, and finds the
// zero above as its return address, where a stack walk ends.
constexpr unsigned frame_words = 8;
}  // namespace
#elif defined(__aarch64__)
// x0: where to save the old stack pointer; x1: the new one. AAPCS64 preserves x19 to x29, the link register's value
// and the low halves of v8 to v15.
__asm__(R"(
.text
.balign 4
.globl gradstone_host_exchange_stacks
gradstone_host_exchange_stacks:
  sub sp, sp, #176
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #176
  ret
)");
namespace {
constexpr unsigned entry_word = 11;  // x30, the address that `ret` goes to
constexpr unsigned frame_words = 22;
}  // namespace
#else
#error "fiber.cpp: write the stack exchange for this processor (x86-64 and aarch64 are here)"
#endif

namespace gradstone_host {

// Sixteen pages: a large frame could step over a single one.
Stacks::Stacks(unsigned count) : guard_bytes_(16 * size_t(sysconf(_SC_PAGESIZE))) {
  region_bytes_ = count * (bytes + guard_bytes_);
  int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
  flags |= MAP_NORESERVE;  // 128 MiB of address space, of which a small block touches a few pages
#endif
  void* region = mmap(nullptr, region_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (region == MAP_FAILED) abort();
  region_ = static_cast<char*>(region);
}

Stacks::~Stacks() { munmap(region_, region_bytes_); }

char* Stacks::bottom(unsigned index) {
  const size_t stride = bytes + guard_bytes_;
  for (; guarded_ <= index; ++guarded_) mprotect(region_ + guarded_ * stride, guard_bytes_, PROT_NONE);
  return region_ + index * stride + guard_bytes_;
}

void prepare(Fiber& fiber, char* bottom, unsigned index, void (*entry)()) {
  begin_fiber(fiber.sanitized, bottom, Stacks::bytes);
  // Colouring: stacks lie a fixed distance apart, so without an offset the same frame of every thread falls on the
  // same few cache sets. 448 bytes are seven lines, which visits every line of 16 KiB before it repeats.
  char* top = bottom + Stacks::bytes - index * 448u % 16384u;
  void** frame = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15)) - frame_words;
  memset(frame, 0, frame_words * sizeof(void*));
  frame[entry_word] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = frame;
}

void switch_fiber(Fiber& from, Fiber& to) {
  before_switch(from.sanitized, to.sanitized, false);
  gradstone_host_exchange_stacks(&from.stack_pointer, to.stack_pointer);
  after_switch(from.sanitized);
}

void leave_fiber(Fiber& from, Fiber& to) {
  before_switch(from.sanitized, to.sanitized, true);
  gradstone_host_exchange_stacks(&from.stack_pointer, to.stack_pointer);
  abort();  // nobody switches to a fiber that has ended
}

}  // namespace gradstone_host
