// shared_memory.cpp: the arena, its red zones and what they tell. See shared_memory.h.
#include "shared_memory.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "block.h"
#include "message.h"
#include "sanitizer.h"

namespace gradstone_host {
namespace {

constexpr size_t red_zone = 1024;
constexpr size_t arena_bytes = 1024 * 1024;
constexpr uint64_t fill_word = ~uint64_t(0);
// 0x7fe5 over and over: a NaN in bf16 and f16, 0x7fe57fe5 a NaN in f32, and as an index far outside of anything.
constexpr uint64_t zone_word = 0x7fe57fe57fe57fe5u;

unsigned char byte_of(uint64_t word, const volatile unsigned char* address) {
  return (unsigned char)(word >> (8 * (reinterpret_cast<uintptr_t>(address) % 8)));
}
bool aligned(const volatile unsigned char* address) { return reinterpret_cast<uintptr_t>(address) % 8 == 0; }

// Volatile: a memset (called, or made by the compiler from a plain loop) is intercepted by ThreadSanitizer and would
// count as a write by whichever thread happened to ask for the object first.
void paint(unsigned char* begin, const unsigned char* end, uint64_t word) {
  volatile unsigned char* p = begin;
  for (; p < end && !aligned(p); p = p + 1) *p = byte_of(word, p);
  for (; p + 8 <= end; p = p + 8) *reinterpret_cast<volatile uint64_t*>(p) = word;
  for (; p < end; p = p + 1) *p = byte_of(word, p);
}
/// The first byte of a red zone that is not as painted, or `end`.
const unsigned char* first_damaged(const unsigned char* p, const unsigned char* end) {
  while (p < end) {
    if (aligned(p) && p + 8 <= end && *reinterpret_cast<const uint64_t*>(p) == zone_word) {
      p += 8;
    } else if (*p == byte_of(zone_word, p)) {
      ++p;
    } else {
      break;
    }
  }
  return p;
}

// "T& block_shared(...) [with T = Name]", as __PRETTY_FUNCTION__ spells it, to "Name".
std::string type_name(const std::string& signature) {
  const size_t begin = signature.find("T = ");
  if (begin == std::string::npos) return signature;
  return signature.substr(begin + 4, signature.rfind(']') - begin - 4);
}

}  // namespace

SharedMemory::SharedMemory() {
  void* arena = mmap(nullptr, arena_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (arena == MAP_FAILED) abort();
  arena_ = static_cast<unsigned char*>(arena);
  forbid(arena_, arena_bytes);
}

SharedMemory::~SharedMemory() {
  allow(arena_, arena_bytes);
  munmap(arena_, arena_bytes);
}

void SharedMemory::begin_block(size_t dynamic_bytes) {
  objects_.clear();
  used_ = red_zone;
  static_bytes_ = 0;
  dynamic_bytes_ = dynamic_bytes;
  // Laid out even when it is empty: a kernel that uses it all the same then writes into a red zone.
  place(nullptr, dynamic_bytes, 16, "dynamic shared memory", Site{nullptr, 0});
}

// [red zone] object [red zone]: each object brings the zone behind it, and ends exactly where its type ends.
unsigned char* SharedMemory::place(const void* key, size_t size, size_t alignment, const char* type, Site site) {
  if (alignment < 16) alignment = 16;
  const size_t offset = (used_ + alignment - 1) / alignment * alignment;
  if (offset + size + red_zone > arena_bytes) return nullptr;
  unsigned char *object = arena_ + offset, *end = object + size;
  used_ = offset + size + red_zone;
  paint(object, end, fill_word);
  paint(arena_ + (offset - red_zone), object, zone_word);
  paint(end, end + red_zone, zone_word);
  allow(object, size);
  objects_.push_back({key, type, site, object, size});
  return object;
}

std::string SharedMemory::damage() const {
  for (const Object& object : objects_) {
    const unsigned char *begin = object.address, *end = begin + object.size;
    const unsigned char* after = first_damaged(end, end + red_zone);
    const unsigned char* before = first_damaged(begin - red_zone, begin);
    if (after == end + red_zone && before == begin) continue;
    std::string text = after != end + red_zone
                           ? message("a write %zu bytes past the end of", size_t(after - end))
                           : message("a write %zu bytes before the beginning of", size_t(begin - before));
    text += message(" the %zu bytes of %s", object.size, type_name(object.type).c_str());
    return object.key ? message("%s:%d: ", object.site.file, object.site.line) + text : text;
  }
  return {};
}

void SharedMemory::end_block() { forbid(arena_, used_); }

void* SharedMemory::static_object(const void* key, size_t size, size_t alignment, const char* type, Site site) {
  for (const Object& object : objects_) {
    if (object.key == key) return object.address;
  }
  static_bytes_ += size;
  if (static_bytes_ > max_static_shared_bytes || static_bytes_ + dynamic_bytes_ > max_shared_bytes) {
    fail(site, "shared memory: %zu bytes static (at most %zu) and %zu dynamic (at most %zu together)", static_bytes_,
         max_static_shared_bytes, dynamic_bytes_, max_shared_bytes);
  }
  unsigned char* object = place(key, size, alignment, type, site);
  if (!object) fail(site, "too many objects in shared memory");
  return object;
}

void* SharedMemory::dynamic_object(size_t alignment, Site site) {
  if (alignment > 16) fail(site, "dynamic shared memory is aligned to 16 bytes, its type wants %zu", alignment);
  return objects_.front().address;
}

bool SharedMemory::contains(const void* address, size_t bytes) const {
  const unsigned char* begin = static_cast<const unsigned char*>(address);
  return begin >= arena_ && begin + bytes <= arena_ + arena_bytes;
}

void* static_shared_memory(const void* key, size_t size, size_t alignment, const char* type, Site site) {
  return block_runner->shared.static_object(key, size, alignment, type, site);
}

void* dynamic_shared_memory(size_t alignment, Site site) {
  return block_runner->shared.dynamic_object(alignment, site);
}

}  // namespace gradstone_host
