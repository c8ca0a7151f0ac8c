#ifndef GRADSTONE_ARGS_ROLLOUT_CORRECTION_H
#define GRADSTONE_ARGS_ROLLOUT_CORRECTION_H
#include "types.h"

/** What a weight is of. */
enum RolloutCorrectionLevel {
  ROLLOUT_LEVEL_NONE,      /**< every weight is 1 */
  ROLLOUT_LEVEL_TOKEN,     /**< exp(d) of the token, d = policy's - sampler's log-prob */
  ROLLOUT_LEVEL_SEQUENCE,  /**< exp(sum of d) */
  ROLLOUT_LEVEL_GEOMETRIC  /**< exp(mean of d) */
};

/** What a rejection looks at. */
enum RolloutCorrectionOver { ROLLOUT_OVER_TOKEN, ROLLOUT_OVER_SUM, ROLLOUT_OVER_MEAN, ROLLOUT_OVER_MAX };

/** Of which statistic. */
enum RolloutCorrectionStatistic {
  ROLLOUT_K1, /**< d */
  ROLLOUT_K2, /**< d^2 / 2 */
  ROLLOUT_K3  /**< exp(d) - 1 - d */
};

enum RolloutCorrectionShape { ROLLOUT_REJECTIONS = 8 };

/** A sequence or token whose statistic lies outside low..=high leaves the mask. */
typedef struct RolloutRejection {
  double low, high;
  uint32_t over;      /**< ROLLOUT_OVER_* */
  uint32_t statistic; /**< ROLLOUT_K* */
} RolloutRejection;

/** Sums over the live tokens of one sequence, or of all. */
typedef struct RolloutCorrectionSums {
  double divergence;       /**< of -d */
  double k3;
  double ratio, ratio_squared;
  double weight, weight_squared, weight_max;
  double sequence_weight;  /**< one weight a sequence */
  double perplexity;       /**< exp(mean of -d) of each sequence */
  double chi_squared;      /**< exp(2 sum of d) of each sequence */
  uint64_t tokens, sequences, dropped, high, low, rejected, rejected_sequences;
} RolloutCorrectionSums;

/** Weights and the mask that correct for a sampler that is not the policy. Three kernels take it. */
typedef struct RolloutCorrectionArgs {
  const float* policy;        /**< [tokens] log-prob under the policy that is corrected to */
  const float* sampler;       /**< [tokens] log-prob under the sampler; null: the same */
  const uint8_t* mask;        /**< [tokens] non-zero: live; nothing else of another token is read */
  const int64_t* offsets;     /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, masked */
  float* weight;              /**< [tokens], zero before; 0 where the new mask is */
  uint8_t* kept;              /**< [tokens], zero before: the new mask */
  RolloutCorrectionSums* sums; /**< [sequences] */
  RolloutCorrectionSums* total; /**< [1] */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
  double least;       /**< smallest weight */
  double most;        /**< largest weight */
  uint32_t level;     /**< ROLLOUT_LEVEL_* */
  uint32_t masks;     /**< a weight outside is 0; else it is cut */
  uint32_t rejections;
  uint32_t unused;
  RolloutRejection reject[ROLLOUT_REJECTIONS];
} RolloutCorrectionArgs;

#endif
