// shared_memory.h: the shared memory of one block.
//
// Objects are laid into one arena as the kernel first asks for them, each between red zones. When a block starts, all
// of an object is 0xFF (as a float: NaN), because the device clears nothing: a value nobody wrote shows. The red zones
// hold a pattern that is a NaN too, as f32, bf16 and f16, for whoever reads there, and are compared at the block's end,
// so every build finds a write close outside; AddressSanitizer is told to forbid them and finds reads as well, at their
// line. The arena belongs to the OS thread and is used again by its next block, which is ordered after this one.
#pragma once
#include <stddef.h>

#include <string>
#include <vector>

#include "interface.h"

namespace gradstone_host {

constexpr size_t max_static_shared_bytes = 48 * 1024;
/// What compute capability 9.0 gives one block, static and dynamic together.
constexpr size_t max_shared_bytes = 227 * 1024;

class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void begin_block(size_t dynamic_bytes);
  /// What was written outside the objects, as a message; empty when nothing was.
  std::string damage() const;
  void end_block();

  void* static_object(const void* key, size_t size, size_t alignment, const char* type, Site site);
  void* dynamic_object(size_t alignment, Site site);
  /// Whether `bytes` bytes at `address` lie within the arena.
  bool contains(const void* address, size_t bytes) const;

 private:
  struct Object {
    const void* key;  ///< of a static object; null for the dynamic memory
    const char* type;
    Site site;
    unsigned char* address;
    size_t size;
  };
  unsigned char* place(const void* key, size_t size, size_t alignment, const char* type, Site site);

  unsigned char* arena_;
  size_t used_ = 0, dynamic_bytes_ = 0, static_bytes_ = 0;
  std::vector<Object> objects_;
};

}  // namespace gradstone_host
