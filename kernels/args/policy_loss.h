#ifndef GRADSTONE_ARGS_POLICY_LOSS_H
#define GRADSTONE_ARGS_POLICY_LOSS_H
#include "types.h"

/** The per-token loss: a functor each in objective.cuh. */
enum Surrogate {
  SURROGATE_CLIP, /**< PPO's clip, and none: bounds that are infinite */
  SURROGATE_CISPO,
  SURROGATE_GMPO,
  SURROGATE_SAPO,
  SURROGATE_REINFORCE,
  SURROGATE_CPGD,
  SURROGATE_VESPO,
  SURROGATE_VALUE /**< no surrogate: the clipped error of a value function, in the place of log-probs */
};

/** What stands for the ratio in SURROGATE_CLIP. */
enum RatioShape { RATIO_PLAIN, RATIO_LOGARITHM, RATIO_PLUS_LOGARITHM, RATIO_POWER, RATIO_PROBABILITY };

/** f of a replayed token's ratio; REPLAY_NONE: no token is replayed. */
enum ReplayShape { REPLAY_NONE, REPLAY_PLAIN, REPLAY_LOGPROB, REPLAY_RATIO_PLUS_LOGPROB, REPLAY_POWER, REPLAY_SIGMOID };

/** How importance weights enter. */
enum Weighting {
  WEIGHTING_TOKEN,     /**< each token's surrogate times its weight */
  WEIGHTING_MEAN,      /**< its value so; its gradient times the mean of the sequence's, through whose ratio it goes */
  WEIGHTING_GEOMETRIC, /**< the sequence's surrogate times their geometric mean */
  WEIGHTING_CONSUMED   /**< they are in the sequence's ratio */
};

/** What happens to tokens that a selection picked. */
enum Pick { PICK_NOTHING, PICK_DROP, PICK_KEEP, PICK_PENALISE };

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

/** The PPO-clip family: -A clamp(r, low, high) with bounds by the sign of A. */
typedef struct ClipBounds {
  float high_positive; /**< largest ratio for A >= 0 */
  float low_negative;  /**< smallest for A < 0 */
  float high_negative; /**< largest for A < 0; wins over low_negative */
  float report_high;   /**< above it a positive advantage counts as clipped */
  float report_low;    /**< below it a negative one does */
} ClipBounds;

/** The numbers of the other surrogates. */
typedef struct SurrogateNumbers {
  float low, high;                        /**< bounds of the ratio (CISPO), of the log ratio (GMPO, CPGD), high of the change (VALUE) */
  float positive, negative;               /**< by the sign of A: temperature (SAPO), k (VESPO) */
  float lambda_positive, lambda_negative; /**< VESPO */
} SurrogateNumbers;

/** The term of replayed tokens: -A clamp(f(w), least, most). */
typedef struct ReplayRule {
  uint32_t shape;       /**< REPLAY_* */
  uint32_t probability; /**< w is exp(logprob); 0: exp(logprob - old_logprob) */
  float number;         /**< weight, exponent, or the logarithm of beta */
  float gain;           /**< REPLAY_SIGMOID */
  float least, most;    /**< infinite where there is no bound */
} ReplayRule;

/** An objective: what does not change from token to token. */
typedef struct ObjectiveRule {
  AggregationRule of_loss, of_kl, of_entropy;
  ClipBounds clip;
  SurrogateNumbers numbers;
  ReplayRule replay;
  uint32_t surrogate;          /**< SURROGATE_* */
  uint32_t of_sequence;        /**< the ratio is exp(mean of the sequence's log ratios) */
  uint32_t ratio_shape;        /**< RATIO_* */
  float ratio_number;          /**< weight, exponent, or the logarithm of offset */
  float log_ratio_limit;       /**< of a token's log ratio, either way */
  float sequence_limit;        /**< of a sequence's mean log ratio, from above */
  uint32_t weighting;          /**< WEIGHTING_* */
  uint32_t pick;               /**< PICK_* */
  float pick_coefficient;      /**< PICK_PENALISE */
  uint32_t has_off_policy_threshold;
  float off_policy_threshold;  /**< of the mean of sampler - logprob: above it tokens with A < 0 are dropped */
  float drift_coefficient;     /**< 0: no drift */
  float drift_cap;
  uint32_t has_drift;
  float kl_coefficient;
  float kl_argument_limit;
  float kl_value_limit;
  uint32_t kl;                  /**< KL_* */
  uint32_t kl_bias_correction;  /**< the estimate times the ratio */
  uint32_t kl_straight_through; /**< the gradient of k2 */
  float entropy_coefficient;
  uint32_t unused;
} ObjectiveRule;

