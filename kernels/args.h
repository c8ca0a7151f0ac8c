/* args.h: the argument struct of every kernel, one header a family. A kernel takes exactly one of them, by value.
 * bindings/kernel_args.rs is made from this file, so the two languages cannot drift. */
#ifndef GRADSTONE_ARGS_H
#define GRADSTONE_ARGS_H
#include "args/activation.h"
#include "args/adamw.h"
#include "args/advantage.h"
#include "args/attention.h"
#include "args/block_noise.h"
#include "args/cast.h"
#include "args/elementwise.h"
#include "args/layer_norm.h"
#include "args/linear_logprob.h"
#include "args/logprob.h"
#include "args/policy_loss.h"
#include "args/reduce.h"
#include "args/rms_norm.h"
#include "args/rollout_correction.h"
#include "args/rope.h"
#include "args/row_walk.h"
#include "args/rows.h"
#include "args/sample.h"
#include "args/softmax.h"
#include "args/step_credit.h"
#include "args/token_decode.h"
#include "args/token_selection.h"
#endif
