// The C interface of the block moves, as vllm_helium/kernels/compiled_library.py declares it.
//
// Libraries define it by including this file: helium_cuda launches kernels on a stream, the core
// copies on the calling thread, and the tests' own runs the kernels' loops without a GPU. The includer defines, in this order,
// namespace helium's
//   template <typename Access, typename Move>
//   int launch(const Move& move, int64_t num_programs, void* stream);
// which returns 0 or an error code of its own. Pointers are device pointers, or pinned host memory
// for staging. Rows of `runs` are BlockRun, rows of `copies` BlockCopy. `alignment` is the access
// width in bytes (1, 2, 4, 8 or 16) that every address and length of the launch is a multiple of.
#pragma once

#include <cstdint>

#include "helium/block_moves.h"

#define HELIUM_API extern "C" __attribute__((visibility("default")))

namespace helium {

constexpr int kBadAlignment = -1;

template <typename Move>
int launch_aligned(const Move& move, int alignment, int64_t max_programs, void* stream) {
  const int64_t num_items = move.num_items();
  if (num_items <= 0) {
    return 0;
  }
  const int64_t num_programs = num_items < max_programs ? num_items : max_programs;
  switch (alignment) {
    case 16:
      return launch<Bytes16>(move, num_programs, stream);
    case 8:
      return launch<uint64_t>(move, num_programs, stream);
    case 4:
      return launch<uint32_t>(move, num_programs, stream);
    case 2:
      return launch<uint16_t>(move, num_programs, stream);
    case 1:
      return launch<uint8_t>(move, num_programs, stream);
    default:
      return kBadAlignment;
  }
}

}  // namespace helium

// Raised with every change of this interface or of a table's columns.
HELIUM_API int helium_block_moves_version() { return 1; }

HELIUM_API int helium_gather_blocks(uint8_t* storage, const void* runs, int64_t num_runs,
                         const int64_t* block_ids, int64_t num_ids, int64_t num_blocks,
                         uint8_t* staging, int64_t staging_stride, int alignment,
                         int64_t max_programs, void* stream) {
  const helium::CachedBlocks cache{storage, static_cast<const helium::BlockRun*>(runs), num_runs,
                                   num_blocks};
  return helium::launch_aligned(
      helium::StagedMove<true>{cache, block_ids, num_ids, staging, staging_stride}, alignment,
      max_programs, stream);
}

HELIUM_API int helium_scatter_blocks(uint8_t* storage, const void* runs, int64_t num_runs,
                          const int64_t* block_ids, int64_t num_ids, int64_t num_blocks,
                          uint8_t* staging, int64_t staging_stride, int alignment,
                          int64_t max_programs, void* stream) {
  const helium::CachedBlocks cache{storage, static_cast<const helium::BlockRun*>(runs), num_runs,
                                   num_blocks};
  return helium::launch_aligned(
      helium::StagedMove<false>{cache, block_ids, num_ids, staging, staging_stride}, alignment,
      max_programs, stream);
}

HELIUM_API int helium_copy_block_prefix(uint8_t* storage, const void* runs, int64_t num_runs,
                             const void* copies, int64_t num_copies, int64_t num_blocks,
                             int alignment, int64_t max_programs, void* stream) {
  const helium::CachedBlocks cache{storage, static_cast<const helium::BlockRun*>(runs), num_runs,
                                   num_blocks};
  return helium::launch_aligned(
      helium::PrefixCopy{cache, static_cast<const helium::BlockCopy*>(copies), num_copies},
      alignment, max_programs, stream);
}
