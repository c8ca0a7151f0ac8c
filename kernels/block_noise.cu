// block_noise.cu: which tokens block diffusion masks, and what each of them weighs in the loss.
//
// Contract   args/block_noise.h. The noise of a sequence follows its number: not its place in the batch, not the launch.
//            Bits are those of src/kernels/block_noise, the CPU's: masks come from comparing Philox words, and the
//            few floating-point steps are written with intrinsics that round once and are never fused.
// Floor      an id read, an id, a mask byte and a weight written: 13 bytes a token, and 1 where `eligible` is given. At
//            1 M tokens that is 3 us of an H200's 4.3 TB/s; Philox is some 25 instructions a token, as much again.
// Algorithm  A CUDA block takes a tile of whole noise blocks of one sequence. (1) Keys: a thread draws four positions
//            with one Philox call, into shared memory. (2) Blocks: a group of lanes (as many as a block is long, up to
//            a warp) folds the keys of one block: eligible places, least key; from them the highest key that is
//            masked, or for bounded counts the count, by inverting the binomial's cumulative sum from its mode
//            outward. (3) Tokens: a comparison with that key, or the rank of the key in its block against the count;
//            sixteen bytes at a time where rows are aligned. The subset of a bounded count is uniform because keys are.
// Hazards    Ranks cost `block` comparisons a token: fine up to hundreds, slow for a block of thousands. A key of 2^32-1
//            is both the mark of an ineligible place and one that a draw may give: equality asks `eligible`.
//            Rows times length passes 2^31; tiles may outnumber a grid, so blocks loop.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/block_noise.h"

constexpr int THREADS = 256;
constexpr uint32_t STREAM_NOISE = 8;
// Philox counters of a sequence: keys from 0 (four a counter), then levels, counts, and the turns of strata.
constexpr uint32_t LEVELS = 1u << 30, COUNTS = 2u << 30, TURNS = 3u << 30;
constexpr float SMALLEST = 1.0f / 4294967296.0f;

// The tile of a noise block's sequence that a CUDA block works on.
struct Tile {
  int64_t row;       // of the batch
  int64_t number;    // of the sequence
  int64_t block;     // the first noise block, counted in the sequence
  int64_t token;     // the first token, counted in the sequence
  int blocks, tokens;
};

// What step 2 leaves for step 3, in dynamic shared memory: keys [tokens], bounds and weights [blocks].
struct Drawn {
  uint32_t* key;
  uint32_t* bound;  // the highest masked key, or the count
  float* worth;
};

__device__ __forceinline__ uint32_t word_of(const BlockNoiseArgs& a, const Tile& tile, uint32_t base, int64_t index) {
  return philox(a.seed, STREAM_NOISE, uint64_t(tile.number), base + uint32_t(index / 4)).word[index % 4];
}

__device__ __forceinline__ bool is_eligible(const BlockNoiseArgs& a, const Tile& tile, int token) {
  return !a.eligible || a.eligible[tile.row * a.length + tile.token + token] != 0;
}

__device__ __forceinline__ void draw_keys(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const int64_t first = tile.token / 4, last = (tile.token + tile.tokens - 1) / 4;
  for (int64_t quad = first + threadIdx.x; quad <= last; quad += THREADS) {
    const Random4 words = philox(a.seed, STREAM_NOISE, uint64_t(tile.number), uint32_t(quad));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = int(quad * 4 + i - tile.token);
      if (token >= 0 && token < tile.tokens) drawn.key[token] = is_eligible(a, tile, token) ? words.word[i] : 0xffffffffu;
    }
  }
}

