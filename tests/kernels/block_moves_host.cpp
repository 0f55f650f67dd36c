// The block moves without a GPU: the kernels' own arithmetic, program by program and thread by
// thread, behind the same C interface. Few threads, so that every loop of a thread is taken.
#include <cstdint>

#include "helium/block_moves.h"

namespace helium {

constexpr int64_t kThreads = 7;

template <typename Access, typename Move>
int launch(const Move& move, int64_t num_programs, void*) {
  for (int64_t program = num_programs - 1; program >= 0; --program) {
    for (int64_t thread = 0; thread < kThreads; ++thread) {
      run_thread<Access>(move, program, num_programs, thread, kThreads);
    }
  }
  return 0;
}

}  // namespace helium

#include "helium/block_moves_api.h"

HELIUM_API const char* helium_error_string(int error) {
  return error == helium::kBadAlignment ? "alignment is none of 1, 2, 4, 8 and 16" : "unknown";
}
