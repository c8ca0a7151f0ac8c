#ifndef GRADSTONE_ARGS_RMS_NORM_H
#define GRADSTONE_ARGS_RMS_NORM_H
#include "types.h"

/** y = x * inverse * (offset + weight) with inverse = 1 / sqrt(mean of x^2 over the row + epsilon). */
typedef struct RmsNormArgs {
  const void* x;      /**< [rows, width] in the kernel's storage type */
  const void* weight; /**< [width] in the same type */
  void* y;            /**< [rows, width] in the same type */
  float* inverse;     /**< [rows], kept for the backward pass */
  int64_t rows;
  int64_t width;
  float epsilon;
  float offset;     /**< 0, or 1 for Gemma */
  uint32_t aligned; /**< x, weight, y and each of their rows start at multiples of 16 bytes */
  uint32_t unused;
} RmsNormArgs;

/** dx = inverse * (s - x * mean(s x) * inverse^2) with s = dy * (offset + weight). */
typedef struct RmsNormGradientArgs {
  const void* x;        /**< [rows, width] storage type */
  const void* weight;   /**< [width] storage type */
  const float* inverse; /**< [rows] of the forward pass */
  const float* dy;      /**< [rows, width] */
  float* dx;            /**< [rows, width] */
  int64_t rows;
  int64_t width;
  float offset;
  uint32_t aligned; /**< as in RmsNormArgs, dy and dx too */
} RmsNormGradientArgs;

/** partial[b, j] = the sum of dy x inverse over the rows of block b, in order. */
typedef struct RmsNormWeightArgs {
  const void* x;        /**< [rows, width] storage type */
  const float* inverse; /**< [rows] */
  const float* dy;      /**< [rows, width] */
  float* partial;       /**< [ceil(rows / WEIGHT_SUM_ROWS), width] */
  int64_t rows;
  int64_t width;
} RmsNormWeightArgs;

#endif
