// Launches the block moves on a CUDA stream: no synchronisation, no allocation, no host reads, so a
// launch can be captured in a graph. Equals vllm_helium/kernels/reference.py bit for bit.
#include <cuda_runtime.h>

#include <cstdint>

#include "helium/block_moves.h"

namespace helium {

constexpr int kThreads = 256;
// 1,024 threads per multiprocessor have 64 KiB in flight, and 64 registers each: no spills, which
// the compiler's own choice had on sm_100.
constexpr int kProgramsPerMultiprocessor = 4;

template <typename Access, typename Move>
__global__ void __launch_bounds__(kThreads, kProgramsPerMultiprocessor)
    run_program(const Move move) {
  run_thread<Access>(move, blockIdx.x, gridDim.x, threadIdx.x, kThreads);
}

template <typename Access, typename Move>
int launch(const Move& move, int64_t num_programs, void* stream) {
  run_program<Access><<<static_cast<unsigned>(num_programs), kThreads, 0,
                        static_cast<cudaStream_t>(stream)>>>(move);
  return static_cast<int>(cudaGetLastError());
}

}  // namespace helium

#include "helium/block_moves_api.h"

HELIUM_API const char* helium_error_string(int error) {
  if (error == helium::kBadAlignment) {
    return "alignment is none of 1, 2, 4, 8 and 16";
  }
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
