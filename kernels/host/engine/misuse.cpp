// misuse.cpp: what the plain build's compiled-in checks call when one fails.
//
// The plain build compiles kernels with -fsanitize=alignment,bounds: an access through a pointer that is not aligned to
// its type (a float4 at an address that is no multiple of 16 faults on the device), and an index outside an array whose
// size the compiler knows. Instead of the sanitizer's library, which would print and abort, these functions stand behind
// the checks: the launch ends with an error like any other, with file and line, and the process lives on.
// The structs are what gcc and clang pass (both use compiler-rt's layout); `_abort` is the variant they call under
// -fno-sanitize-recover. A sanitizer build has the real library and none of this.
#if !defined(GRADSTONE_HOST_ASAN) && !defined(GRADSTONE_HOST_TSAN)
#include "interface.h"

namespace {

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];  // as long as it is
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment;
  unsigned char access;
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor* array_type;
  const TypeDescriptor* index_type;
};

gradstone_host::Site site(const SourceLocation& location) {
  return gradstone_host::Site{location.file ? location.file : "unknown file", int(location.line)};
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* data, const void* address) {
  if (!address) gradstone_host::fail(site(data->location), "access through a null pointer to %s", data->type->name);
  gradstone_host::fail(site(data->location), "misaligned address %p: %s needs a multiple of %u", address,
                       data->type->name, 1u << data->log_alignment);
}

void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, uintptr_t index) {
  gradstone_host::fail(site(data->location), "index %lld is outside %s", (long long)index, data->array_type->name);
}

}  // extern "C"
#endif
