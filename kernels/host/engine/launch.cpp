// launch.cpp: the table of kernels, the checks of a launch, and the OS threads that share its blocks.
//
// A launch is refused for the reasons a driver or a device would refuse it, and for one more: arguments of another
// size than the kernel's struct, which a device would read as garbage.
// Blocks are dealt to the OS threads one by one in turn, not taken from a counter as each gets free: which blocks share
// an OS thread is then the same in every run, and with two OS threads ThreadSanitizer sees every race between
// neighbouring blocks, whatever the timing. (Blocks of one OS thread are ordered, their races are not seen.)
// The caller's own OS thread is one of them; the others are made for the launch, which costs about as much as a block.
#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <thread>

#include "block.h"
#include "fault.h"
#include "message.h"

namespace gradstone_host {
namespace {

std::vector<Kernel>& kernels() {
  static std::vector<Kernel> table;  // made by the first registration, in whichever file that is
  return table;
}

// Runners are kept for later launches: their stacks have been touched and their shared memory mapped.
class RunnerPool {
 public:
  std::unique_ptr<BlockRunner> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) return std::make_unique<BlockRunner>();
    std::unique_ptr<BlockRunner> runner = std::move(idle_.back());
    idle_.pop_back();
    return runner;
  }
  void give_back(std::unique_ptr<BlockRunner> runner) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(runner));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<BlockRunner>> idle_;
};
// Never destroyed: a test may still be in a launch while the process exits.
RunnerPool& runner_pool() {
  static RunnerPool& pool = *new RunnerPool;
  return pool;
}

// Launches that do not overlap are ordered, as on one stream. For ThreadSanitizer this must be said: it cannot see
// how the threads of a Rust program hand their buffers to each other.
char launch_order;

}  // namespace

Registration::Registration(const Kernel& kernel) { kernels().push_back(kernel); }

/// What the Rust side asks for; `repr(C)` there.
struct Request {
  const char* kernel;
  uint32_t grid[3], block[3];
  uint32_t dynamic_bytes;
  uint32_t order_kind;
  uint64_t order_seed;
  const void* args;
  size_t args_size;
  uint64_t first_block;  ///< the blocks that run, in linear order: the others do not exist
  uint64_t blocks;       ///< 0: all of the grid
  uint32_t workers;      ///< OS threads; 0: as many as there are cores
};

