// block.h: one OS thread that runs blocks, one after another, as a multiprocessor would.
//
// A thread of the block is ready, or waits in a barrier or a warp collective, or has left the kernel. The running
// thread goes on until it has to wait; then it hands over to the next ready one directly (one switch, not two through a
// scheduler's stack). When nobody is ready and not all have left, the block is deadlocked. The OS thread's own stack is
// one more fiber: it begins the block, and gets the word back at the block's end or its first error.
//
// An error ends the launch where it stands: the message is kept, the fibers are abandoned on their stacks (kernels own
// nothing that would need a destructor) and set up afresh by the next block. Nothing of a failed launch remains.
#pragma once
#include <stdarg.h>

#include <string>
#include <vector>

#include "async_copy.h"
#include "barrier.h"
#include "fiber.h"
#include "interface.h"
#include "order.h"
#include "shared_memory.h"
#include "warp.h"

namespace gradstone_host {

/// One launch, checked.
struct Launch {
  const Kernel* kernel;
  const void* args;
  dim3 grid, block;
  size_t dynamic_bytes;
  Order order;
  uint64_t first_block, blocks;  ///< those of the grid that run
};

enum class State : unsigned char { Ready, AtBarrier, InCollective, Left };

struct CudaThread {
  Thread view;
  Fiber fiber;
  State state;
  Collective waits_for;  ///< while it waits
  Site waits_at;
  AsyncCopies copies;
};

class BlockRunner {
 public:
  BlockRunner() : stacks_(max_block_threads), threads_(max_block_threads) {}
  ~BlockRunner();

  /// To be called on the OS thread that will call `run`.
  void adopt_thread();
  /// Runs the block with this linear index. False: see `error`.
  bool run(const Launch& launch, uint64_t linear_block);
  const std::string& error() const { return error_; }

  // What follows is called from the running thread's fiber.
  CudaThread& self() { return *running_; }
  CudaThread& thread(unsigned linear) { return threads_[linear]; }
  Warp& warp() { return warps_[running_->view.warp]; }
  unsigned size() const { return size_; }
  unsigned left() const { return left_; }
  /// The running thread waits, until `wake`.
  void wait(State why, Collective for_what, Site where);
  void wake(CudaThread& thread);
  /// The running thread lets the order choose anew, itself included.
  void yield();
  /// The running thread's end.
  [[noreturn]] void leave_kernel();
  [[noreturn]] void fail(Site where, const char* format, va_list values);

  // For the handler of faults.
  char* stack_of_running() { return stacks_.bottom(running_->view.linear); }
  [[noreturn]] void fail_at_address(const void* address);

  BlockBarrier barrier;
  SharedMemory shared;

 private:
  static void thread_entry();
  void begin(const Launch& launch, uint64_t linear_block);
  void give_way();
  [[noreturn]] void stop();
  void check_leaving(CudaThread& thread);
  std::string describe_deadlock() const;
  std::string kernel_and_block() const;

  Stacks stacks_;
  std::vector<CudaThread> threads_;
  Warp warps_[max_block_threads / 32];
  ReadyThreads ready_;
  Fiber os_fiber_;
  const Launch* launch_ = nullptr;
  CudaThread* running_ = nullptr;
  uint3 block_index_{0, 0, 0};
  unsigned size_ = 0, left_ = 0;
  std::string error_;
  // Addresses that stand for the beginning and the end of a block. Two, because through one address a thread that
  // ends early would be ordered before one that begins late, and their race would not be seen.
  char begin_order_ = 0, end_order_ = 0;
};

/// The runner of this OS thread, while it runs a launch.
extern __thread BlockRunner* block_runner;

const char* collective_name(Collective collective);

}  // namespace gradstone_host
