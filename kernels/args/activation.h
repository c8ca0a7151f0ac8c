#ifndef GRADSTONE_ARGS_ACTIVATION_H
#define GRADSTONE_ARGS_ACTIVATION_H
#include "types.h"

enum ActivationFunction { ACTIVATION_SILU, ACTIVATION_GELU, ACTIVATION_GELU_TANH };

/** y = f(x), or f(x) * up. */
typedef struct ActivationArgs {
  const void* x;  /**< [len] in the kernel's storage type */
  const void* up; /**< [len] in the same type; null: no gate */
  void* y;        /**< [len] in the same type */
  int64_t len;
  uint32_t function; /**< ACTIVATION_* */
  uint32_t aligned;  /**< every array starts at a multiple of 16 bytes */
} ActivationArgs;

/** dx = f'(x) * dy, times up where there is a gate; dup = f(x) * dy. */
typedef struct ActivationGradientArgs {
  const void* x;   /**< [len] storage type */
  const void* up;  /**< [len] storage type; null: no gate, and no dup */
  const float* dy; /**< [len] */
  float* dx;       /**< [len]; null: not wanted */
  float* dup;      /**< [len]; null: not wanted */
  int64_t len;
  uint32_t function;
  uint32_t aligned; /**< as in ActivationArgs */
} ActivationGradientArgs;

#endif
