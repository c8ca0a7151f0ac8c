// block.cpp: the life of a block and of its threads, and the errors that end it. See block.h.
#include "block.h"

#include "message.h"

namespace gradstone_host {

__thread Thread* current_thread;
__thread BlockRunner* block_runner;

const char* collective_name(Collective collective) {
  switch (collective) {
    case Collective::SyncThreads: return "__syncthreads";
    case Collective::SyncThreadsCount: return "__syncthreads_count";
    case Collective::SyncThreadsAnd: return "__syncthreads_and";
    case Collective::SyncThreadsOr: return "__syncthreads_or";
    case Collective::SyncWarp: return "__syncwarp";
    case Collective::Shuffle: return "__shfl_sync";
    case Collective::ShuffleUp: return "__shfl_up_sync";
    case Collective::ShuffleDown: return "__shfl_down_sync";
    case Collective::ShuffleXor: return "__shfl_xor_sync";
    case Collective::Ballot: return "__ballot_sync";
    case Collective::Any: return "__any_sync";
    case Collective::All: return "__all_sync";
    case Collective::MatchAny: return "__match_any_sync";
    case Collective::MatchAll: return "__match_all_sync";
    case Collective::ReduceAdd: return "__reduce_add_sync";
    case Collective::ReduceMin:
    case Collective::ReduceMinSigned: return "__reduce_min_sync";
    case Collective::ReduceMax:
    case Collective::ReduceMaxSigned: return "__reduce_max_sync";
    case Collective::ReduceAnd: return "__reduce_and_sync";
    case Collective::ReduceOr: return "__reduce_or_sync";
    case Collective::ReduceXor: return "__reduce_xor_sync";
    case Collective::MmaBf16: return "mma_m16n8k16_bf16";
    case Collective::MmaF16: return "mma_m16n8k16_f16";
    case Collective::MmaTf32: return "mma_m16n8k8_tf32";
  }
  return "collective";
}

BlockRunner::~BlockRunner() {
  for (CudaThread& thread : threads_) abandon_fiber(thread.fiber.sanitized, &end_order_);
  happens_after(&end_order_);
}

void BlockRunner::adopt_thread() {
  block_runner = this;
  adopt_os_thread(os_fiber_.sanitized);
}

void BlockRunner::begin(const Launch& launch, uint64_t linear_block) {
  const dim3 &grid = launch.grid, &block = launch.block;
  launch_ = &launch;
  error_.clear();
  block_index_ = uint3{unsigned(linear_block % grid.x), unsigned(linear_block / grid.x % grid.y),
                       unsigned(linear_block / grid.x / grid.y)};
  size_ = block.x * block.y * block.z;
  left_ = 0;
  barrier.reset();
  shared.begin_block(launch.dynamic_bytes);
  ready_.reset(launch.order, size_, linear_block);
  for (unsigned i = 0; i < (size_ + 31) / 32; ++i) warps_[i].reset();
  for (unsigned i = 0; i < size_; ++i) {
    CudaThread& thread = threads_[i];
    thread.view.thread_index = uint3{i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.view.block_index = block_index_;
    thread.view.block_dim = block;
    thread.view.grid_dim = grid;
    thread.view.linear = i;
    thread.view.lane = i % 32;
    thread.view.warp = i / 32;
    thread.view.fenced = false;
    thread.state = State::Ready;
    thread.copies.reset();
    prepare(thread.fiber, stacks_.bottom(i), i, thread_entry);
    warps_[i / 32].present |= 1u << (i % 32);
    ready_.add(i);
  }
}

bool BlockRunner::run(const Launch& launch, uint64_t linear_block) {
  begin(launch, linear_block);
  happens_before(&begin_order_);
  running_ = &threads_[ready_.take()];
  current_thread = &running_->view;
  switch_fiber(os_fiber_, running_->fiber);
  current_thread = nullptr;
  if (error_.empty()) {
    happens_after(&end_order_);
    const std::string damage = shared.damage();
    if (!damage.empty()) error_ = damage + " (" + kernel_and_block() + ")";
  } else {
    for (unsigned i = 0; i < size_; ++i) abandon_fiber(threads_[i].fiber.sanitized, &end_order_);
    happens_after(&end_order_);
  }
  shared.end_block();
  return error_.empty();
}

void BlockRunner::thread_entry() {
  BlockRunner& block = *block_runner;
  after_switch(block.running_->fiber.sanitized);
  happens_after(&block.begin_order_);
  block.launch_->kernel->run(block.launch_->args);
  happens_before(&block.end_order_);
  block.leave_kernel();
}

void BlockRunner::wait(State why, Collective for_what, Site where) {
  running_->state = why;
  running_->waits_for = for_what;
  running_->waits_at = where;
  give_way();
}

void BlockRunner::wake(CudaThread& thread) {
  thread.state = State::Ready;
  ready_.add(thread.view.linear);
}

void BlockRunner::yield() {
  ready_.add(running_->view.linear);
  give_way();
}

void BlockRunner::give_way() {
  CudaThread& leaving = *running_;
  const int next = ready_.take();
  if (next < 0) {
    error_ = describe_deadlock();
    stop();
  }
  running_ = &threads_[next];
  if (running_ == &leaving) return;
  current_thread = &running_->view;
  switch_fiber(leaving.fiber, running_->fiber);
}

void BlockRunner::leave_kernel() {
  CudaThread& leaving = *running_;
  check_leaving(leaving);
  leaving.state = State::Left;
  ++left_;
  warp().left |= 1u << leaving.view.lane;
  if (left_ == size_) stop();
  const int next = ready_.take();
  if (next < 0) {
    error_ = describe_deadlock();
    stop();
  }
  running_ = &threads_[next];
  current_thread = &running_->view;
  leave_fiber(leaving.fiber, running_->fiber);
}

// Whoever waits for a thread that leaves would wait for ever: say so now, with the thread at hand.
void BlockRunner::check_leaving(CudaThread& thread) {
  if (thread.copies.pending()) {
    gradstone_host::fail(thread.copies.first_pending(),
                         "the thread left the kernel with %zu copies of cp_async16 in flight: the first is from here",
                         thread.copies.pending());
  }
  if (barrier.arrived()) {
    gradstone_host::fail(barrier.site(), "the thread left the kernel while %u threads of its block wait here in %s",
                         barrier.arrived(), collective_name(barrier.collective()));
  }
  if (const WarpMeeting* meeting = warp().waiting_for(thread.view.lane)) {
    gradstone_host::fail(meeting->site, "the thread left the kernel while lanes %08x wait for it here in %s",
                         meeting->arrived, collective_name(meeting->collective));
  }
}

void BlockRunner::stop() { leave_fiber(running_->fiber, os_fiber_); }

std::string BlockRunner::kernel_and_block() const {
  return message("kernel %s, block (%u,%u,%u)", launch_->kernel->name, block_index_.x, block_index_.y,
                   block_index_.z);
}

void BlockRunner::fail(Site where, const char* format, va_list values) {
  const std::string what = message_from(format, values);
  const uint3& at = running_->view.thread_index;
  error_ = message("%s:%d: %s [%s, thread (%u,%u,%u)]", where.file, where.line, what.c_str(), kernel_and_block().c_str(),
                     at.x, at.y, at.z);
  stop();
}

void fail(Site where, const char* format, ...) {
  va_list values;
  va_start(values, format);
  block_runner->fail(where, format, values);
}

void BlockRunner::fail_at_address(const void* address) {
  const char* bottom = stack_of_running();
  const char* at = static_cast<const char*>(address);
  const uint3& index = running_->view.thread_index;
  const bool overflow = at < bottom && at >= bottom - Stacks::bytes;
  error_ = message("%s: %s at %p [%s, thread (%u,%u,%u)]; the address build tells the line", launch_->kernel->file,
                   overflow ? "the thread's stack overflowed" : "access to memory that is not there", address,
                   kernel_and_block().c_str(), index.x, index.y, index.z);
  stop();
}

// One line for each place where threads wait.
std::string BlockRunner::describe_deadlock() const {
  struct Place {
    Site site;
    Collective collective;
    unsigned threads, first;
  };
  std::vector<Place> places;
  for (unsigned i = 0; i < size_; ++i) {
    const CudaThread& thread = threads_[i];
    if (thread.state != State::AtBarrier && thread.state != State::InCollective) continue;
    Place* known = nullptr;
    for (Place& place : places) {
      if (place.collective == thread.waits_for && same_site(place.site, thread.waits_at)) known = &place;
    }
    if (known) {
      ++known->threads;
    } else {
      places.push_back({thread.waits_at, thread.waits_for, 1, i});
    }
  }
  std::string text = "deadlock [" + kernel_and_block() + "]: nobody can go on";
  for (const Place& place : places) {
    const uint3& first = threads_[place.first].view.thread_index;
    text += message("; %s:%d: %u threads wait in %s, the first is (%u,%u,%u)", place.site.file, place.site.line,
                      place.threads, collective_name(place.collective), first.x, first.y, first.z);
  }
  if (left_) text += message("; %u threads have left the kernel", left_);
  return text;
}

}  // namespace gradstone_host
