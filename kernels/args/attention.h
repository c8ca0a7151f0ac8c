#ifndef GRADSTONE_ARGS_ATTENTION_H
#define GRADSTONE_ARGS_ATTENTION_H
#include "types.h"

/** Which keys of its own sequence a query sees. */
enum AttentionMask {
  MASK_CAUSAL,
  MASK_FULL,
  MASK_BLOCK_CAUSAL,   /**< its own block of `block` positions and those before */
  MASK_BLOCK_DIFFUSION /**< [noised; clean] copies: a noised token sees its own noised block and the clean blocks before
                          it, a clean token the clean blocks up to its own */
};

enum AttentionSize {
  ATTENTION_PAGE = 64,      /**< positions of one page of a cache */
  ATTENTION_GROUP = 512,    /**< keys of one softmax chain; chains are merged in order */
  ATTENTION_TILE_ROWS = 16, /**< query rows (or keys) of one warp */
};

/** What an attention layer computes, and the sequences it computes it for. Query head h reads key-value head
 * h / (query_heads / kv_heads). The queries of a sequence stand at its last positions. */
typedef struct AttentionShape {
  const int32_t* segments; /**< [sequences + 1], rising from 0 to tokens: where the queries of each sequence begin */
  const int32_t* lengths;  /**< [sequences] keys of each sequence, at least its queries, at most 2^31 - 128; null: one key a
                              query */
  int64_t tokens;          /**< queries of all sequences; tokens * query_heads / kv_heads <= 2^31 - 128: tiles pass the end */
  int32_t sequences;
  int32_t query_heads;
  int32_t kv_heads;
  int32_t head_dim; /**< at most the width in the kernel's name */
  uint32_t mask;    /**< MASK_* */
  int32_t window;   /**< causal masks: query i sees keys j > i - window; 0: all before it */
  int32_t block;    /**< positions of a block, > 0 where the mask has blocks */
  int32_t unused;
  float scale;      /**< factor on q k */
  float softcap;    /**< scores become softcap * tanh(score / softcap); 0: they do not */
  uint32_t* status; /**< STATUS_BAD_GROUP where segments or lengths are out of order; null: not told */
} AttentionShape;

/** out[i] = sum_j p_ij v_j, p_i = softmax_j(cap(scale q_i k_j)) over the keys j that query i sees. */
typedef struct AttentionForwardArgs {
  AttentionShape shape;
  const void* q;         /**< [tokens, query_heads, head_dim] in the kernel's storage type */
  const void* k;         /**< [tokens, kv_heads, head_dim]; with pages: not read */
  const void* v;         /**< as k */
  const uint64_t* pages; /**< [sequences, pages_per_sequence] addresses of [2 (k, v), kv_heads, ATTENTION_PAGE, head_dim]
                            in a page's layer; null: keys and values are k and v */
  void* out;             /**< [tokens, query_heads, head_dim]; not written where `partial` is given */
  float* logsumexp;      /**< [tokens, query_heads] natural logarithm; null: not wanted */
  float* partial;        /**< [groups, tokens, query_heads, head_dim] unnormalised output of each key group; null: a
                            block walks all groups */
  float* statistics;     /**< with partial: [groups, tokens, query_heads, 2] largest score (base 2) and sum */
  int64_t page_offset;   /**< elements from a page's start to its layer */
  int32_t pages_per_sequence;
  int32_t groups;  /**< key groups of the longest sequence */
  uint32_t vector; /**< rows of q, k, v and pages begin at multiples of 16 bytes */
  uint32_t unused;
} AttentionForwardArgs;

/** The key groups of AttentionForwardArgs.partial, merged in order and divided by their sum. */
typedef struct AttentionMergeArgs {
  const float* partial;    /**< [groups, rows, head_dim] */
  const float* statistics; /**< [groups, rows, 2] */
  void* out;               /**< [rows, head_dim] storage type */
  int64_t rows;
  int32_t head_dim;
  int32_t groups;
} AttentionMergeArgs;

/** delta[i] = dout[i] . out[i] of every token and head; dout in the storage type for the products that follow. */
typedef struct AttentionDeltaArgs {
  const void* out;   /**< [rows, head_dim] storage type */
  const float* dout; /**< [rows, head_dim] */
  float* delta;      /**< [rows] */
  void* rounded;     /**< [rows, head_dim] storage type; null: not wanted */
  int64_t rows;
  int32_t head_dim;
  uint32_t unused;
} AttentionDeltaArgs;

/** The gradients of AttentionForwardArgs over packed sequences. ds_ij = p_ij (dout_i v_j - delta_i) cap'. */
typedef struct AttentionBackwardArgs {
  AttentionShape shape;   /**< lengths null */
  const void* q;          /**< [tokens, query_heads, head_dim] storage type */
  const void* k;          /**< [tokens, kv_heads, head_dim] */
  const void* v;          /**< [tokens, kv_heads, head_dim] */
  const void* dout;       /**< [tokens, query_heads, head_dim] storage type */
  const float* logsumexp; /**< [tokens, query_heads] */
  const float* delta;     /**< [tokens, query_heads] */
  float* dq;              /**< [tokens, query_heads, head_dim] scale * sum_j ds_ij k_j */
  float* dk;              /**< [tokens, kv_heads, head_dim] scale * sum_i ds_ij q_i */
  float* dv;              /**< [tokens, kv_heads, head_dim] sum_i p_ij dout_i */
  uint32_t vector;        /**< rows of q, k, v and dout begin at multiples of 16 bytes */
  uint32_t unused;
} AttentionBackwardArgs;

/** Puts new keys and values behind those of a cache. */
typedef struct CacheAppendArgs {
  const void* k;           /**< [tokens, kv_heads, head_dim] storage type */
  const void* v;           /**< as k */
  const int32_t* segments; /**< [sequences + 1] new tokens of each sequence */
  const int32_t* lengths;  /**< [sequences] keys of each sequence with the new ones */
  const uint64_t* pages;   /**< [sequences, pages_per_sequence] addresses */
  uint32_t* status;        /**< STATUS_BAD_GROUP where segments or lengths are out of order */
  int64_t tokens;
  int64_t page_offset; /**< elements from a page's start to its layer */
  int32_t sequences;
  int32_t pages_per_sequence;
  int32_t kv_heads;
  int32_t head_dim;
} CacheAppendArgs;

/** Copies whole pages of a cache: those that two sequences share and one is about to write into. */
typedef struct CacheCopyArgs {
  const uint64_t* pairs; /**< [count, 2] addresses: from, to; multiples of 16 */
  int64_t count;
  int64_t page_bytes;
} CacheCopyArgs;

#endif
