// block_noise.cu: which tokens block diffusion masks, and what each of them weighs in the loss.
//
// Contract   args/block_noise.h. The noise of a sequence follows its number: not its place in the batch, not the launch.
//            Bits are those of src/kernels/block_noise, the CPU's: masks come from comparing Philox words, and the
//            few floating-point steps are written with intrinsics that round once and are never fused.
// Floor      an id read, an id, a mask byte and a weight written: 13 bytes a token, and 1 where `eligible` is given. At
//            1 M tokens that is 3 us of an H200's 4.8 TB/s; Philox is some 20 instructions a token, as much again.
// Algorithm  A CUDA block takes a tile of whole noise blocks of one sequence; one thread divides for all. (1) Words: keys,
//            levels and counts, four to a call of Philox, into shared memory. (2) Blocks: a thread folds the keys of a
//            block of up to 32 tokens, a warp those of a longer one (lane l keeps the l-th): eligible places, least key;
//            then 32 threads decide side by side: the highest key that is masked, or for bounded counts the count, by
//            inverting the binomial's cumulative sum from its mode outward. (3) Tokens: a comparison with that key,
//            sixteen bytes at a time where rows are aligned, one division for four tokens where the block is a multiple
//            of four; or the rank of the key in its block against the count. The subset of a bounded count is uniform
//            because keys are.
//            Blocks of four, whose keys are one call of Philox, stay in one thread's registers from key to token; its
//            ids are loaded before the first word is drawn, and only levels pass through shared memory.
// Hazards    Ranks cost `block` comparisons a token: fine up to hundreds, slow for a block of thousands. A key of 2^32-1
//            is both the mark of an ineligible place and one that a draw may give: equality asks `eligible`.
//            Folding threads whose blocks lie a multiple of 128 bytes apart would all read one bank: each starts with
//            another four. Rows times length passes 2^31; tiles may outnumber a grid, so blocks loop.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/block_noise.h"

constexpr int THREADS = 256;
constexpr int SHORT = 32;  // the longest block that one thread folds
constexpr uint32_t STREAM_NOISE = 8;
// Philox counters of a sequence: keys from 0 (four a counter), then levels, counts, and the turns of strata.
constexpr uint32_t LEVELS = 1u << 30, COUNTS = 2u << 30, TURNS = 3u << 30;
constexpr float SMALLEST = 1.0f / 4294967296.0f;

// The noise blocks of one sequence that a CUDA block works on.
struct Tile {
  int64_t number;   // of the sequence
  int64_t at;       // the first token, counted in the batch
  int64_t rate_at;  // the first noise block, counted in the batch
  uint32_t token, block;  // the same, counted in the sequence
  uint32_t blocks_of_row;
  int blocks, tokens;
};

// What the steps leave for one another, in dynamic shared memory: keys [tokens], bounds and weights [blocks].
struct Drawn {
  uint32_t* key;
  uint32_t* bound;  // the word of the level, then the highest masked key or the count
  uint32_t* worth;  // the word of the count, then the bits of the weight
};

// Whether four neighbouring tokens belong to one noise block, start at a multiple of four and have their marks in one word.
__device__ __forceinline__ bool in_fours(const BlockNoiseArgs& a) {
  return a.block % 4 == 0 && reinterpret_cast<unsigned long long>(a.eligible) % 4 == 0;
}

__device__ __forceinline__ bool is_eligible(const BlockNoiseArgs& a, const Tile& tile, int token) {
  return !a.eligible || a.eligible[tile.at + token] != 0;
}

// Which of four tokens from `token` on may be masked, as `marked_bytes` has it.
__device__ __forceinline__ uint32_t eligible_four(const BlockNoiseArgs& a, const Tile& tile, int token) {
  if (!a.eligible) return 0x80808080u;
  return marked_bytes(*reinterpret_cast<const uint32_t*>(a.eligible + tile.at + token));
}

__device__ __forceinline__ int fours_of(uint32_t first, int count) { return int((first + count - 1) / 4 - first / 4 + 1); }

// Four keys from `token` on, the mark of an ineligible place among them.
__device__ __forceinline__ Vec16<uint32_t> marked(const Random4& words, uint32_t eligible) {
  Vec16<uint32_t> key;
#pragma unroll
  for (int i = 0; i < 4; i++) key.at[i] = is_marked(eligible, i) ? words.word[i] : 0xffffffffu;
  return key;
}