namespace {

std::string check(const Request& request, const Kernel** found) {
  const char* name = request.kernel;
  *found = nullptr;
  for (const Kernel& kernel : kernels()) {
    if (strcmp(kernel.name, name) != 0) continue;
    if (*found) return message("%s: two kernels have this name, in %s and %s", name, (*found)->file, kernel.file);
    *found = &kernel;
  }
  if (!*found) return message("%s: there is no kernel of this name among %zu", name, kernels().size());
  const Kernel& kernel = **found;
  if (request.args_size != kernel.args_size) {
    return message("%s: got %zu bytes of arguments, its struct has %zu", name, request.args_size, kernel.args_size);
  }
  const uint32_t *grid = request.grid, *block = request.block;
  if (grid[0] == 0 || grid[0] > 0x7fffffffu || grid[1] == 0 || grid[1] > 65535 || grid[2] == 0 || grid[2] > 65535) {
    return message("%s: grid (%u, %u, %u) is outside (1..2147483647, 1..65535, 1..65535)", name, grid[0], grid[1],
                grid[2]);
  }
  if (block[0] == 0 || block[0] > 1024 || block[1] == 0 || block[1] > 1024 || block[2] == 0 || block[2] > 64) {
    return message("%s: block (%u, %u, %u) is outside (1..1024, 1..1024, 1..64)", name, block[0], block[1], block[2]);
  }
  const uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
  if (threads > max_block_threads || threads > kernel.max_threads) {
    return message("%s: block (%u, %u, %u) has %llu threads, the kernel is built for at most %u", name, block[0], block[1],
                block[2], (unsigned long long)threads, std::min(kernel.max_threads, max_block_threads));
  }
  if (request.dynamic_bytes > max_shared_bytes) {
    return message("%s: %u bytes of dynamic shared memory, a block has at most %zu", name, request.dynamic_bytes,
                max_shared_bytes);
  }
  const uint64_t all = uint64_t(grid[0]) * grid[1] * grid[2];
  if (request.first_block > all || request.blocks > all - request.first_block || (!request.blocks && request.first_block)) {
    return message("%s: %llu blocks from block %llu on, the grid (%u, %u, %u) has %llu", name,
                   (unsigned long long)request.blocks, (unsigned long long)request.first_block, grid[0], grid[1], grid[2],
                   (unsigned long long)all);
  }
  if (request.order_kind > uint32_t(Order::Kind::Random)) return message("%s: no such order of threads", name);
  return {};
}

/// The first error of a launch, in the order of its blocks.
struct FirstError {
  uint64_t position = ~uint64_t(0);
  std::string message;
};

void run_share(BlockRunner& runner, const Launch& launch, const BlockOrder& order, unsigned worker, unsigned workers,
               std::atomic<bool>& failed, FirstError& error) {
  FaultGuard guard;
  runner.adopt_thread();
  for (uint64_t position = worker; position < launch.blocks && !failed.load(std::memory_order_relaxed); position += workers) {
    if (!runner.run(launch, launch.first_block + order.block(position))) {
      error = {position, runner.error()};
      failed.store(true, std::memory_order_relaxed);
    }
  }
}

std::string run_grid(const Launch& launch, unsigned wanted_workers) {
  unsigned workers = wanted_workers ? wanted_workers : std::max(1u, std::thread::hardware_concurrency());
#if defined(GRADSTONE_HOST_TSAN)
  if (!wanted_workers) workers = std::max(workers, 2u);  // with one, races between blocks are not seen
#endif
  workers = unsigned(std::min<uint64_t>(workers, launch.blocks));

  const BlockOrder order(launch.order, launch.blocks);
  std::atomic<bool> failed{false};
  std::vector<FirstError> errors(workers);
  // Taken and given back by the caller alone: a lock that the OS threads shared would order their blocks.
  std::vector<std::unique_ptr<BlockRunner>> runners;
  for (unsigned i = 0; i < workers; ++i) runners.push_back(runner_pool().take());
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < workers; ++i) {
    threads.emplace_back([&, i] { run_share(*runners[i], launch, order, i, workers, failed, errors[i]); });
  }
  run_share(*runners[0], launch, order, 0, workers, failed, errors[0]);
  for (std::thread& thread : threads) thread.join();
  for (std::unique_ptr<BlockRunner>& runner : runners) runner_pool().give_back(std::move(runner));
  const auto first = std::min_element(errors.begin(), errors.end(), [](const FirstError& a, const FirstError& b) {
    return a.position < b.position;
  });
  return first->message;
}

std::string launch(const Request& request) {
  const Kernel* kernel;
  std::string problem = check(request, &kernel);
  if (!problem.empty()) return problem;
  // A copy with the struct's alignment: the caller's bytes may lie anywhere.
  alignas(64) unsigned char args[4096];
  memcpy(args, request.args, request.args_size);
  Launch plan;
  plan.kernel = kernel;
  plan.args = args;
  plan.grid = dim3(request.grid[0], request.grid[1], request.grid[2]);
  plan.block = dim3(request.block[0], request.block[1], request.block[2]);
  plan.dynamic_bytes = request.dynamic_bytes;
  plan.order = {Order::Kind(request.order_kind), request.order_seed};
  plan.first_block = request.first_block;
  plan.blocks = request.blocks ? request.blocks : uint64_t(plan.grid.x) * plan.grid.y * plan.grid.z;
  happens_after(&launch_order);
  problem = run_grid(plan, request.workers);
  happens_before(&launch_order);
  return problem;
}

}  // namespace
}  // namespace gradstone_host

extern "C" {

/// 0, or 1 and a message (cut to `capacity` with its terminating zero).
int gradstone_host_launch(const gradstone_host::Request* request, char* error, size_t capacity) {
  const std::string problem = gradstone_host::launch(*request);
  if (problem.empty()) return 0;
  snprintf(error, capacity, "%s", problem.c_str());
  return 1;
}

/// The `index`-th kernel of the table; null behind the last.
const gradstone_host::Kernel* gradstone_host_kernel(size_t index) {
  return index < gradstone_host::kernels().size() ? &gradstone_host::kernels()[index] : nullptr;
}

const char* gradstone_host_sanitizer() { return gradstone_host::sanitizer_name(); }

}  // extern "C"
