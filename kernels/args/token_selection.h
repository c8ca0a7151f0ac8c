#ifndef GRADSTONE_ARGS_TOKEN_SELECTION_H
#define GRADSTONE_ARGS_TOKEN_SELECTION_H
#include "types.h"

/** Which tokens are picked. */
enum TokenSelectionKind { SELECT_CLIP_COV, SELECT_KL_COV, SELECT_TOP_ENTROPY };

enum TokenSelectionShape {
  /** Threads of the one block. */
  TOKEN_SELECTION_BLOCK = 1024
};

/** What was found. */
typedef struct TokenSelectionReport {
  uint64_t live, candidates, picked;
  float threshold; /**< SELECT_TOP_ENTROPY: the entropy from which on tokens are picked */
  uint32_t unused;
} TokenSelectionReport;

/** One selection over all tokens of a batch. */
typedef struct TokenSelectionArgs {
  const float* logprob;         /**< [tokens]; null for SELECT_TOP_ENTROPY */
  const float* old_logprob;     /**< [tokens]; null but for SELECT_CLIP_COV */
  const float* advantage;       /**< [tokens]; null for SELECT_TOP_ENTROPY */
  const float* entropy;         /**< [tokens]; null but for SELECT_TOP_ENTROPY */
  const uint8_t* mask;          /**< [tokens] non-zero: live; nothing else of a token that is not is read */
  uint8_t* selected;            /**< [tokens] 1 where picked, else 0 */
  uint32_t* keys;               /**< [tokens] workspace */
  TokenSelectionReport* report; /**< [1] */
  int64_t tokens; /**< below 2^32 */
  uint64_t seed;   /**< of Clip-Cov's random numbers */
  uint64_t number; /**< of the call among those of the seed */
  double share;    /**< picked tokens for each live one; SELECT_TOP_ENTROPY: the quantile's place, 0 to 1 */
  float least;     /**< SELECT_CLIP_COV: candidates have a covariance above it */
  float most;      /**< and below it */
  float clip_low;  /**< SELECT_CLIP_COV: smallest ratio that the clip leaves alone, for A < 0 */
  float clip_high; /**< largest, for A > 0 */
  uint32_t kind;   /**< SELECT_* */
  uint32_t stream; /**< of the random numbers */
} TokenSelectionArgs;

#endif