// Step 1: the words of the keys, the levels and the counts of a tile, four to a call of Philox. Not KEYS: those of the blocks.
template <bool KEYS>
__device__ __forceinline__ void draw(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const bool fours = in_fours(a);
  const int keys = KEYS ? fours_of(tile.token, tile.tokens) : 0, of_blocks = fours_of(tile.block, tile.blocks);
  const int levels = keys + (a.given_rate ? 0 : of_blocks), all = levels + (a.draw == NOISE_COUNTED ? of_blocks : 0);
  for (int item = threadIdx.x; item < all; item += THREADS) {
    const bool is_key = KEYS && item < keys, is_level = !is_key && item < levels;
    const uint32_t four = is_key ? tile.token / 4 + item : tile.block / 4 + item - (is_level ? keys : levels);
    const Random4 words = philox(a.seed, STREAM_NOISE, uint64_t(tile.number), four + (is_key ? 0 : is_level ? LEVELS : COUNTS));
    const int first = int(four * 4 - (is_key ? tile.token : tile.block));  // below 0 where the tile begins within the four
    if (is_key && fours) {
      *reinterpret_cast<Vec16<uint32_t>*>(drawn.key + first) = marked(words, eligible_four(a, tile, first));
    } else {
      uint32_t* into = is_key ? drawn.key : is_level ? drawn.bound : drawn.worth;
      const int count = is_key ? tile.tokens : tile.blocks;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int place = first + i;
        if (place >= 0 && place < count) into[place] = !is_key || is_eligible(a, tile, place) ? words.word[i] : 0xffffffffu;
      }
    }
  }
}

// The rate of a noise block from the word of its level; `block` is counted in the sequence.
__device__ __forceinline__ float draw_rate(const BlockNoiseArgs& a, const Tile& tile, uint32_t block, uint32_t word) {
  if (a.strata_bits) {
    const uint64_t global = uint64_t(tile.number) * tile.blocks_of_row + block;
    const uint32_t turn = philox(a.seed, STREAM_NOISE, global >> a.strata_bits, TURNS).word[0];
    const uint32_t stratum = (uint32_t(global) * 0x9E3779B1u + turn) & ((1u << a.strata_bits) - 1u);
    word = stratum << (32u - a.strata_bits) | word >> a.strata_bits;
  }
  float rate = __fadd_rn(a.low, __fmul_rn(a.slope, __fmul_rn(a.before, unit_float(word))));
  rate = rate < a.least ? a.least : rate;
  rate = rate > a.high ? a.high : rate;
  rate = __fmul_rn(a.after, rate);
  return rate < SMALLEST ? SMALLEST : rate;
}

// The highest key that a rate masks. The product is exact; a rate of 1 masks all keys, a smaller one at least key 0.
__device__ __forceinline__ uint32_t highest_key(float rate) {
  const float product = __fmul_rn(rate, 4294967296.0f);
  const uint32_t keys = __float2uint_rz(product);
  return product >= 4294967296.0f ? 0xffffffffu : (keys > 0 ? keys : 1) - 1;
}

// The binomial distribution between two bounds: terms from the mode outward, in the order of the CPU's.
struct Binomial {
  uint32_t places, least, most, mode;
  double rate, total, moment;

  // Adds the terms in order until the sum is above `goal`; the count there.
  __device__ uint32_t walk(double goal) {
    const double other = __dadd_rn(1.0, -rate);
    total = 1.0;
    moment = double(mode);
    if (total > goal) return mode;
    uint32_t count = mode;
    double term = 1.0;
    while (count < most && other > 0.0) {
      term = __ddiv_rn(__dmul_rn(term, __dmul_rn(double(places - count), rate)), __dmul_rn(double(count + 1), other));
      count++;
      total = __dadd_rn(total, term);
      moment = __dadd_rn(moment, __dmul_rn(double(count), term));
      if (total > goal) return count;
    }
    count = mode;
    term = 1.0;
    while (count > least) {
      term = __ddiv_rn(__dmul_rn(term, __dmul_rn(double(count), other)), __dmul_rn(double(places - count + 1), rate));
      count--;
      total = __dadd_rn(total, term);
      moment = __dadd_rn(moment, __dmul_rn(double(count), term));
      if (total > goal) return count;
    }
    return count;
  }
};

