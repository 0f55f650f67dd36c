// Random use of the prefix index under sanitizers, checked against a map from block to the tokens
// it must hold. Run with an optional seed and number of operations.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>

#include "helium/check.h"
#include "helium/prefix_index.h"

using namespace helium;

namespace {

struct Request {
  std::string name;
  std::vector<Token> tokens;
  std::vector<BlockId> blocks;
  std::vector<TagSegment> tags;
};

class Driver {
 public:
  Driver(std::uint32_t seed, Options options)
      : random_(seed), options_(options), index_(options), holds_(options.num_blocks), slots_(options.num_slots) {}

  void run(int num_operations) {
    for (int i = 0; i < num_operations; ++i) {
      switch (pick(13)) {
        case 0: case 1: case 2: case 3: admit(); break;
        case 4: case 5: case 6: finish(); break;
        case 7: index_.advance(now_ += pick(3)); break;
        case 8: tag_uses(); break;
        case 9: lease(); break;
        case 10: if (pick(8) == 0) index_.forget(pick(options_.num_blocks)); break;
        case 11: if (pick(40) == 0) reset(); break;
        case 12: prefetch(); break;
      }
      if (pick(8) == 0) index_.check_integrity();
    }
    while (!running_.empty()) finish();
    index_.check_integrity();
    HELIUM_CHECK(index_.num_free() == options_.num_blocks, "blocks leaked");
  }

  int num_hits = 0, num_partial = 0, num_evictions = 0, num_loads = 0, num_prefetches = 0;

 private:
  int pick(int bound) { return int(random_() % std::uint32_t(bound)); }

  std::vector<Token> prompt() {
    std::vector<Token> tokens;
    if (!texts_.empty() && pick(4) > 0) {
      tokens = texts_[pick(int(texts_.size()))];
      tokens.resize(pick(int(tokens.size()) + 1));
    }
    for (int n = 1 + pick(3 * options_.block_size); n > 0; --n) tokens.push_back(pick(3));
    if (texts_.size() < 50) texts_.push_back(tokens);
    else texts_[pick(50)] = tokens;
    return tokens;
  }

  void admit() {
    Request request;
    request.name = pick(4) == 0 ? "salt" : "";
    request.tokens = prompt();
    const auto size = std::int32_t(request.tokens.size());
    const std::int32_t bs = options_.block_size;
    const int plan = pick(4) - 1;
    if (plan >= 0) {
      request.tags = {{size / 2, index_.tag(plan, 1, kNone)}, {size, index_.tag(plan, 2, pick(3))}};
    }
    const TokenSpan span{request.tokens.data(), size};
    const Match match = index_.match(request.name, span, size - 1, {}, plan, size / 2);
    for (std::size_t i = 0; i < match.blocks.size(); ++i) {
      const std::int32_t want = std::min<std::int32_t>(match.num_tokens - std::int32_t(i) * bs, bs);
      expect(match.blocks[i], request.name, request.tokens, std::int32_t(i) * bs, want);
    }
    for (std::size_t i = 0; i < match.slots.size(); ++i) {
      const std::int32_t first = match.num_tokens + std::int32_t(i) * bs;
      const std::int32_t end = match.num_tokens + match.num_host_tokens;
      expect_in(slots_[match.slots[i]], request.name, request.tokens, first,
                std::min(end - first, bs));
    }
    num_hits += match.num_tokens > 0;
    num_partial += match.num_tokens % bs > 0;
    std::vector<BlockId> whole = match.blocks;
    whole.resize(match.num_tokens / bs);
    const std::int32_t needed = (size + bs - 1) / bs - std::int32_t(whole.size());
    std::int32_t num_taken = 0;
    for (const BlockId block : whole) num_taken += index_.place(block) != Place::kHeld;
    if (needed + num_taken > index_.num_free()) return;
    std::vector<BlockId> touched;
    for (const BlockId block : whole) {
      if (index_.place(block) != Place::kHeld) touched.push_back(block);
      ++references_[block];
    }
    index_.acquire(touched);
    index_.claim(whole, request.tags);
    index_.lock_slots(match.slots);
    const std::vector<BlockId> fresh = index_.evict(needed);
    copy_moves();
    num_evictions += needed;
    request.blocks = whole;
    for (const BlockId block : fresh) {
      const std::int32_t first = std::int32_t(request.blocks.size()) * bs;
      references_[block] = 1;
      holds_[block] = {request.name, std::vector<Token>(request.tokens.begin(),
                                                        request.tokens.begin() +
                                                            std::min(first + bs, size))};
      request.blocks.push_back(block);
    }
    const std::int32_t num_full = size / bs;
    const std::int32_t first = std::int32_t(whole.size());
    std::vector<BlockId> full(request.blocks.begin() + first, request.blocks.begin() + num_full);
    index_.insert(first > 0 ? request.blocks[first - 1] : kNone, request.name, span, first, full,
                  {}, request.tags);
    const auto loaded = std::vector<BlockId>(fresh.begin(), fresh.begin() + match.slots.size());
    index_.load(loaded, match.slots);
    num_loads += int(loaded.size());
    copy_moves();
    running_.push_back(std::move(request));
  }