// The rate of a noise block, counted in the sequence.
__device__ __forceinline__ float draw_rate(const BlockNoiseArgs& a, const Tile& tile, int64_t block) {
  const int64_t blocks = a.length / a.block;
  if (a.given_rate) return a.given_rate[tile.row * blocks + block];
  uint32_t word = word_of(a, tile, LEVELS, block);
  if (a.strata_bits) {
    const uint64_t global = uint64_t(tile.number) * uint64_t(blocks) + uint64_t(block);
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

// Step 2 for one noise block, by the first lane of its group.
__device__ void decide(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn, int b, uint32_t places, uint32_t least_key) {
  const int64_t block = tile.block + b, at = tile.row * (a.length / a.block) + block;
  float rate = 0.0f, worth = 0.0f;
  uint32_t bound = 0;
  if (places > 0) {
    rate = draw_rate(a, tile, block);
    worth = a.weighting == NOISE_WEIGHT_ONE ? 1.0f : __fdiv_rn(1.0f, rate);
    if (a.draw == NOISE_COUNTED) {
      Binomial counts = binomial(places, rate, a.least_count, a.most_count);
      counts.walk(INFINITY_F);  // for its sums
      if (a.weighting == NOISE_WEIGHT_UNBIASED) {
        const double mean = __ddiv_rn(counts.moment, counts.total);
        worth = __double2float_rn(__ddiv_rn(double(places), mean));
      }
      const double unit = double(word_of(a, tile, COUNTS, block)) * (1.0 / 4294967296.0);  // exact
      bound = counts.walk(__dmul_rn(unit, counts.total));
    } else {
      // The product is exact and at least 1.
      const uint64_t keys = uint64_t(__fmul_rn(rate, 4294967296.0f));
      bound = uint32_t((keys > 0 ? keys : 1) - 1);
      if (a.draw == NOISE_FORCED) {
        bound = bound > least_key ? bound : least_key;
        if (a.weighting == NOISE_WEIGHT_UNBIASED) worth = forced_weight(rate, places);
      }
    }
    if (a.given_weight) worth = a.given_weight[at];
  }
  a.rate[at] = rate;
  drawn.bound[b] = bound;
  drawn.worth[b] = worth;
}

__device__ __forceinline__ void decide_blocks(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  int lanes = 1;
  while (lanes < a.block && lanes < WARP) lanes *= 2;
  const int groups = WARP / lanes, member = lane_id() % lanes;
  // The bound of the loop is the same for a warp: all of its lanes exchange.
  for (int first = warp_id() * groups; first < tile.blocks; first += THREADS / WARP * groups) {
    const int b = first + lane_id() / lanes;
    uint32_t places = 0, least_key = 0xffffffffu;
    if (b < tile.blocks) {
      for (int i = member; i < a.block; i += lanes) {
        const uint32_t key = drawn.key[b * a.block + i];
        least_key = key < least_key ? key : least_key;
        places += is_eligible(a, tile, b * a.block + i);
      }
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      const uint32_t other = shuffle_xor(least_key, mask);
      least_key = other < least_key ? other : least_key;
      places += shuffle_xor(places, mask);
    }
    if (member == 0 && b < tile.blocks) decide(a, tile, drawn, b, places, least_key);
  }
}

__device__ __forceinline__ bool is_masked(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn, int token) {
  const uint32_t key = drawn.key[token];
  const int block = token / a.block;
  const uint32_t bound = drawn.bound[block];
  if (!is_eligible(a, tile, token)) return false;
  if (a.draw != NOISE_COUNTED) return key <= bound;
  uint32_t rank = 0;
  const int begin = block * a.block;
  for (int other = begin; other < begin + a.block; other++) {
    const uint32_t theirs = drawn.key[other];
    rank += theirs < key || (theirs == key && other < token && is_eligible(a, tile, other));
  }
  return rank < bound;
}

__device__ __forceinline__ void write_tokens(const BlockNoiseArgs& a, const Tile& tile, const Drawn& drawn) {
  const int64_t at = tile.row * a.length + tile.token;
  const unsigned long long addresses = reinterpret_cast<unsigned long long>(a.ids + at) |
                                       reinterpret_cast<unsigned long long>(a.noised + at) |
                                       reinterpret_cast<unsigned long long>(a.weight + at);
  const bool whole = addresses % 16 == 0 && reinterpret_cast<unsigned long long>(a.mask + at) % 4 == 0;
  const int fours = whole ? tile.tokens / 4 : 0;
  for (int four = threadIdx.x; four < fours; four += THREADS) {
    Vec16<int32_t> id = load16(a.ids + at + four * 4);
    Vec16<float> weight;
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = four * 4 + i;
      const bool masked = is_masked(a, tile, drawn, token);
      id.at[i] = masked ? a.mask_id : id.at[i];
      weight.at[i] = masked ? drawn.worth[token / a.block] : 0.0f;
      mask |= uint32_t(masked) << (8 * i);
    }
    store16(a.noised + at + four * 4, id);
    store16(a.weight + at + four * 4, weight);
    *reinterpret_cast<uint32_t*>(a.mask + at + four * 4) = mask;
  }
  for (int token = fours * 4 + threadIdx.x; token < tile.tokens; token += THREADS) {
    const bool masked = is_masked(a, tile, drawn, token);
    a.noised[at + token] = masked ? a.mask_id : a.ids[at + token];
    a.weight[at + token] = masked ? drawn.worth[token / a.block] : 0.0f;
    a.mask[at + token] = uint8_t(masked);
  }
}

KERNEL(block_noise, BlockNoiseArgs, THREADS) {
  const int64_t blocks = a.length / a.block, tiles = (blocks + a.tile - 1) / a.tile;
  uint32_t* shared = dynamic_shared<uint32_t>();
  const Drawn drawn = {shared, shared + a.tile * a.block, reinterpret_cast<float*>(shared + a.tile * a.block + a.tile)};
  for (int64_t i = blockIdx.x; i < a.rows * tiles; i += gridDim.x) {
    Tile tile;
    tile.row = i / tiles;
    tile.number = a.sequences[tile.row];
    tile.block = i % tiles * a.tile;
    tile.token = tile.block * a.block;
    tile.blocks = int(blocks - tile.block < a.tile ? blocks - tile.block : a.tile);
    tile.tokens = tile.blocks * a.block;
    draw_keys(a, tile, drawn);
    __syncthreads();
    decide_blocks(a, tile, drawn);
    __syncthreads();
    write_tokens(a, tile, drawn);
    __syncthreads();  // the next tile overwrites the keys
  }
}
