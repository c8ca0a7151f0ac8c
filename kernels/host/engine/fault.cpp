// fault.cpp: the handler of SIGSEGV and SIGBUS. See fault.h.
#include "fault.h"

#if defined(__linux__) && !defined(GRADSTONE_HOST_ASAN) && !defined(GRADSTONE_HOST_TSAN)
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#include <mutex>

#include "block.h"

namespace gradstone_host {
namespace {

struct sigaction handler_before[2];  // of SIGSEGV, of SIGBUS
__thread void* faulting_address;

[[noreturn]] void fail_the_launch() { block_runner->fail_at_address(faulting_address); }

// Where the signal returns to: fail_the_launch, on the fiber's stack but away from its end, over frames that nobody
// will return to.
void redirect(ucontext_t* context, char* stack) {
  const uintptr_t landing = (reinterpret_cast<uintptr_t>(stack) + Stacks::bytes / 2) & ~uintptr_t(63);
#if defined(__x86_64__)
  context->uc_mcontext.gregs[REG_RSP] = greg_t(landing - 8);  // as after a call
  context->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&fail_the_launch);
#else
  context->uc_mcontext.sp = landing;
  context->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&fail_the_launch);
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
  if (current_thread) {
    faulting_address = info->si_addr;
    redirect(static_cast<ucontext_t*>(context), block_runner->stack_of_running());
    return;
  }
  struct sigaction& before = handler_before[signal == SIGBUS];
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    sigaction(signal, &before, nullptr);  // the instruction faults again, and the system does its part
  }
}

constexpr size_t signal_stack_bytes = 64 * 1024;

}  // namespace

FaultGuard::FaultGuard() {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &handler_before[0]);
    sigaction(SIGBUS, &action, &handler_before[1]);
  });
  stack_t now;
  if (sigaltstack(nullptr, &now) != 0 || !(now.ss_flags & SS_DISABLE)) return;
  signal_stack_ = malloc(signal_stack_bytes);
  stack_t ours = {};
  ours.ss_sp = signal_stack_;
  ours.ss_size = signal_stack_bytes;
  sigaltstack(&ours, nullptr);
}

FaultGuard::~FaultGuard() {
  if (!signal_stack_) return;
  stack_t none = {};
  none.ss_flags = SS_DISABLE;
  sigaltstack(&none, nullptr);
  free(signal_stack_);
}

}  // namespace gradstone_host

#else

namespace gradstone_host {
FaultGuard::FaultGuard() {}
FaultGuard::~FaultGuard() {}
}  // namespace gradstone_host

#endif
