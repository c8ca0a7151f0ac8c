// shared.h: the two ways to shared memory, and the only ones.
//
// On the device `block_shared<T>()` is a `__shared__ T` inside a function template: one object per type, so two uses
// that must not overlap need two types (a local struct for each use). The key here is a static of the same template,
// with the same consequence. A raw `__shared__` array could not be given red zones, a fill and a size limit.
#pragma once

/// The block's object of type T. Every byte is 0xFF when the block starts: as a float, NaN.
template <class T>
inline T& block_shared(GRADSTONE_SITE) {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>,
                "shared memory holds plain data without initialisers");
  static const char key = 0;
  return *static_cast<T*>(gradstone_host::static_shared_memory(&key, sizeof(T), alignof(T), __PRETTY_FUNCTION__,
                                                               GRADSTONE_HERE));
}

/// The block's dynamic shared memory: as many bytes as the launch asked for, aligned to 16.
template <class T>
inline T* dynamic_shared(GRADSTONE_SITE) {
  return static_cast<T*>(gradstone_host::dynamic_shared_memory(alignof(T), GRADSTONE_HERE));
}
