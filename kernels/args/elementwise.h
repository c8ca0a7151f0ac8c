#ifndef GRADSTONE_ARGS_ELEMENTWISE_H
#define GRADSTONE_ARGS_ELEMENTWISE_H
#include "types.h"

enum BinaryOp { BINARY_ADD, BINARY_SUB, BINARY_MUL, BINARY_DIV };
enum UnaryOp { UNARY_SCALE, UNARY_SHIFT, UNARY_EXP, UNARY_LOG, UNARY_SQRT, UNARY_TANH, UNARY_SOFTCAP };

/** out[i] = x[i] op y[i mod period]. `out` may be `x`. */
typedef struct BinaryArgs {
  const void* x; /**< [len] in the kernel's storage type */
  const void* y; /**< [period] in the same type */
  void* out;     /**< [len] in the same type */
  int64_t len;
  int64_t period; /**< `len`, or a divisor of it: y is repeated */
  uint32_t op;      /**< BINARY_* */
  uint32_t aligned; /**< every array starts at a multiple of 16 bytes */
} BinaryArgs;

/** The gradients of BinaryArgs for both operands; one for y is given per element, before the sum over its repeats. */
typedef struct BinaryGradientArgs {
  const void* x;         /**< [len] storage type; read by BINARY_MUL and BINARY_DIV */
  const void* y;         /**< [period] storage type; read by BINARY_MUL and BINARY_DIV */
  const float* gradient; /**< [len] of the output */
  float* dx;             /**< [len]; null: not wanted */
  float* dy;             /**< [len], per element; null: not wanted */
  int64_t len;
  int64_t period;
  uint32_t op;
  uint32_t aligned; /**< as in BinaryArgs */
} BinaryGradientArgs;

/** out[i] = f(x[i]). `out` may be `x`. */
typedef struct UnaryArgs {
  const void* x; /**< [len] storage type */
  void* out;     /**< [len] storage type */
  int64_t len;
  float constant; /**< the factor, the addend or the cap of the functions that have one */
  uint32_t op;      /**< UNARY_* */
  uint32_t aligned; /**< as in BinaryArgs */
  uint32_t unused;
} UnaryArgs;

/** dx[i] = gradient[i] * f'(i), from the input (log) or the output (all others) of the forward pass. */
typedef struct UnaryGradientArgs {
  const void* saved;     /**< [len] storage type */
  const float* gradient; /**< [len] */
  float* dx;             /**< [len] */
  int64_t len;
  float constant;
  uint32_t op;
  uint32_t aligned; /**< as in BinaryArgs */
  uint32_t unused;
} UnaryGradientArgs;

#endif