__device__ __forceinline__ Binomial binomial(uint32_t places, float rate, uint32_t least, uint32_t most) {
  Binomial b;
  b.places = places;
  b.least = least < places ? least : places;
  b.most = most < places ? most : places;
  b.rate = double(rate);
  b.mode = rate < 1.0f ? uint32_t(__dmul_rn(double(places) + 1.0, b.rate)) : places;
  b.mode = b.mode < b.least ? b.least : b.mode > b.most ? b.most : b.mode;
  return b;
}

// 1 / P(masked) where an empty mask is forced: P = rate + (1 - rate)^places / places.
__device__ __forceinline__ float forced_weight(float rate, uint32_t places) {
  const double p = double(rate);
  double power = 1.0, square = __dadd_rn(1.0, -p);
  for (uint32_t exponent = places; exponent > 0; exponent >>= 1) {
    if (exponent & 1u) power = __dmul_rn(power, square);
    square = __dmul_rn(square, square);
  }
  return __double2float_rn(__ddiv_rn(1.0, __dadd_rn(p, __ddiv_rn(power, double(places)))));
}

// What a noise block's tokens say of it.
struct Places {
  uint32_t count;      // of eligible ones
  uint32_t least_key;  // asked for where an empty mask is forced
};

__device__ __forceinline__ void fold(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn, int token, Places& places) {
  const uint32_t key = drawn.key[token];
  places.least_key = key < places.least_key ? key : places.least_key;
  places.count += is_eligible(a, tile, token);
}

__device__ __forceinline__ void fold_four(const Vec16<uint32_t>& key, uint32_t eligible, Places& places) {
#pragma unroll
  for (int i = 0; i < 4; i++) places.least_key = key.at[i] < places.least_key ? key.at[i] : places.least_key;
  places.count += uint32_t(__popc(eligible));
}

// What a noise block's keys are compared with: the highest masked key, or how many are masked; and what a masked token weighs.
struct Decision {
  uint32_t bound;
  float worth;
};

// Step 2 for one noise block, by one thread, from the words of its level and its count. MAY_COUNT: the draw may be a counted one.
template <bool MAY_COUNT>
__device__ __forceinline__ Decision decide(const BlockNoiseArgs& a, const Tile& tile, int b, const Places& places, uint32_t level,
                                           uint32_t count) {
  float rate = 0.0f, worth = 0.0f;
  uint32_t bound = 0;
  if (places.count > 0) {
    rate = a.given_rate ? a.given_rate[tile.rate_at + b] : draw_rate(a, tile, tile.block + b, level);
    worth = a.weighting == NOISE_WEIGHT_ONE ? 1.0f : __frcp_rn(rate);
    if (MAY_COUNT && a.draw == NOISE_COUNTED) {
      Binomial counts = binomial(places.count, rate, a.least_count, a.most_count);
      counts.walk(INFINITY_F);  // for its sums
      if (a.weighting == NOISE_WEIGHT_UNBIASED) {
        const double mean = __ddiv_rn(counts.moment, counts.total);
        worth = __double2float_rn(__ddiv_rn(double(places.count), mean));
      }
      const double unit = double(count) * (1.0 / 4294967296.0);  // exact
      bound = counts.walk(__dmul_rn(unit, counts.total));
    } else {
      bound = highest_key(rate);
      if (a.draw == NOISE_FORCED) {
        bound = bound > places.least_key ? bound : places.least_key;
        if (a.weighting == NOISE_WEIGHT_UNBIASED) worth = forced_weight(rate, places.count);
      }
    }
    if (a.given_weight) worth = a.given_weight[tile.rate_at + b];
  }
  a.rate[tile.rate_at + b] = rate;
  return Decision{bound, worth};
}

