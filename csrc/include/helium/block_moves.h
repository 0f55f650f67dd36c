// The arithmetic of the block moves, shared by the CUDA kernels and by hosts that check them.
//
// A launch is a loop over items; an item is one run of one block. A program (a CUDA thread block)
// takes every num_programs-th item, and its threads share the item's bytes. Nothing here knows of
// CUDA: the host runs the same functions with its own loops over programs and threads.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HELIUM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HELIUM_HOST_DEVICE inline
#endif

namespace helium {

// Bytes that lie together in every block; one row of vllm_helium/kernels/runs.py's table.
struct BlockRun {
  int64_t offset;         // of block 0's bytes, from the start of the allocation
  int64_t block_stride;   // bytes from a block to the next one
  int64_t first_token;    // of the block, whose bytes are here
  int64_t num_tokens;     // whose bytes are here
  int64_t token_bytes;    // per token; the run holds num_tokens * token_bytes
  int64_t staged_offset;  // of the run in a staged block
};

// One row of copy_block_prefix's batch.
struct BlockCopy {
  int64_t src_block;
  int64_t dst_block;
  int64_t num_tokens;
};

// What an item moves; num_bytes is 0 where a block id lies outside the cache.
struct Span {
  const uint8_t* src;
  uint8_t* dst;
  int64_t num_bytes;
};

struct alignas(16) Bytes16 {
  uint64_t words[2];
};

// The cache's side of every move.
struct CachedBlocks {
  uint8_t* storage;      // the allocation
  const BlockRun* runs;  // [num_runs]
  int64_t num_runs;
  int64_t num_blocks;

  HELIUM_HOST_DEVICE bool holds(int64_t block) const { return block >= 0 && block < num_blocks; }

  // Block 0's place for a block outside the cache. Never a null pointer, which would hide from the
  // compiler that the memory is global.
  HELIUM_HOST_DEVICE uint8_t* at(const BlockRun& run, int64_t block) const {
    return storage + run.offset + (holds(block) ? block : 0) * run.block_stride;
  }
};

// Blocks to or from rows of a staging buffer, row i being block block_ids[i].
template <bool kToStaging>
struct StagedMove {
  CachedBlocks cache;
  const int64_t* block_ids;  // [num_ids]
  int64_t num_ids;
  uint8_t* staging;        // [num_ids, staging_stride]
  int64_t staging_stride;  // bytes from a row to the next one

  HELIUM_HOST_DEVICE int64_t num_items() const { return num_ids * cache.num_runs; }

  HELIUM_HOST_DEVICE Span span(int64_t item) const {
    const int64_t row = item / cache.num_runs;
    const BlockRun run = cache.runs[item - row * cache.num_runs];
    const int64_t block = block_ids[row];
    uint8_t* cached = cache.at(run, block);
    uint8_t* staged = staging + row * staging_stride + run.staged_offset;
    const int64_t num_bytes = cache.holds(block) ? run.num_tokens * run.token_bytes : 0;
    return kToStaging ? Span{cached, staged, num_bytes} : Span{staged, cached, num_bytes};
  }
};

// The first tokens of one block to another, for a batch of pairs.
struct PrefixCopy {
  CachedBlocks cache;
  const BlockCopy* copies;  // [num_copies]
  int64_t num_copies;

  HELIUM_HOST_DEVICE int64_t num_items() const { return num_copies * cache.num_runs; }

  HELIUM_HOST_DEVICE Span span(int64_t item) const {
    const int64_t row = item / cache.num_runs;
    const BlockRun run = cache.runs[item - row * cache.num_runs];
    const BlockCopy copy = copies[row];
    int64_t num_tokens = copy.num_tokens - run.first_token;
    num_tokens = num_tokens < run.num_tokens ? num_tokens : run.num_tokens;
    const bool moves =
        num_tokens > 0 && cache.holds(copy.src_block) && cache.holds(copy.dst_block);
    return {cache.at(run, copy.src_block), cache.at(run, copy.dst_block),
            moves ? num_tokens * run.token_bytes : 0};
  }
};

// One thread's share of a span: every num_threads-th access, four in flight at a time.
template <typename Access>
HELIUM_HOST_DEVICE void copy_share(const Span& span, int64_t thread, int64_t num_threads) {
  const Access* src = reinterpret_cast<const Access*>(span.src);
  Access* dst = reinterpret_cast<Access*>(span.dst);
  const int64_t count = span.num_bytes / static_cast<int64_t>(sizeof(Access));
  int64_t i = thread;
  for (; i + 3 * num_threads < count; i += 4 * num_threads) {
    const Access first = src[i];
    const Access second = src[i + num_threads];
    const Access third = src[i + 2 * num_threads];
    const Access fourth = src[i + 3 * num_threads];
    dst[i] = first;
    dst[i + num_threads] = second;
    dst[i + 2 * num_threads] = third;
    dst[i + 3 * num_threads] = fourth;
  }
  for (; i < count; i += num_threads) {
    dst[i] = src[i];
  }
}

// All of one thread's work in a launch.
template <typename Access, typename Move>
HELIUM_HOST_DEVICE void run_thread(const Move& move, int64_t program, int64_t num_programs,
                                   int64_t thread, int64_t num_threads) {
  const int64_t num_items = move.num_items();
  for (int64_t item = program; item < num_items; item += num_programs) {
    copy_share<Access>(move.span(item), thread, num_threads);
  }
}

}  // namespace helium
