// order.cpp: the four orders over a bit set of ready threads, and over the blocks of a grid. See order.h.
#include "order.h"

#include <numeric>

namespace gradstone_host {
namespace {

// splitmix64: a counter and a finisher, good enough to shuffle with and never stuck at zero.
uint64_t random_word(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

}  // namespace

void ReadyThreads::reset(Order order, unsigned threads, uint64_t block) {
  order_ = order;
  threads_ = threads;
  used_words_ = (threads + 63) / 64;
  latest_ = threads - 1;  // round robin begins after it, at 0
  random_ = order.seed;
  random_ = random_word(random_) ^ block;  // another stream for each block
  for (uint64_t& word : words_) word = 0;
}

int ReadyThreads::lowest_from(unsigned thread) const {
  for (unsigned i = thread / 64; i < used_words_; ++i) {
    uint64_t word = words_[i];
    if (i == thread / 64) word &= ~uint64_t(0) << (thread % 64);
    if (word) return int(i * 64) + __builtin_ctzll(word);
  }
  return -1;
}

int ReadyThreads::highest() const {
  for (unsigned i = used_words_; i-- > 0;) {
    if (words_[i]) return int(i * 64) + 63 - __builtin_clzll(words_[i]);
  }
  return -1;
}

int ReadyThreads::take() {
  int next = -1;
  switch (order_.kind) {
    case Order::Kind::LowestFirst:
      next = lowest_from(0);
      break;
    case Order::Kind::HighestFirst:
      next = highest();
      break;
    case Order::Kind::RoundRobin:
      if (latest_ + 1 < threads_) next = lowest_from(latest_ + 1);
      if (next < 0) next = lowest_from(0);
      break;
    case Order::Kind::Random:
      next = lowest_from(unsigned(random_word(random_) % threads_));
      if (next < 0) next = lowest_from(0);
      break;
  }
  if (next >= 0) {
    words_[next / 64] &= ~(uint64_t(1) << (next % 64));
    latest_ = unsigned(next);
  }
  return next;
}

BlockOrder::BlockOrder(Order order, uint64_t blocks) : kind_(order.kind), blocks_(blocks) {
  if (kind_ != Order::Kind::Random) return;
  // position -> start + step * position (mod blocks) with a step prime to `blocks` visits every block once, without
  // a table of up to 2^63 entries.
  uint64_t state = order.seed;
  start_ = random_word(state) % blocks;
  step_ = random_word(state) % blocks;
  while (std::gcd(step_, blocks) != 1) ++step_;
}

uint64_t BlockOrder::block(uint64_t position) const {
  switch (kind_) {
    case Order::Kind::HighestFirst:
      return blocks_ - 1 - position;
    case Order::Kind::Random: {
      __extension__ typedef unsigned __int128 wide;
      return uint64_t((wide(step_) * position + start_) % blocks_);
    }
    default:
      return position;
  }
}

}  // namespace gradstone_host
