// fault.h: an access to memory that is not there, made an error of the launch instead of the end of the process.
//
// In the plain build a wild pointer or a stack that overflows raises SIGSEGV. While a kernel runs, the handler here
// lets the signal return not to the faulting instruction but into a function that fails the launch; the thread's frames
// are abandoned, as in any failed launch. Signals from elsewhere go to whoever handled them before (Rust's own handler).
// A sanitizer build leaves the signal to the sanitizer, which knows the line.
#pragma once

namespace gradstone_host {

/// While it lives, faults of kernels on this OS thread are caught.
class FaultGuard {
 public:
  FaultGuard();
  ~FaultGuard();
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

 private:
  // Of ours, when the OS thread had none: the fiber's own may be what overflowed.
  [[maybe_unused]] void* signal_stack_ = nullptr;
};

}  // namespace gradstone_host