// A thread a short block, a warp a long one: lane l keeps what its warp folds of the l-th, and decides.
__device__ __forceinline__ void decide_blocks(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const bool fours = in_fours(a), folds = a.eligible || a.draw == NOISE_FORCED, is_long = a.block > SHORT;
  constexpr int WARPS = THREADS / WARP;
  // All lanes of a warp take part in every turn of its loops.
  for (int first = 0; first < tile.blocks; first += THREADS) {
    const int mine = first + (is_long ? lane_id() * WARPS + warp_id() : int(threadIdx.x));
    Places places{uint32_t(a.block), 0xffffffffu};
    if (folds && !is_long && mine < tile.blocks) {
      places.count = 0;
      const int begin = mine * a.block, quads = a.block / 4;
      if (fours) {
        // Lanes whose blocks begin in the same bank of shared memory begin with different fours.
        int four = (quads & (quads - 1)) == 0 ? begin / 32 & (quads - 1) : 0;
#pragma unroll 1
        for (int i = 0; i < quads; i++) {
          fold_four(load16(drawn.key + begin + four * 4), eligible_four(a, tile, begin + four * 4), places);
          four = four + 1 < quads ? four + 1 : 0;
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < a.block; i++) fold(a, tile, drawn, begin + i, places);
      }
    } else if (folds && is_long) {
      for (int turn = 0; turn < WARP; turn++) {
        const int b = first + turn * WARPS + warp_id(), begin = b * a.block;
        if (b >= tile.blocks) break;
        Places of_lane{0, 0xffffffffu};
        if (fours) {
#pragma unroll 1
          for (int i = lane_id() * 4; i < a.block; i += WARP * 4) {
            fold_four(load16(drawn.key + begin + i), eligible_four(a, tile, begin + i), of_lane);
          }
        } else {
#pragma unroll 1
          for (int i = lane_id(); i < a.block; i += WARP) fold(a, tile, drawn, begin + i, of_lane);
        }
        const Places of_block{__reduce_add_sync(ALL_LANES, of_lane.count), __reduce_min_sync(ALL_LANES, of_lane.least_key)};
        if (turn == lane_id()) places = of_block;
      }
    }
    if (mine < tile.blocks) {
      const Decision of = decide<true>(a, tile, mine, places, drawn.bound[mine], drawn.worth[mine]);
      drawn.bound[mine] = of.bound;
      drawn.worth[mine] = __float_as_uint(of.worth);
    }
  }
}

// The noise block of a token: an exact quotient, since half a token is more than the division's error.
__device__ __forceinline__ int block_of(const BlockNoiseArgs& a, int token) {
  return int(__fdividef(float(token) + 0.5f, float(a.block)));
}

__device__ __forceinline__ bool is_masked(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn, int token, int block) {
  const uint32_t key = drawn.key[token], bound = drawn.bound[block];
  if (!is_eligible(a, tile, token)) return false;
  if (a.draw != NOISE_COUNTED) return key <= bound;
  uint32_t rank = 0;
  const int begin = block * a.block;
#pragma unroll 2
  for (int other = begin; other < begin + a.block; other++) {
    const uint32_t theirs = drawn.key[other];
    rank += theirs < key || (theirs == key && other < token && is_eligible(a, tile, other));
  }
  return rank < bound;
}

// Four tokens as they are written.
struct Written {
  Vec16<int32_t> id;
  Vec16<float> weight;
  uint32_t mask;

  __device__ __forceinline__ void set(int i, bool masked, int32_t mask_id, float worth) {
    id.at[i] = masked ? mask_id : id.at[i];
    weight.at[i] = masked ? worth : 0.0f;
    mask |= masked ? 1u << 8 * i : 0u;
  }
  // Of one noise block whose draw is not counted.
  __device__ __forceinline__ void compare(const Vec16<uint32_t>& key, uint32_t eligible, const Decision& of, int32_t mask_id) {
#pragma unroll
    for (int i = 0; i < 4; i++) set(i, key.at[i] <= of.bound && is_marked(eligible, i), mask_id, of.worth);
  }
  __device__ __forceinline__ void store(const BlockNoiseArgs& a, const Tile& tile, int token) const {
    store16(a.noised + tile.at + token, id);
    store16(a.weight + tile.at + token, weight);
    *reinterpret_cast<uint32_t*>(a.mask + tile.at + token) = mask;
  }
};

// The tokens of a tile that are read and written four at a time.
__device__ __forceinline__ int tokens_in_fours(const BlockNoiseArgs& a, const Tile& tile) {
  const unsigned long long addresses = reinterpret_cast<unsigned long long>(a.ids + tile.at) |
                                       reinterpret_cast<unsigned long long>(a.noised + tile.at) |
                                       reinterpret_cast<unsigned long long>(a.weight + tile.at);
  const bool whole = addresses % 16 == 0 && reinterpret_cast<unsigned long long>(a.mask + tile.at) % 4 == 0;
  return whole ? tile.tokens / 4 * 4 : 0;
}

