/* args.h: the argument struct of every kernel, one header a family. A kernel takes exactly one of them, by value.
 * bindings/kernel_args.rs is made from this file, so the two languages cannot drift. */
#ifndef GRADSTONE_ARGS_H
#define GRADSTONE_ARGS_H
#include "args/advantage.h"
#include "args/cast.h"
#include "args/elementwise.h"
#include "args/linear_logprob.h"
#include "args/logprob.h"
#include "args/policy_loss.h"
#include "args/reduce.h"
#include "args/sample.h"
#endif
