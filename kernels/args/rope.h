#ifndef GRADSTONE_ARGS_ROPE_H
#define GRADSTONE_ARGS_ROPE_H
#include "types.h"

/** Pairs (p, q) of the first 2 * pairs dimensions of every head become (p cos - q sin, q cos + p sin), the sine negated
 * where `inverse`; the other dimensions are copied. */
typedef struct RopeArgs {
  const void* x;       /**< [tokens, heads, head_dim] in the kernel's storage type */
  void* out;           /**< the same */
  const float* angles; /**< [tokens, 2, pairs]: cosines, then sines */
  int64_t tokens;
  int64_t heads;
  int64_t head_dim;
  int64_t pairs;        /**< <= head_dim / 2 */
  uint32_t interleaved; /**< pairs are 2i and 2i + 1; else i and i + pairs */
  uint32_t inverse;
  uint32_t aligned; /**< x, out, every head of them, their second halves and angles start at multiples of 16 bytes */
  uint32_t unused;
} RopeArgs;

#endif
