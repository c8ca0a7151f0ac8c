#ifndef GRADSTONE_ARGS_ADVANTAGE_H
#define GRADSTONE_ARGS_ADVANTAGE_H
#include "types.h"

/** What is subtracted from a reward. */
enum AdvantageCenter {
  ADVANTAGE_MEAN,          /**< the mean of its group */
  ADVANTAGE_LENGTH_MEAN,   /**< the mean of its group weighed by lengths; the plain one where all lengths are 0 */
  ADVANTAGE_NO_CENTER,     /**< nothing */
  ADVANTAGE_GREEDY         /**< the reward of the greedy response */
};

/** What a centred reward is multiplied by. */
enum AdvantageFactor {
  ADVANTAGE_ONE,           /**< 1 */
  ADVANTAGE_LEAVE_ONE_OUT, /**< n / (n - 1) */
  ADVANTAGE_OVER_STD,      /**< 1 / (max(std, least_std) + epsilon) */
  ADVANTAGE_OF_BATCH       /**< batch->scale */
};

/** Flags of a group. */
enum AdvantageFlag {
  ADVANTAGE_DEGENERATE = 1, /**< no two different scored rewards */
  ADVANTAGE_SINGLETON = 2,  /**< one scored response */
  ADVANTAGE_NAN = 4         /**< a response was not scored */
};

/** A group up to so many responses is a warp's, a larger one a block's: part of the order of its sums. */
enum AdvantageShape {
  ADVANTAGE_WARP_GROUP = 256,
  /** Tokens whose moments make one record: part of the order of the sums. */
  ADVANTAGE_BLOCK = 2048
};

/** What all responses together say. */
typedef struct AdvantageBatch {
  double std;   /**< unbiased deviation of the scored rewards; 1 where all are equal */
  double scale; /**< scored responses / max(1, those with a reward that is not 0) */
} AdvantageBatch;

/** advantage = (reward - center of its group) * factor. */
typedef struct AdvantageArgs {
  const float* rewards;        /**< [responses]; NaN: not scored; infinite: not scored, and STATUS_NON_FINITE is set */
  const int64_t* offsets;      /**< [groups + 1] ascending places; a group that is not: STATUS_BAD_GROUP, left out */
  const int32_t* order;        /**< [responses] response at each place; null: response i is at place i */
  const uint8_t* basis;        /**< [responses] non-zero: in the statistics; null: all are */
  const float* greedy;         /**< [responses] for ADVANTAGE_GREEDY; NaN: advantage 0 */
  const int64_t* lengths;      /**< [responses] live tokens; null where nothing asks for them */
  const AdvantageBatch* batch; /**< [1]; null where nothing asks for it */
  float* advantage;            /**< [responses]; 0 where not scored */
  float* mean;                 /**< [groups] of the scored rewards, 0 where none is; null: not wanted */
  float* std;                  /**< [groups] unbiased, 0 below two or where all are equal; null: not wanted */
  uint8_t* flags;              /**< [groups] ADVANTAGE_*; null: not wanted */
  uint64_t* counts;            /**< [3] added to: groups with a response, degenerate ones, responses not scored; may be null */
  uint32_t* status;
  int64_t responses;
  int64_t groups;
  double epsilon;
  double least_std;
  double variance_threshold; /**< a group with a smaller variance has advantage 0 */
  double length_bonus;       /**< times the z-score of shortness among correct responses, added; 0: none */
  double correct_above;      /**< a response with a larger reward is correct, for length_bonus */
  double scale;              /**< multiplies every factor */
  uint32_t center;           /**< ADVANTAGE_* */
  uint32_t factor;           /**< ADVANTAGE_* */
  uint32_t singleton_reward; /**< a group of one gets its reward (times factor, with deviation 1) instead of 0 */
  uint32_t batch_std;        /**< the deviation is batch->std */
  uint32_t best_only;        /**< the best response of a group has its distance to the second, the others 0 */
  uint32_t unused;
} AdvantageArgs;

/** Statistics of all rewards. */
typedef struct AdvantageBatchArgs {
  const float* rewards;  /**< [responses] */
  AdvantageBatch* batch; /**< [1] */
  int64_t responses;
} AdvantageBatchArgs;

/** What happens to all advantages together, in place. */
enum AdvantageFinish {
  ADVANTAGE_WHITEN,      /**< (x - mean) / sqrt(var + epsilon), a response counting as often as it has tokens */
  ADVANTAGE_STANDARDIZE, /**< (x - mean) / (std + epsilon) */
  ADVANTAGE_FILTER_SCALE /**< x min(cap, counted / groups that are not degenerate) */
};

/** The second step of the estimators that look at the whole batch. One block. */
typedef struct AdvantageFinishArgs {
  const float* rewards;   /**< [responses]; one that is not scored takes no part and has advantage 0 */
  const int64_t* lengths; /**< [responses], below 0 counting as 0; null: 1 each */
  float* advantage;       /**< [responses] */
  const uint64_t* counts; /**< [3] of the groups, for ADVANTAGE_FILTER_SCALE */
  double* std;            /**< [1] the deviation before; null: not wanted */
  int64_t responses;
  double epsilon;
  double cap;
  uint32_t finish;        /**< ADVANTAGE_* */
  uint32_t per_responses; /**< counted are responses and not groups */
} AdvantageFinishArgs;