// Step 3. Tokens whose rank is asked for are taken one by one: that takes longer than their loads.
__device__ __forceinline__ void write_tokens(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const bool fours = in_fours(a);
  const int end = a.draw == NOISE_COUNTED ? 0 : tokens_in_fours(a, tile);
  for (int token = threadIdx.x * 4; token < end; token += THREADS * 4) {
    Written four{load16(a.ids + tile.at + token), {}, 0};
    if (fours) {
      const int block = block_of(a, token);
      four.compare(load16(drawn.key + token), eligible_four(a, tile, token),
                   Decision{drawn.bound[block], __uint_as_float(drawn.worth[block])}, a.mask_id);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int block = block_of(a, token + i);
        const bool masked = drawn.key[token + i] <= drawn.bound[block] && is_eligible(a, tile, token + i);
        four.set(i, masked, a.mask_id, __uint_as_float(drawn.worth[block]));
      }
    }
    four.store(a, tile, token);
  }
  for (int token = end + threadIdx.x; token < tile.tokens; token += THREADS) {
    const int block = block_of(a, token);
    const bool masked = is_masked(a, tile, drawn, token, block);
    a.noised[tile.at + token] = masked ? a.mask_id : a.ids[tile.at + token];
    a.weight[tile.at + token] = masked ? __uint_as_float(drawn.worth[block]) : 0.0f;
    a.mask[tile.at + token] = uint8_t(masked);
  }
}

// All steps for aligned blocks of four that are not counted: a thread draws the keys of a block, decides and writes it. Only
// levels, four to a call, pass through shared memory.
__device__ __forceinline__ void noise_fours(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const int first = threadIdx.x;
  Vec16<int32_t> next{};
  if (first < tile.blocks) next = load16(a.ids + tile.at + first * 4);  // under way while words are drawn
  draw<false>(a, tile, drawn);
  __syncthreads();
  for (int b = first; b < tile.blocks; b += THREADS) {
    Written four{next, {}, 0};
    if (b + THREADS < tile.blocks) next = load16(a.ids + tile.at + (b + THREADS) * 4);
    const uint32_t eligible = eligible_four(a, tile, b * 4);
    const Random4 words = philox(a.seed, STREAM_NOISE, uint64_t(tile.number), tile.token / 4 + b);
    const Vec16<uint32_t> key = marked(words, eligible);
    Places places{0, 0xffffffffu};
    fold_four(key, eligible, places);
    four.compare(key, eligible, decide<false>(a, tile, b, places, drawn.bound[b], 0), a.mask_id);
    four.store(a, tile, b * 4);
  }
}

// What all threads of a CUDA block would divide for: one of them does. No blocks: there is no such tile.
__device__ __forceinline__ void plan_tile(const BlockNoiseArgs& a, int64_t i, Tile& tile) {
  const uint32_t blocks = uint32_t(a.length) / uint32_t(a.block), tiles = (blocks + uint32_t(a.tile) - 1) / uint32_t(a.tile);
  tile.blocks = 0;
  if (i >= a.rows * int64_t(tiles)) return;
  const int64_t row = i / int64_t(tiles);
  tile.block = uint32_t(i - row * tiles) * uint32_t(a.tile);
  tile.token = tile.block * uint32_t(a.block);
  tile.number = a.sequences[row];
  tile.at = row * a.length + tile.token;
  tile.rate_at = row * blocks + tile.block;
  tile.blocks_of_row = blocks;
  tile.blocks = int(blocks - tile.block < uint32_t(a.tile) ? blocks - tile.block : uint32_t(a.tile));
  tile.tokens = tile.blocks * a.block;
}

KERNEL_RESIDENT(block_noise, BlockNoiseArgs, THREADS, 4) {
  uint32_t* shared = dynamic_shared<uint32_t>();
  const Drawn drawn = {shared, shared + a.tile * a.block, shared + a.tile * a.block + a.tile};
  Tile& planned = block_shared<Tile>();
  for (int64_t i = blockIdx.x;; i += gridDim.x) {
    if (threadIdx.x == 0) plan_tile(a, i, planned);
    __syncthreads();  // and nobody reads what the tile before has left
    const Tile tile = planned;  // in registers: the next plan may follow the next barrier
    if (tile.blocks == 0) break;
    if (a.block == 4 && in_fours(a) && a.draw != NOISE_COUNTED && tokens_in_fours(a, tile) > 0) {
      noise_fours(a, tile, drawn);
    } else {
      draw<true>(a, tile, drawn);
      __syncthreads();
      decide_blocks(a, tile, drawn);
      __syncthreads();
      write_tokens(a, tile, drawn);
    }
  }
}
