#ifndef GRADSTONE_ARGS_LOGPROB_H
#define GRADSTONE_ARGS_LOGPROB_H
#include "types.h"

enum LogprobShape {
  /** Logits that one warp sums up by itself: part of the result's bits, a function of nothing. */
  LOGPROB_UNIT = 4096,
  /** Unit u belongs to chain u mod LOGPROB_CHAINS; a chain is merged in order, then the chains are. */
  LOGPROB_CHAINS = 8,
  /** Logits whose gradient one block computes. */
  LOGPROB_TILE = 8192
};

/** How rows of logits become distributions: softcap, then the ban, then the temperature. */
typedef struct SoftmaxRule {
  const float* temperatures; /**< [rows], finite and > 0 (else the row is masked and STATUS_NON_FINITE set); null: */
  const int32_t* banned;     /**< [banned_count] ascending ids without repeats, read as -inf; may be null */
  int64_t banned_count;
  float temperature; /**< of all rows, where `temperatures` is null */
  float softcap;     /**< logits := softcap tanh(logits / softcap); 0: none */
} SoftmaxRule;

/** Sums over part of a row: powers 2^y of y = (z - max) log2(e) / temperature. */
typedef struct OnlineSoftmax {
  float max;      /**< the largest logit; -inf: none */
  float sum;      /**< of 2^y; NaN when a logit is */
  float weighted; /**< of 2^y y */
  int32_t argmax; /**< the first id of the largest logit; -1: none */
} OnlineSoftmax;

/** Log-prob, entropy, logsumexp and argmax of one target a row, in one read of the logits. */
typedef struct LogprobForwardArgs {
  const void* logits;     /**< [rows, vocab] in the kernel's storage type */
  const int32_t* targets; /**< [outputs]; negative: masked; >= vocab: masked, and STATUS_BAD_TARGET is set */
  const int32_t* row_of;  /**< [rows] row of targets, temperatures and outputs, negative: masked; null: row i is i */
  float* logprob;         /**< [outputs] nats; 0 where masked */
  float* entropy;         /**< [outputs] nats; 0 where masked; null: not wanted */
  float* logsumexp;       /**< [outputs] of the tempered logits; 0 where masked */
  int32_t* argmax;        /**< [outputs]; -1 where masked or all -inf; null: not wanted */
  OnlineSoftmax* units;   /**< [rows, ceil(vocab / LOGPROB_UNIT)] where a row is split over blocks, else null */
  uint32_t* status;
  int64_t rows;
  int64_t vocab;
  SoftmaxRule softmax; /**< temperatures [outputs] */
} LogprobForwardArgs;

/** dlogits from the statistics of the forward pass. */
typedef struct LogprobBackwardArgs {
  const void* logits;     /**< [rows, vocab] in the kernel's first type */
  void* dlogits;          /**< [rows, vocab] in its second type; may be `logits` where the types are one */
  const int32_t* targets; /**< as in the forward pass */
  const int32_t* row_of;  /**< as in the forward pass */
  const float* logsumexp; /**< [outputs] */
  const float* entropy;   /**< [outputs]; may be null where `dentropy` is */
  const float* dlogprob;  /**< [outputs] gradient by the log-probs; null: 0 */
  const float* dentropy;  /**< [outputs] gradient by the entropies; null: 0 */
  int64_t rows;
  int64_t vocab;
  SoftmaxRule softmax;
} LogprobBackwardArgs;

/** Both, for gradients that are known before. */
typedef struct LogprobBothArgs {
  LogprobForwardArgs forward;
  void* dlogits;         /**< as in LogprobBackwardArgs */
  const float* dlogprob; /**< [outputs]; null: 0 */
  const float* dentropy; /**< [outputs]; null: 0 */
} LogprobBothArgs;

#endif
