#ifndef GRADSTONE_ARGS_STEP_CREDIT_H
#define GRADSTONE_ARGS_STEP_CREDIT_H
#include "types.h"

/** What a token's label does to its advantage. */
enum StepCreditRule {
  STEP_CREDIT_MODULATE, /**< times `alpha` (`alpha_failed`) where the verdict speaks against the sign of the advantage */
  STEP_CREDIT_MASK,     /**< kept where the label is above `threshold` */
  STEP_CREDIT_SCALE,    /**< times the label */
  STEP_CREDIT_ADD,      /**< plus `weight` times the label */
  STEP_CREDIT_REPLACE   /**< the label itself */
};

/** Places of `counts`. */
enum StepCreditCount {
  STEP_CREDIT_LIVE,
  STEP_CREDIT_POSITIVE_VALID,
  STEP_CREDIT_POSITIVE_INVALID,
  STEP_CREDIT_NEGATIVE_VALID,
  STEP_CREDIT_NEGATIVE_INVALID,
  STEP_CREDIT_ZERO,
  STEP_CREDIT_ZEROED,
  STEP_CREDIT_COUNTS
};

/** Labels of spans painted on tokens; where spans overlap the one with the highest index wins. Two kernels take it. */
typedef struct StepPaintArgs {
  const int32_t* sequence; /**< [spans]; outside 0..sequences: STATUS_BAD_INDEX, the span is left out */
  const int64_t* start;    /**< [spans] first token, counted in the sequence */
  const int64_t* end;      /**< [spans] one past the last; not start <= end <= length: STATUS_BAD_INDEX, left out */
  const float* label;      /**< [spans] */
  const int64_t* offsets;  /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, left out */
  int32_t* owner;          /**< [tokens] the span of each token; -1 before step_paint_owners */
  float* labels;           /**< [tokens] */
  uint32_t* status;
  int64_t spans;
  int64_t sequences;
  int64_t tokens;
  float background; /**< the label of a token in no span */
  uint32_t unused;
} StepPaintArgs;

/** Advantages of tokens from advantages and labels. */
typedef struct StepCreditArgs {
  const float* labels;    /**< [tokens] */
  const float* advantage; /**< [tokens], or [sequences] */
  const uint8_t* mask;    /**< [tokens] non-zero: live; nothing else of a token that is not is read */
  const int64_t* offsets; /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, masked */
  float* credited;        /**< [tokens], zero before; 0 where masked */
  uint8_t* kept;          /**< [tokens], zero before; the mask without the tokens that STEP_CREDIT_MASK drops; may be null */
  uint64_t* counts;       /**< [STEP_CREDIT_COUNTS] added to; null: not wanted */
  uint32_t* status;       /**< STATUS_NON_FINITE for a label that is NaN or infinite: its token counts as masked */
  int64_t tokens;
  int64_t sequences;
  float alpha;
  float alpha_failed;
  float threshold;
  float weight;
  uint32_t rule; /**< STEP_CREDIT_* */
  uint32_t advantage_per_token;
} StepCreditArgs;

/** Rewards of tokens from the potential alpha clip(smooth(label)): F[t] = gamma potential[t + 1] - potential[t]. */
typedef struct StepShapingArgs {
  const float* labels;    /**< [tokens] */
  const uint8_t* mask;    /**< [tokens] non-zero: live */
  const int64_t* offsets; /**< [sequences + 1]; a sequence they do not place in the tokens: STATUS_BAD_GROUP, masked */
  float* shaping;         /**< [tokens], zero before; 0 where masked */
  uint32_t* status;
  int64_t tokens;
  int64_t sequences;
  int64_t reach; /**< the window is t - reach ..= t + reach */
  float gamma;
  float alpha;
  float clip;
  uint32_t reads_masked; /**< the window reads labels of masked tokens, and repeats the first and last of the sequence */
} StepShapingArgs;

#endif
