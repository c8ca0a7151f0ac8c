#ifndef GRADSTONE_ARGS_CAST_H
#define GRADSTONE_ARGS_CAST_H
#include "types.h"

/** out[i] = x[i] in another float type, rounded to nearest even. */
typedef struct CastArgs {
  const void* x; /**< [len], of the first type in the kernel's name */
  void* out;     /**< [len], of the second */
  int64_t len;
} CastArgs;

#endif
