// token_decode.cu: text ids to bytes with the place of every token; image ids to codebook vectors, and back.
//
// Contract   args/token_decode.h. Bytes are those of src/kernels/token_decode, and so of Hugging Face `tokenizers` before
//            its lossy UTF-8 step, which is the reader's. Vectors are the CPU's to the bit: sums in the order of the
//            channels, each step rounded once.
// Floor      Text: 4 bytes of id, 16 of table (which stays in the second-level cache), 12 of lengths and places, the
//            bytes themselves (4.5 a token) once: some 25 bytes a token, 6 us a million at 4.3 TB/s. Vectors: one
//            write of them.
// Algorithm  Text, three launches. (1) Lengths, a thread a token. A token differs at the beginning of its text: it looks
//            back over tokens that are left out, so it nearly always stops at its neighbour. A run of single bytes is
//            checked by the thread of its first byte, which writes the lengths of all: 1 each, or 3 (U+FFFD) when they
//            are no UTF-8. (2) What is cut from the beginning, a thread a text. (3) The places: sums of tiles, their
//            running sum in one block, then each tile again. (4) Copies, a block a tile: bytes are gathered in shared
//            memory and written sixteen at a time; a tile of more bytes than fit writes them directly.
//            Vectors: a thread a position, so that neighbours write neighbouring places of each channel. Nearest: a warp
//            a vector, a lane every 32nd code, then the least of (distance, id).
// Hazards    A text that is one run of single bytes is checked by one thread. Places pass 2^31: 64 bits. A token whose
//            place passes `capacity` is not written, nor is any byte past it.
// Measured   not yet run on a GPU.
#include "prim.cuh"
#include "args/token_decode.h"

constexpr int THREADS = 256;
constexpr uint32_t LENGTH = (1u << DECODE_LENGTH_BITS) - 1u;

// ---- entries ----

struct Entry {
  uint8_t byte[16];
  __device__ __forceinline__ uint32_t tag() const { return byte[15]; }
  __device__ __forceinline__ uint32_t word(int at) const {
    return uint32_t(byte[at]) | uint32_t(byte[at + 1]) << 8 | uint32_t(byte[at + 2]) << 16 | uint32_t(byte[at + 3]) << 24;
  }
  __device__ __forceinline__ uint32_t length() const { return tag() & DECODE_LONG ? word(4) : tag() & 15u; }
};

__device__ __forceinline__ uint32_t tag_of(const TokenDecodeArgs& a, int64_t token) {
  const int32_t id = a.ids[token];
  return id < 0 || id >= a.vocab ? uint32_t(DECODE_ABSENT) : uint32_t(a.entries[int64_t(id) * 16 + 15]);
}

__device__ __forceinline__ bool is_left_out(const TokenDecodeArgs& a, uint32_t tag) {
  return tag == DECODE_ABSENT || (a.skip_special && (tag & DECODE_SPECIAL) != 0u);
}

__device__ __forceinline__ uint8_t byte_of(const TokenDecodeArgs& a, int64_t token) {
  return a.entries[int64_t(a.ids[token]) * 16];
}

