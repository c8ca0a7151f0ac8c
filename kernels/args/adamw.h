#ifndef GRADSTONE_ARGS_ADAMW_H
#define GRADSTONE_ARGS_ADAMW_H
#include "types.h"

enum AdamWShape { ADAMW_CHUNK = 16384 /* elements that one block walks */ };
enum AdamWCopy { ADAMW_NO_COPY, ADAMW_F32, ADAMW_BF16, ADAMW_F16 };

/** One parameter, its state and its gradient: a row of the table that every kernel of a step reads. */
typedef struct AdamWParameter {
  float* weight;         /**< [len] master weights */
  float* mean;           /**< [len] of gradients */
  float* variance;       /**< [len] of gradients, about 0 */
  const float* gradient; /**< [len] */
  void* copy;            /**< [len] in the type that `copy_type` says: gets the rounded weights */
  int64_t len;
  int64_t first_chunk;   /**< chunks of the parameters before this one */
  uint32_t copy_type;    /**< ADAMW_* */
  uint32_t decays;       /**< weight decay acts on it */
} AdamWParameter;

/** The norm of all gradients together, and what follows from it. */
typedef struct GradientNorm {
  double norm;   /**< NaN or infinite where an element is */
  float scale;   /**< what the update multiplies gradients by: min(1, most / (norm + 1e-6)) */
  int32_t bad;   /**< the first parameter with a NaN or infinity in its gradient: nothing is updated; else -1 */
} GradientNorm;

/** partial[c] = the sum of the squares of chunk c, in f64. */
typedef struct GradientSquaresArgs {
  const AdamWParameter* table; /**< [parameters] */
  double* partial;             /**< [chunks] */
  int64_t parameters;
  int64_t chunks;
} GradientSquaresArgs;

/** The partial sums as one norm. */
typedef struct GradientNormArgs {
  const AdamWParameter* table; /**< [parameters] */
  const double* partial;       /**< [chunks] */
  GradientNorm* result;        /**< one */
  int64_t parameters;
  int64_t chunks;
  double most; /**< the largest norm that is let through; infinity: any */
} GradientNormArgs;

/** One step of AdamW on every parameter of the table; nothing where result->bad >= 0. The factors come from the host,
 * computed in f64: keep = 1 - lr decay, fresh = 1 - beta, rate = lr / (1 - beta1^t), correction2 = 1 / sqrt(1 - beta2^t). */
typedef struct AdamWArgs {
  const AdamWParameter* table; /**< [parameters] */
  const GradientNorm* result;
  int64_t parameters;
  int64_t chunks;
  float keep;
  float beta1;
  float beta2;
  float fresh1;
  float fresh2;
  float rate;
  float correction2;
  float epsilon;
} AdamWArgs;

#endif
