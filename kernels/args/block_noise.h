#ifndef GRADSTONE_ARGS_BLOCK_NOISE_H
#define GRADSTONE_ARGS_BLOCK_NOISE_H
#include "types.h"

/** How a rate becomes a mask. */
enum NoiseDraw {
  NOISE_INDEPENDENT = 0, /* each eligible token by itself */
  NOISE_FORCED = 1,      /* the same; where none is masked, the one with the least key */
  NOISE_COUNTED = 2      /* given `least_count` to `most_count` of them */
};

/** What a masked token weighs. */
enum NoiseWeight {
  NOISE_WEIGHT_RATE = 0,     /* 1 / rate */
  NOISE_WEIGHT_UNBIASED = 1, /* 1 / P(masked) */
  NOISE_WEIGHT_ONE = 2
};

/** The longest block of tokens, and the tokens of several shorter blocks that one CUDA block takes at once. */
enum NoiseShape { NOISE_MAX_BLOCK = 8192, NOISE_TILE = 1024 };

/** The corruption of block diffusion: which tokens of each block of `block` are masked, and what each weighs.
 * All arithmetic is rounded step by step as src/kernels/block_noise says: the bits are the CPU's. */
typedef struct BlockNoiseArgs {
  const int32_t* ids;        /**< [rows, length] any value */
  const uint8_t* eligible;   /**< [rows, length] 0: never masked; null: all are eligible */
  const int64_t* sequences;  /**< [rows] the number of each sequence, which its noise follows */
  const float* given_rate;   /**< [rows, length / block] in (0, 1]; null: drawn */
  const float* given_weight; /**< [rows, length / block]; null: drawn */
  int32_t* noised;           /**< [rows, length] */
  uint8_t* mask;             /**< [rows, length] 1 where masked */
  float* weight;             /**< [rows, length] 0 where not masked */
  float* rate;               /**< [rows, length / block] 0 where no token is eligible */
  int64_t rows, length;      /**< length is a multiple of block, below 2^31 */
  uint64_t seed;
  int32_t block;             /**< 1..NOISE_MAX_BLOCK */
  int32_t tile;              /**< blocks that a CUDA block takes at once; tile * block <= NOISE_MAX_BLOCK */
  int32_t mask_id;
  uint32_t draw, weighting;  /**< NOISE_* */
  uint32_t least_count, most_count;
  uint32_t strata_bits;
  /** rate = after * min(high, max(least, low + slope * (before * level))) */
  float before, least, low, slope, high, after;
} BlockNoiseArgs;

#endif
