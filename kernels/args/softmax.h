#ifndef GRADSTONE_ARGS_SOFTMAX_H
#define GRADSTONE_ARGS_SOFTMAX_H
#include "types.h"

/** exact = softmax(x) over each row, or its logarithm; y is the same, rounded. */
typedef struct SoftmaxArgs {
  const void* x; /**< [rows, width] in the kernel's storage type */
  void* y;       /**< [rows, width] in the same type */
  float* exact;  /**< [rows, width] for the backward pass; null: not wanted */
  int64_t rows;
  int64_t width;
  uint32_t log;
  uint32_t aligned; /**< every array and each of its rows start at multiples of 16 bytes */
} SoftmaxArgs;

/** dx = y (dy - sum of y dy), or dy - e^y * sum of dy where `log`. */
typedef struct SoftmaxGradientArgs {
  const float* y;  /**< [rows, width]: `exact` of the forward pass */
  const float* dy; /**< [rows, width] */
  float* dx;       /**< [rows, width] */
  int64_t rows;
  int64_t width;
  uint32_t log;
  uint32_t aligned; /**< as in SoftmaxArgs */
} SoftmaxGradientArgs;

#endif
