/* types.h: what every argument struct is made of. Plain C, read by nvcc, NVRTC, the host compiler and bindgen. */
#ifndef GRADSTONE_ARGS_TYPES_H
#define GRADSTONE_ARGS_TYPES_H

#if defined(__CUDACC_RTC__) /* NVRTC has no standard headers */
typedef unsigned char uint8_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

/* Bits of the device's status word: only ever or-ed, read by the host when it looks. Whatever raised one touched no
 * memory out of range; its row counts as masked. */
enum Status {
  STATUS_BAD_INDEX = 1,  /* an id or a row index outside its table */
  STATUS_BAD_TARGET = 2, /* a target outside the vocabulary */
  STATUS_BAD_GROUP = 4,  /* a group or sequence offset that is not in order */
  STATUS_NON_FINITE = 8  /* a NaN or infinity where the kernel says that it looks for one */
};

#endif