// The text of a token: the last that begins at or before it.
__device__ __forceinline__ int64_t text_of(const TokenDecodeArgs& a, int64_t token) {
  int64_t low = 0, high = a.texts;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (a.segments[middle] <= token) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The nearest token before that is not left out; `begin - 1` when there is none.
__device__ __forceinline__ int64_t before(const TokenDecodeArgs& a, int64_t token, int64_t begin) {
  int64_t at = token - 1;
  while (at >= begin && is_left_out(a, tag_of(a, at))) at--;
  return at;
}

// The entry of a token that is not left out, as it stands in its text.
__device__ __forceinline__ Entry entry_of(const TokenDecodeArgs& a, int64_t token, int64_t begin) {
  const bool is_first = a.first && before(a, token, begin) < begin;
  const Vec16<uint8_t> bytes = load16((is_first ? a.first : a.entries) + int64_t(a.ids[token]) * 16);
  Entry entry;
#pragma unroll
  for (int i = 0; i < 16; i++) entry.byte[i] = bytes.at[i];
  return entry;
}

// ---- UTF-8, a byte at a time ----

// What the next byte must be. Overlong forms, surrogates and what is above U+10FFFF are no UTF-8: they show in the
// range of the second byte.
struct Utf8 {
  uint32_t left = 0;  // continuation bytes to come
  uint32_t low = 0x80, high = 0xBF;

  __device__ __forceinline__ bool take(uint32_t byte) {
    if (left > 0) {
      const bool fits = byte >= low && byte <= high;
      left--;
      low = 0x80, high = 0xBF;
      return fits;
    }
    if (byte < 0x80) return true;
    if (byte < 0xC2 || byte > 0xF4) return false;
    left = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
    low = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    high = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    return true;
  }
};

// The lengths of a run of single bytes that begins with `token`.
__device__ __forceinline__ void measure_run(const TokenDecodeArgs& a, int64_t token, int64_t end) {
  Utf8 utf8;
  bool valid = true;
  int64_t last = token;
  for (int64_t at = token; at < end; at++) {
    const uint32_t tag = tag_of(a, at);
    if (is_left_out(a, tag)) continue;
    if (!(tag & DECODE_FALLBACK)) break;
    valid = valid && utf8.take(byte_of(a, at));
    last = at;
  }
  valid = valid && utf8.left == 0;
  for (int64_t at = token; at <= last; at++) {
    if (!is_left_out(a, tag_of(a, at))) a.lengths[at] = valid ? 1u : 3u;
  }
}

KERNEL(decode_lengths, TokenDecodeArgs, THREADS) {
  for (int64_t token = thread_in_grid(); token < a.tokens; token += threads_in_grid()) {
    const int32_t id = a.ids[token];
    if (id < 0 || id >= a.vocab) raise_status(a.status, STATUS_BAD_INDEX);
    const uint32_t tag = tag_of(a, token);
    if (is_left_out(a, tag)) {
      a.lengths[token] = 0;
      continue;
    }
    const bool runs = (tag & DECODE_FALLBACK) != 0u;
    if (!runs && !a.first) {
      a.lengths[token] = entry_of(a, token, 0).length();
      continue;
    }
    const int64_t text = text_of(a, token), begin = a.segments[text];
    if (!runs) {
      a.lengths[token] = entry_of(a, token, begin).length();
      continue;
    }
    const int64_t neighbour = before(a, token, begin);
    if (neighbour < begin || !(tag_of(a, neighbour) & DECODE_FALLBACK)) measure_run(a, token, a.segments[text + 1]);
  }
}

// The bytes of a token that is not left out, wherever they are.
struct Source {
  const TokenDecodeArgs& a;
  Entry entry;
  bool replaced;

  __device__ __forceinline__ uint8_t at(uint32_t i) const {
    if (replaced) return i == 0 ? 0xEF : i == 1 ? 0xBF : 0xBD;
    return entry.tag() & DECODE_LONG ? a.long_tokens[entry.word(0) + i] : entry.byte[i & 15];
  }
};

__device__ __forceinline__ Source source_of(const TokenDecodeArgs& a, int64_t token, int64_t begin, uint32_t length) {
  Source source = {a, entry_of(a, token, begin), false};
  source.replaced = (source.entry.tag() & DECODE_FALLBACK) && length == 3;
  return source;
}

KERNEL(decode_strip, TokenDecodeArgs, THREADS) {
  for (int64_t text = thread_in_grid(); text < a.texts; text += threads_in_grid()) {
    const int64_t begin = a.segments[text], end = a.segments[text + 1];
    uint32_t left = a.strip_count;
    for (int64_t token = begin; token < end && left > 0; token++) {
      if (is_left_out(a, tag_of(a, token))) continue;
      const uint32_t length = a.lengths[token];
      const Source source = source_of(a, token, begin, length);
      uint32_t cut = 0;
      while (cut < length && left > 0 && source.at(cut) == a.strip) cut++, left--;
      if (cut < length) left = 0;
      a.lengths[token] = (length - cut) | cut << DECODE_LENGTH_BITS;
    }
  }
}

// ---- places ----

// The sum of `value` over the threads before, and over all of them.
__device__ __forceinline__ int64_t exclusive_sum(int64_t value, int64_t* total) {
  struct Sums {
    int64_t warp[THREADS / WARP];
  };
  Sums& sums = block_shared<Sums>();
  int64_t inclusive = value;
  for (int step = 1; step < WARP; step *= 2) {
    const long long other = __shfl_up_sync(ALL_LANES, (long long)inclusive, step);
    if (lane_id() >= step) inclusive += other;
  }
  __syncthreads();  // readers of an earlier sum are done
  if (lane_id() == WARP - 1) sums.warp[warp_id()] = inclusive;
  __syncthreads();
  int64_t before = 0, all = 0;
  for (int warp = 0; warp < THREADS / WARP; warp++) {
    if (warp < warp_id()) before += sums.warp[warp];
    all += sums.warp[warp];
  }
  *total = all;
  return before + inclusive - value;
}

constexpr int PER_THREAD = DECODE_TILE / THREADS;

__device__ __forceinline__ int64_t length_at(const TokenDecodeArgs& a, int64_t token) {
  return token < a.tokens ? int64_t(a.lengths[token] & LENGTH) : 0;
}

KERNEL(decode_tile_sums, TokenDecodeArgs, THREADS) {
  const int64_t tiles = (a.tokens + DECODE_TILE - 1) / DECODE_TILE;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int64_t sum = 0, total;
    for (int i = 0; i < PER_THREAD; i++) sum += length_at(a, tile * DECODE_TILE + i * THREADS + threadIdx.x);
    exclusive_sum(sum, &total);
    if (threadIdx.x == 0) a.sums[tile] = total;
  }
}

