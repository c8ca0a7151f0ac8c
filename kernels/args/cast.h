#ifndef GRADSTONE_ARGS_CAST_H
#define GRADSTONE_ARGS_CAST_H
#include "types.h"

enum CastShape { CAST_GROUP = 8 /* elements that a thread takes at once */ };

/** out[i] = x[i] in another float type, rounded to nearest even. */
typedef struct CastArgs {
  const void* x; /**< [len], of the first type in the kernel's name */
  void* out;     /**< [len], of the second */
  int64_t len;
  uint32_t aligned; /**< both arrays start at multiples of 16 bytes */
  uint32_t unused;
} CastArgs;

#endif
