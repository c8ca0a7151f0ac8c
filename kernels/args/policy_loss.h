#ifndef GRADSTONE_ARGS_POLICY_LOSS_H
#define GRADSTONE_ARGS_POLICY_LOSS_H
#include "types.h"

/** The per-token loss: a functor each in objective.cuh. */
enum Surrogate { SURROGATE_PPO_CLIP };

/** What a divergence from the reference is estimated by; KL_NONE: the reference is not read. */
enum KlEstimator { KL_NONE, KL_K1, KL_K2, KL_K3, KL_ABS };

/** c of a sequence with n live tokens. */
enum Aggregation {
  AGGREGATION_TOKEN_MEAN,               /**< 1 / tokens */
  AGGREGATION_SEQUENCE_MEAN_TOKEN_MEAN, /**< 1 / (sequences n) */
  AGGREGATION_SEQUENCE_MEAN_TOKEN_SUM,  /**< 1 / (sequences length) */
  AGGREGATION_TOKEN_SUM                 /**< 1 / length */
};

enum PolicyLossShape {
  /** Tokens whose sums make one record: part of the order of the sums. */
  POLICY_LOSS_BLOCK = 2048
};

/** How token losses become one number. */
typedef struct AggregationRule {
  double length;
  uint32_t mode;      /**< AGGREGATION_* */
  uint32_t all_rows;  /**< sequences are all, fully masked ones too; 0: those with a live token */
} AggregationRule;

/** The PPO-clip family: -A clamp(w, low, high) with bounds by the sign of A. */
typedef struct ClipBounds {
  float high_positive; /**< largest ratio for A >= 0 */
  float low_negative;  /**< smallest for A < 0 */
  float high_negative; /**< largest for A < 0; wins over low_negative */
  float report_high;   /**< above it a positive advantage counts as clipped */
  float report_low;    /**< below it a negative one does */
  uint32_t unused;
} ClipBounds;

/** An objective: what does not change from token to token. */
typedef struct ObjectiveRule {
  ClipBounds clip;
  AggregationRule of_loss;
  AggregationRule of_entropy;
  float log_ratio_limit;
  float kl_coefficient;
  float kl_argument_limit;
  float kl_value_limit;
  float entropy_coefficient;
  uint32_t surrogate;          /**< SURROGATE_* */
  uint32_t kl;                 /**< KL_* */
  uint32_t kl_bias_correction; /**< the estimate times the ratio */
} ObjectiveRule;

/** The loss and what to watch beside it, on the device. */
typedef struct PolicyLossMetrics {
  double loss, policy_loss, kl_loss, entropy_loss;
  double clip_fraction, clip_fraction_high, clip_fraction_low, dual_clip_fraction;
  double approx_kl, kl, ratio_mean, ratio_max, entropy;
  uint64_t live_tokens, live_sequences;
} PolicyLossMetrics;

/** Sums over the live tokens of one block. */
typedef struct PolicyLossSums {
  double policy_loss, kl_loss, entropy_loss; /**< weighed by the coefficients of their sequences */
  double log_ratio, kl, ratio, ratio_max, entropy;
  uint64_t clipped_high, clipped_low, clipped_dual;
} PolicyLossSums;

/** One policy loss: three kernels take it, one after another. */
typedef struct PolicyLossArgs {
  const float* logprob;       /**< [tokens] */
  const float* old_logprob;   /**< [tokens] */
  const float* advantage;     /**< [tokens], or [sequences] */
  const uint8_t* mask;        /**< [tokens] non-zero: live; nothing else of a token that is not is read */
  const int64_t* offsets;     /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, masked */
  const float* reference;     /**< [tokens]; null where there is no KL */
  const float* entropy;       /**< [tokens]; null: not reported */
  const float* weight;        /**< [tokens] factors of the surrogate; null: 1 */
  float* dlogprob;            /**< [tokens]; 0 where masked */
  float* dentropy;            /**< [tokens]; 0 where masked; null: not wanted */
  uint32_t* live;             /**< [sequences] live tokens, from policy_loss_sequences */
  uint64_t* counts;           /**< [2] live tokens and sequences, 0 before policy_loss_sequences */
  PolicyLossSums* sums;       /**< [ceil(tokens / POLICY_LOSS_BLOCK)] */
  PolicyLossMetrics* metrics; /**< [1] */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
  double total_tokens;    /**< of the whole batch; negative: those of this call */
  double total_sequences; /**< of the whole batch; negative: those of this call */
  double scale;           /**< multiplies loss and gradients */
  uint32_t advantage_per_token;
  uint32_t unused;
  ObjectiveRule objective;
} PolicyLossArgs;

#endif