// One block: sums[i] becomes the sum before tile i, sums[tiles] and starts[tokens] that of all.
KERNEL(decode_scan_tiles, TokenDecodeArgs, THREADS) {
  const int64_t tiles = (a.tokens + DECODE_TILE - 1) / DECODE_TILE;
  int64_t carried = 0;
  for (int64_t first = 0; first < tiles; first += THREADS) {
    const int64_t tile = first + threadIdx.x;
    int64_t total;
    const int64_t sum = exclusive_sum(tile < tiles ? a.sums[tile] : 0, &total);
    if (tile < tiles) a.sums[tile] = carried + sum;
    carried += total;
  }
  if (threadIdx.x == 0) {
    a.sums[tiles] = carried;
    a.starts[a.tokens] = carried;
  }
}

KERNEL(decode_starts, TokenDecodeArgs, THREADS) {
  const int64_t tiles = (a.tokens + DECODE_TILE - 1) / DECODE_TILE;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * DECODE_TILE + int64_t(threadIdx.x) * PER_THREAD;
    int64_t sum = 0, total;
    for (int i = 0; i < PER_THREAD; i++) sum += length_at(a, first + i);
    int64_t at = a.sums[tile] + exclusive_sum(sum, &total);
    for (int i = 0; i < PER_THREAD && first + i < a.tokens; i++) {
      a.starts[first + i] = at;
      at += length_at(a, first + i);
    }
  }
}

KERNEL(decode_offsets, TokenDecodeArgs, THREADS) {
  for (int64_t text = thread_in_grid(); text <= a.texts; text += threads_in_grid()) a.offsets[text] = a.starts[a.segments[text]];
}

// ---- copies ----

constexpr int STAGE = 16 * 1024;

struct __align__(16) Stage {
  uint8_t bytes[STAGE];
};

// Writes the bytes of a token that lie below `limit`, counted from `to`.
__device__ __forceinline__ void put(const TokenDecodeArgs& a, int64_t token, uint8_t* to, int64_t limit) {
  const uint32_t word = a.lengths[token], length = word & LENGTH, cut = word >> DECODE_LENGTH_BITS;
  if (length == 0) return;
  const int64_t begin = a.first ? a.segments[text_of(a, token)] : 0;
  const Source source = source_of(a, token, begin, length);
  for (uint32_t i = 0; i < length && int64_t(i) < limit; i++) to[i] = source.at(cut + i);
}

