#ifndef GRADSTONE_ARGS_LAYER_NORM_H
#define GRADSTONE_ARGS_LAYER_NORM_H
#include "types.h"

/** y = (x - mean) * inverse * weight + bias, the variance over the width, not one less. */
typedef struct LayerNormArgs {
  const void* x;      /**< [rows, width] in the kernel's storage type */
  const void* weight; /**< [width] in the same type */
  const void* bias;   /**< [width] in the same type */
  void* y;            /**< [rows, width] in the same type */
  float* statistics;  /**< [rows, 2]: mean and inverse, kept for the backward pass */
  int64_t rows;
  int64_t width;
  float epsilon;
  uint32_t aligned; /**< x, weight, bias, y and each of their rows start at multiples of 16 bytes */
} LayerNormArgs;

/** dx = inverse * (s - mean(s) - n * mean(s n)) with n = (x - mean) * inverse and s = dy * weight. */
typedef struct LayerNormGradientArgs {
  const void* x;           /**< [rows, width] storage type */
  const void* weight;      /**< [width] storage type */
  const float* statistics; /**< [rows, 2] of the forward pass */
  const float* dy;         /**< [rows, width] */
  float* dx;               /**< [rows, width] */
  int64_t rows;
  int64_t width;
  uint32_t aligned; /**< as in LayerNormArgs, dy and dx too */
  uint32_t unused;
} LayerNormGradientArgs;

/** The sums of dy n (for the weight) over the rows of block b, in order; those of dy (for the bias) are a plain sum of
 * columns. */
typedef struct LayerNormWeightArgs {
  const void* x;           /**< [rows, width] storage type */
  const float* statistics; /**< [rows, 2] */
  const float* dy;         /**< [rows, width] */
  float* partial;          /**< [ceil(rows / WEIGHT_SUM_ROWS), width] */
  int64_t rows;
  int64_t width;
} LayerNormWeightArgs;

#endif
