#ifndef GRADSTONE_ARGS_TOKEN_DECODE_H
#define GRADSTONE_ARGS_TOKEN_DECODE_H
#include "types.h"

/** The tag, the last of an entry's 16 bytes: the number of bytes before it, up to 15, or flags. */
enum DecodeTag {
  DECODE_ABSENT = 16,   /* no token has this id */
  DECODE_FALLBACK = 32, /* one byte of a run */
  DECODE_SPECIAL = 64,
  DECODE_LONG = 128 /* the entry is an offset and a length (u32, u32) in the long tokens */
};

/** A length word: the bytes of a token that are written, and above them how many of its bytes are cut before. */
enum DecodeLength { DECODE_LENGTH_BITS = 24 };

/** Tokens that one CUDA block takes at once. */
enum DecodeShape { DECODE_TILE = 1024 };

/** The bytes of text tokens, in three steps that share this struct: lengths, an exclusive sum, copies. */
typedef struct TokenDecodeArgs {
  const int32_t* ids;      /**< [tokens]; outside 0..vocab: no bytes, and STATUS_BAD_INDEX */
  const int64_t* segments; /**< [texts + 1] rises from 0 to tokens */
  const uint8_t* entries;  /**< [vocab, 16], aligned to 16 */
  const uint8_t* first;    /**< [vocab, 16] for the first token of a text; null: the same */
  const uint8_t* long_tokens;
  uint32_t* lengths;       /**< [tokens] workspace */
  int64_t* sums;           /**< [ceil(tokens / DECODE_TILE) + 1] workspace */
  int64_t* starts;         /**< [tokens + 1] where each token's bytes begin */
  int64_t* offsets;        /**< [texts + 1] where each text begins */
  uint8_t* bytes;          /**< [capacity] */
  uint32_t* status;
  int64_t tokens, texts, capacity;
  int32_t vocab;
  uint32_t skip_special;
  uint32_t strip;          /**< an ASCII character that is cut from the beginning of a text */
  uint32_t strip_count;    /**< at most so many, 0..255 */
} TokenDecodeArgs;

/** out[i, :, p] = codebook[ids[i, p]], divided by max(its length, 1e-12) where `normalize`. */
typedef struct VqLookupArgs {
  const int32_t* ids;    /**< [images, positions]; outside 0..codes: a vector of zeros, and STATUS_BAD_INDEX */
  const float* codebook; /**< [codes, channels] */
  float* out;            /**< [images, channels, positions], or [images, positions, channels] where `channel_last` */
  uint32_t* status;
  int64_t images, positions, channels;
  int32_t codes;
  uint32_t normalize, channel_last, unused;
} VqLookupArgs;

/** ids[i, p] = the nearest code of z[i, :, p] by squared distance, the lowest of equally near ones. */
typedef struct VqQuantizeArgs {
  const float* z;        /**< in the layout */
  const float* codebook; /**< [codes, channels] */
  int32_t* ids;          /**< [images, positions] */
  int64_t images, positions, channels;
  int32_t codes;         /**< > 0 */
  uint32_t normalize, channel_last, unused;
} VqQuantizeArgs;

#endif
