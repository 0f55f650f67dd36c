// The block moves between host buffers: one memcpy per item, on the caller's thread. Part of the
// compiled core, called through the C interface without the interpreter's lock.
#include <cstdint>
#include <cstring>

#include "helium/block_moves.h"

namespace helium {

template <typename Access, typename Move>
int launch(const Move& move, int64_t, void*) {
  const int64_t num_items = move.num_items();
  for (int64_t item = 0; item < num_items; ++item) {
    const Span span = move.span(item);
    std::memcpy(span.dst, span.src, static_cast<size_t>(span.num_bytes));
  }
  return 0;
}

}  // namespace helium

#include "helium/block_moves_api.h"

HELIUM_API const char* helium_error_string(int error) {
  return error == helium::kBadAlignment ? "alignment is none of 1, 2, 4, 8 and 16" : "unknown";
}