KERNEL(decode_copy, TokenDecodeArgs, THREADS) {
  Stage& stage = block_shared<Stage>();
  const int64_t tiles = (a.tokens + DECODE_TILE - 1) / DECODE_TILE;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * DECODE_TILE, end = first + DECODE_TILE < a.tokens ? first + DECODE_TILE : a.tokens;
    const int64_t from = a.starts[first], last = a.starts[end];
    const int64_t to = last < a.capacity ? last : a.capacity;
    if (to <= from) continue;  // the same for all threads
    // The stage begins as far past a multiple of 16 as the output does.
    const int shift = int(reinterpret_cast<unsigned long long>(a.bytes + from) & 15u);
    if (shift + (last - from) > STAGE) {
      for (int64_t token = first + threadIdx.x; token < end; token += THREADS) {
        put(a, token, a.bytes + a.starts[token], to - a.starts[token]);
      }
      continue;
    }
    for (int64_t token = first + threadIdx.x; token < end; token += THREADS) {
      put(a, token, stage.bytes + shift + (a.starts[token] - from), last - a.starts[token]);
    }
    __syncthreads();
    uint8_t* out = a.bytes + from - shift;
    const int total = int(shift + (to - from));
    for (int at = threadIdx.x * 16; at < total; at += THREADS * 16) {
      if (at >= shift && at + 16 <= total) {
        store16(out + at, load16(stage.bytes + at));
      } else {
        for (int i = at < shift ? shift : at; i < at + 16 && i < total; i++) out[i] = stage.bytes[i];
      }
    }
    __syncthreads();  // the next tile overwrites the stage
  }
}

// ---- vectors of images ----

// max(|x|, 1e-12) of `channels` values that lie `stride` apart.
__device__ __forceinline__ float length_of(const float* x, int64_t channels, int64_t stride) {
  float squares = 0.0f;
  for (int64_t c = 0; c < channels; c++) {
    const float value = x[c * stride];
    squares = __fadd_rn(squares, __fmul_rn(value, value));
  }
  const float length = __fsqrt_rn(squares);
  return length < 1e-12f ? 1e-12f : length;
}

KERNEL(vq_lookup, VqLookupArgs, THREADS) {
  const int64_t vectors = a.images * a.positions;
  for (int64_t i = thread_in_grid(); i < vectors; i += threads_in_grid()) {
    const int32_t id = a.ids[i];
    const bool known = id >= 0 && id < a.codes;
    if (!known) raise_status(a.status, STATUS_BAD_INDEX);
    const float* code = a.codebook + (known ? int64_t(id) * a.channels : 0);
    const float length = known && a.normalize ? length_of(code, a.channels, 1) : 1.0f;
    const int64_t image = i / a.positions, position = i % a.positions;
    float* out = a.out + (a.channel_last ? i * a.channels : image * a.channels * a.positions + position);
    const int64_t stride = a.channel_last ? 1 : a.positions;
    for (int64_t c = 0; c < a.channels; c++) {
      float value = 0.0f;
      if (known) value = a.normalize ? __fdiv_rn(code[c], length) : code[c];
      out[c * stride] = value;
    }
  }
}

struct Nearest {
  float distance;
  int32_t id;
};

struct Nearer {
  __device__ __forceinline__ Nearest operator()(const Nearest& a, const Nearest& b) const {
    return b.distance < a.distance || (b.distance == a.distance && b.id < a.id) ? b : a;
  }
};

KERNEL(vq_quantize, VqQuantizeArgs, THREADS) {
  const int64_t vectors = a.images * a.positions, stride = a.channel_last ? 1 : a.positions;
  for (int64_t i = int64_t(blockIdx.x) * (THREADS / WARP) + warp_id(); i < vectors; i += int64_t(gridDim.x) * (THREADS / WARP)) {
    const int64_t image = i / a.positions, position = i % a.positions;
    const float* z = a.z + (a.channel_last ? i * a.channels : image * a.channels * a.positions + position);
    const float length = a.normalize ? length_of(z, a.channels, stride) : 1.0f;
    Nearest nearest = {INFINITY_F, 0};
    for (int32_t id = lane_id(); id < a.codes; id += WARP) {
      const float* code = a.codebook + int64_t(id) * a.channels;
      const float code_length = a.normalize ? length_of(code, a.channels, 1) : 1.0f;
      float distance = 0.0f;
      for (int64_t c = 0; c < a.channels; c++) {
        const float mine = a.normalize ? __fdiv_rn(z[c * stride], length) : z[c * stride];
        const float theirs = a.normalize ? __fdiv_rn(code[c], code_length) : code[c];
        const float difference = __fsub_rn(mine, theirs);
        distance = __fadd_rn(distance, __fmul_rn(difference, difference));
      }
      if (distance < nearest.distance) nearest = Nearest{distance, id};
    }
    nearest = warp_reduce(nearest, Nearer());
    if (lane_id() == 0) a.ids[i] = nearest.id;
  }
}
