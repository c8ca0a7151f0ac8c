#ifndef GRADSTONE_ARGS_SAMPLE_H
#define GRADSTONE_ARGS_SAMPLE_H
#include "logprob.h"

enum SampleShape {
  /** Candidates of a truncated draw that are kept in shared memory. */
  SAMPLE_CANDIDATES = 2048
};

/** A token from each row of logits, and what logprob_forward says about it. */
typedef struct SampleArgs {
  const void* logits;        /**< [rows, vocab] in the kernel's storage type */
  const uint64_t* sequences; /**< [rows] */
  const uint32_t* positions; /**< [rows] */
  const int32_t* excluded;   /**< [excluded_count] ascending ids that are never drawn; may be null */
  int32_t* tokens;           /**< [rows]; -1 where a logit is NaN or +inf (STATUS_NON_FINITE) or none can be drawn
                                (STATUS_BAD_TARGET): statistics 0 then */
  float* logprob;            /**< [rows]; these four may be null */
  float* entropy;            /**< [rows] */
  float* logsumexp;          /**< [rows] */
  int32_t* argmax;           /**< [rows] */
  float* kept_mass;          /**< [rows] the share of the distribution that was drawn from, 1 without truncation; may be null */
  uint32_t* status;
  int64_t rows;
  int64_t vocab;
  int64_t excluded_count;
  uint64_t seed;
  SoftmaxRule softmax; /**< without banned ids: the statistics are of the whole distribution */
  float top_p;         /**< in (0, 1]; 1: not truncated */
  uint32_t top_k;      /**< 0: not truncated */
  float min_p_depth;   /**< at most 0: no logit that lies further below the largest is drawn; -inf: not truncated */
  uint32_t stream;
  uint32_t greedy; /**< the first of the largest logits */
  uint32_t unused; /**< 0 */
} SampleArgs;

#endif