  void finish() {
    if (running_.empty()) return;
    const int which = pick(int(running_.size()));
    Request request = std::move(running_[which]);
    running_.erase(running_.begin() + which);
    const auto size = std::int32_t(request.tokens.size());
    const std::int32_t bs = options_.block_size, num_full = size / bs;
    if (size % bs > 0) {
      const BlockId parent = num_full > 0 ? request.blocks[num_full - 1] : kNone;
      const TokenSpan all{request.tokens.data(), size};
      if (!index_.covers(parent, request.name, all.sub(num_full * bs, size % bs))) {
        for (auto& segment : request.tags) {
          if (!index_.tag_at(segment.tag).is_open) segment.tag = kNone;
        }
        index_.insert(parent, request.name, all, num_full, {request.blocks.back()}, {},
                      request.tags);
      }
    }
    std::vector<BlockId> freed;
    for (auto block = request.blocks.rbegin(); block != request.blocks.rend(); ++block) {
      if (--references_[*block] == 0) freed.push_back(*block);
    }
    index_.release(freed);
  }

  // Does what the index asks for, in the order it must be done in.
  void copy_moves() {
    const Moves moves = index_.take_moves();
    for (const Move& move : moves.stores) slots_[move.slot] = holds_[move.block];
    for (const Move& move : moves.loads) {
      // The block already says what it must hold in the end; the slot must have the beginning.
      const auto& [name, tokens] = holds_[move.block];
      HELIUM_CHECK(slots_[move.slot].first == name, "slot ", move.slot, " is another tenant's");
    }
    for (const Move& move : moves.prefetches) holds_[move.block] = slots_[move.slot];
  }

  void prefetch() {
    if (!texts_.empty()) {
      const std::vector<Token>& text = texts_[pick(int(texts_.size()))];
      const TokenSpan span{text.data(), std::int32_t(text.size())};
      num_prefetches += index_.prefetch(pick(4) == 0 ? "salt" : "", span, 1 + pick(6), {});
    }
    copy_moves();
  }

  void tag_uses() {
    const int plan = pick(3);
    if (pick(6) == 0) {
      for (const Request& request : running_) {
        for (const TagSegment& segment : request.tags) {
          if (index_.tag_at(segment.tag).plan == plan) return;  // its requests are still running
        }
      }
      index_.close_plan(plan);
      return;
    }
    index_.set_uses(index_.tag(plan, 1 + pick(2), pick(4) - 1), pick(3), pick(100));
  }

  void lease() {
    if (pick(2) == 0) {
      index_.lease(index_.tag(pick(3), 1, kNone), 1 + pick(5));
    } else if (!running_.empty()) {
      index_.lease_blocks(running_[pick(int(running_.size()))].blocks, 1 + pick(5));
    }
  }

  void reset() {
    while (!running_.empty()) finish();
    index_.reset();
    HELIUM_CHECK(index_.num_nodes() == 0 && index_.num_indexed() == 0, "reset left something");
  }

  void expect(BlockId block, const std::string& name, const std::vector<Token>& tokens,
              std::int32_t first, std::int32_t count) {
    expect_in(holds_[block], name, tokens, first, count);
  }

  using Held = std::pair<std::string, std::vector<Token>>;
  void expect_in(const Held& copy, const std::string& name, const std::vector<Token>& tokens,
                 std::int32_t first, std::int32_t count) {
    const auto& [held_name, held] = copy;
    HELIUM_CHECK(held_name == name && std::int32_t(held.size()) >= first + count &&
                     std::equal(tokens.begin(), tokens.begin() + first + count, held.begin()),
                 "a copy was matched but holds something else");
  }

  std::mt19937 random_;
  Options options_;
  PrefixIndex index_;
  std::vector<Held> holds_, slots_;
  std::map<BlockId, int> references_;
  std::vector<Request> running_;
  std::vector<std::vector<Token>> texts_;
  double now_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint32_t seed = argc > 1 ? std::uint32_t(std::atoi(argv[1])) : 1;
  const int num_operations = argc > 2 ? std::atoi(argv[2]) : 20000;
  int hits = 0, partial = 0, evictions = 0, loads = 0, prefetches = 0;
  try {
    for (const int block_size : {1, 2, 4, 17}) {
      for (const int num_blocks : {16, 100, 1000}) {
        for (const int num_slots : {0, num_blocks / 3, 3 * num_blocks}) {
          Options options{num_blocks,     block_size,     std::max(1, block_size / 2),
                          num_blocks / 4, num_blocks / 2, num_slots};
          Driver driver(seed, options);
          driver.run(num_operations / 3);
          hits += driver.num_hits;
          partial += driver.num_partial;
          evictions += driver.num_evictions;
          loads += driver.num_loads;
          prefetches += driver.num_prefetches;
        }
      }
    }
    HELIUM_CHECK(hits > 0 && partial > 0 && evictions > 0 && loads > 0 && prefetches > 0, "the run exercised nothing");
  } catch (const CheckError& error) {
    std::fprintf(stderr, "seed %u: %s\n", seed, error.what());
    return 1;
  }
  std::printf("seed %u: %d hits, %d partial, %d blocks taken, %d loaded, %d prefetched\n", seed, hits,
              partial, evictions, loads, prefetches);
  return 0;
}