/** What the tokens of a sequence share, from policy_loss_sequences. */
typedef struct SequenceFactors {
  float ratio;            /**< GSPO's or GMPO's */
  float phi_positive;     /**< VESPO's for A >= 0 */
  float phi_negative;     /**< and for A < 0 */
  float weight;           /**< mean of the importance weights; GMPO: their geometric mean */
  uint32_t stopped;       /**< a clamp of the ratio's logarithm acts */
  uint32_t drop_negative; /**< tokens with A < 0 are dropped */
  uint32_t live;          /**< live tokens */
  uint32_t unused;
} SequenceFactors;

/** The loss and what to watch beside it, on the device. */
typedef struct PolicyLossMetrics {
  double loss, policy_loss, kl_loss, entropy_loss, drift_loss;
  double clip_fraction, clip_fraction_high, clip_fraction_low, dual_clip_fraction, dropped_fraction, selected_fraction;
  double approx_kl, absolute_log_ratio, kl, ratio_mean, ratio_variance, ratio_max, entropy, fresh_loss;
  double replay_loss, shaped_mean, shaped_variance, replay_clip_high, replay_clip_low, replay_ratio_max;
  double replay_probability, fresh_probability;
  uint64_t replay_tokens, live_tokens, live_sequences;
} PolicyLossMetrics;

/** Sums over the live tokens of one block. */
typedef struct PolicyLossSums {
  double policy_loss, kl_loss, entropy_loss, drift_loss; /**< weighed by the coefficients of their sequences */
  double log_ratio, absolute_log_ratio, kl, entropy, surrogate;
  double ratio, ratio_squared, ratio_max; /**< of tokens that are not replayed */
  uint32_t clipped, clipped_high, clipped_low, clipped_dual, dropped, selected;
} PolicyLossSums;

/** Sums over its replayed tokens. */
typedef struct ReplaySums {
  double surrogate, shaped, shaped_squared, ratio_max, probability;
  double fresh_probability; /**< of the others */
  uint32_t tokens, clipped_high, clipped_low, unused;
} ReplaySums;

/** One policy loss: three kernels take it, one after another. */
typedef struct PolicyLossArgs {
  const float* logprob;       /**< [tokens] */
  const float* old_logprob;   /**< [tokens] */
  const float* advantage;     /**< [tokens], or [sequences] */
  const uint8_t* mask;        /**< [tokens] non-zero: live; nothing else of a token that is not is used */
  const int64_t* offsets;     /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, masked */
  const float* reference;     /**< [tokens]; null where there is no KL */
  const float* entropy;       /**< [tokens]; null: not reported */
  const float* weight;        /**< [tokens] factors of the surrogate; null: 1 */
  const float* sampler;       /**< [tokens]; null: old_logprob; read where there is an off-policy threshold */
  const uint8_t* off_policy;  /**< [tokens] non-zero: replayed; null: none */
  const uint8_t* selected;    /**< [tokens] non-zero: picked; null: none */
  float* dlogprob;            /**< [tokens]; 0 where masked */
  float* dentropy;            /**< [tokens]; 0 where masked; null: not wanted */
  SequenceFactors* factors;   /**< [sequences] from policy_loss_sequences */
  uint64_t* counts;           /**< [2] live tokens and sequences, 0 before policy_loss_sequences */
  PolicyLossSums* sums;       /**< [ceil(tokens / POLICY_LOSS_BLOCK)] */
  ReplaySums* replay_sums;    /**< the same, where tokens are replayed; else null */
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
