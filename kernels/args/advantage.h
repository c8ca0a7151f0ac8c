#ifndef GRADSTONE_ARGS_ADVANTAGE_H
#define GRADSTONE_ARGS_ADVANTAGE_H
#include "types.h"

/** What a centred reward is multiplied by. */
enum AdvantageFactor {
  ADVANTAGE_ONE,          /**< 1 */
  ADVANTAGE_LEAVE_ONE_OUT, /**< n / (n - 1) */
  ADVANTAGE_OVER_STD      /**< 1 / (max(std, least_std) + epsilon) */
};

/** Flags of a group. */
enum AdvantageFlag {
  ADVANTAGE_DEGENERATE = 1, /**< no two different scored rewards */
  ADVANTAGE_SINGLETON = 2,  /**< one scored response */
  ADVANTAGE_NAN = 4         /**< a response was not scored */
};

/** A group up to so many responses is a warp's, a larger one a block's: part of the order of its sums. */
enum AdvantageShape { ADVANTAGE_WARP_GROUP = 256 };

/** advantage = (reward - mean of its group) * factor. */
typedef struct AdvantageArgs {
  const float* rewards;    /**< [responses]; NaN: not scored; infinite: not scored, and STATUS_NON_FINITE is set */
  const int64_t* offsets;  /**< [groups + 1] ascending places; a group that is not: STATUS_BAD_GROUP, left out */
  const int32_t* order;    /**< [responses] response at each place; null: response i is at place i */
  const double* batch_std; /**< deviation of all rewards, taken in place of the group's; null: the group's own */
  float* advantage;        /**< [responses]; 0 where not scored */
  float* mean;             /**< [groups] of the scored rewards, 0 where none is; null: not wanted */
  float* std;              /**< [groups] unbiased, 0 below two or where all are equal; null: not wanted */
  uint8_t* flags;          /**< [groups] ADVANTAGE_*; null: not wanted */
  uint64_t* counts;        /**< [3] added to: groups with a response, degenerate ones, responses not scored; may be null */
  uint32_t* status;
  int64_t responses;
  int64_t groups;
  double epsilon;
  double least_std;
  uint32_t factor;           /**< ADVANTAGE_* */
  uint32_t singleton_reward; /**< a group of one gets its reward (times factor, with deviation 1) instead of 0 */
} AdvantageArgs;

/** std = the unbiased deviation of all scored rewards. */
typedef struct AdvantageBatchArgs {
  const float* rewards; /**< [responses] */
  double* std;          /**< [1] */
  int64_t responses;
} AdvantageBatchArgs;

#endif
