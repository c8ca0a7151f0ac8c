// loads.h: loads and stores with a cache hint. On the host the hint means nothing; the alignment still does.
//
// A vector access that is not aligned to its size faults on the device. The alignment check of the compiler sees it
// too, in every build; the check here costs nothing beside it and says which hint was asked for.
#pragma once

namespace gradstone_host {
template <class T>
inline void require_aligned(const T* address, const char* operation, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) {
    fail(site, "misaligned address %p in %s of %zu bytes", static_cast<const void*>(address), operation, sizeof(T));
  }
}
}  // namespace gradstone_host

#define GRADSTONE_LOAD(T, name)                                               \
  inline T name(const T* address, GRADSTONE_SITE) {                           \
    gradstone_host::require_aligned(address, #name, GRADSTONE_HERE);          \
    return *address;                                                          \
  }
#define GRADSTONE_STORE(T, name)                                              \
  inline void name(T* address, T value, GRADSTONE_SITE) {                     \
    gradstone_host::require_aligned(address, #name, GRADSTONE_HERE);          \
    *address = value;                                                         \
  }
#define GRADSTONE_HINTED(T)                                                                           \
  GRADSTONE_LOAD(T, __ldg) GRADSTONE_LOAD(T, __ldca) GRADSTONE_LOAD(T, __ldcg) GRADSTONE_LOAD(T, __ldcs) \
  GRADSTONE_STORE(T, __stcg) GRADSTONE_STORE(T, __stcs) GRADSTONE_STORE(T, __stwb) GRADSTONE_STORE(T, __stwt)

GRADSTONE_HINTED(char)
GRADSTONE_HINTED(signed char)
GRADSTONE_HINTED(unsigned char)
GRADSTONE_HINTED(short)
GRADSTONE_HINTED(unsigned short)
GRADSTONE_HINTED(int)
GRADSTONE_HINTED(unsigned)
GRADSTONE_HINTED(long)
GRADSTONE_HINTED(unsigned long)
GRADSTONE_HINTED(long long)
GRADSTONE_HINTED(unsigned long long)
GRADSTONE_HINTED(float)
GRADSTONE_HINTED(double)
GRADSTONE_HINTED(char2)
GRADSTONE_HINTED(char4)
GRADSTONE_HINTED(uchar2)
GRADSTONE_HINTED(uchar4)
GRADSTONE_HINTED(short2)
GRADSTONE_HINTED(short4)
GRADSTONE_HINTED(ushort2)
GRADSTONE_HINTED(ushort4)
GRADSTONE_HINTED(int2)
GRADSTONE_HINTED(int4)
GRADSTONE_HINTED(uint2)
GRADSTONE_HINTED(uint4)
GRADSTONE_HINTED(longlong2)
GRADSTONE_HINTED(ulonglong2)
GRADSTONE_HINTED(float2)
GRADSTONE_HINTED(float4)
GRADSTONE_HINTED(double2)
#undef GRADSTONE_LOAD
#undef GRADSTONE_STORE
#undef GRADSTONE_HINTED
