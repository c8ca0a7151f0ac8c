#ifndef GRADSTONE_ARGS_ROW_WALK_H
#define GRADSTONE_ARGS_ROW_WALK_H
#include "types.h"

enum RowShape {
  WARP_ROW_WIDTH = 1024, /* rows up to this width belong to a warp, eight to a block; longer ones to a block each */
  WEIGHT_SUM_ROWS = 64   /* rows of one partial sum of a weight's gradient */
};

#endif