/** Scores of several reward functions: columns apart, and summed with weights. */
typedef struct AdvantageRewardsArgs {
  const float* rewards;  /**< [responses, functions]; NaN: the function does not score this response */
  const double* weights; /**< [functions] */
  const float* scores;   /**< [functions, responses] what is summed where a function scores; null: the rewards */
  float* columns;        /**< [functions, responses] out, rewards transposed; null: not wanted */
  float* sums;           /**< [responses] out; NaN where no function scores; null: not wanted */
  int64_t responses;
  int64_t functions;
} AdvantageRewardsArgs;

/** Advantages and returns of tokens by a scan from the last token to the first. */
typedef struct AdvantageScanArgs {
  const float* rewards;   /**< [tokens] */
  const float* values;    /**< [tokens]; null: 0 */
  const uint8_t* mask;    /**< [tokens] non-zero: live; of another token nothing else is used, except for `carried` */
  const int64_t* offsets; /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, 0 */
  float* advantage;       /**< [tokens], zero before; null: not wanted */
  float* returns;         /**< [tokens], zero before: advantage with critic_lambda, plus value; null: not wanted */
  const float* means;     /**< [sequences] with `relative`: means - relative is taken off every reward; null: nothing */
  const float* relative;  /**< [sequences] */
  const float* bonus;     /**< [sequences] added to every live advantage; null: nothing */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
  double gamma;
  double lambda;
  double critic_lambda; /**< negative: lambda */
  double length_alpha; /**< lambda = 1 - 1 / (length_alpha live tokens), at least 0; 0: lambda as given */
  uint32_t reset;      /**< a masked token ends what comes after it; else it passes it on */
  uint32_t carried;    /**< a masked token gets what it passes on (plus its value); else 0 */
} AdvantageScanArgs;

/** The mean over the live tokens of each sequence. */
typedef struct AdvantageMeansArgs {
  const float* values;    /**< [tokens] */
  const uint8_t* mask;    /**< [tokens] non-zero: live */
  const int64_t* offsets; /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, NaN */
  float* means;           /**< [sequences]; NaN where no token is live */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
} AdvantageMeansArgs;

/** Moments of live tokens. */
typedef struct AdvantageMoments {
  double count, mean, squares;
  float least, most;
} AdvantageMoments;

/** (x - mean) / sqrt(var + epsilon) over the live tokens of a batch. Two kernels take it. */
typedef struct AdvantageWhitenArgs {
  const uint8_t* mask;       /**< [tokens] non-zero: live */
  float* values;             /**< [tokens] in place */
  AdvantageMoments* moments; /**< [ceil(tokens / ADVANTAGE_BLOCK)] from advantage_moments */
  int64_t tokens;
  double epsilon;
  uint32_t carried; /**< masked tokens are whitened too; else they get 0 */
  uint32_t unused;
} AdvantageWhitenArgs;

/** The optimal baseline of each position of a group. Two kernels take it. */
typedef struct AdvantageTokenBaselineArgs {
  const float* rewards;       /**< [tokens] */
  const float* logprob;       /**< [tokens] under the policy that sampled */
  const float* sum_squares;   /**< [tokens] sum of the squared probabilities of the vocabulary */
  const float* weight;        /**< [tokens] importance weights, squared in; null: 1 */
  const uint8_t* mask;        /**< [tokens] non-zero: live; nothing else of another token is read */
  const int64_t* offsets;     /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, 0 */
  const int64_t* groups;      /**< [group_count + 1] ascending places of sequences; a group that is not: STATUS_BAD_GROUP, 0 */
  const int32_t* order;       /**< [sequences] sequence at each place; null: sequence i is at place i */
  double* to_go;              /**< [tokens] workspace: return of each slot */
  double* energy;             /**< [tokens] workspace: accumulated variance of each slot, 0 where it does not count */
  int32_t* place;             /**< [tokens] workspace: token of each slot, counted in the sequence, which is below 2^31 long */
  int32_t* slots;             /**< [sequences] workspace: slots of each sequence; -1: not placed */
  int32_t* live;              /**< [sequences] workspace: live tokens */
  float* advantage;           /**< [tokens], zero before; 0 where masked */
  float* returns;             /**< [tokens], zero before; null: not wanted */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
  int64_t group_count;
  double epsilon;
  uint32_t compact;   /**< a slot is a live token, counted without the masked ones; else a position */
  uint32_t zero_tail; /**< no baseline for what the longest sequence alone reaches */
  uint32_t carried;   /**< returns of masked tokens are what they pass on; else 0 */
  uint32_t unused;
} AdvantageTokenBaselineArgs;

#endif
