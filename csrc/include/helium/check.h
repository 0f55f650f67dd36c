// The one error of the C++ core, and the macro that raises it with the values it saw.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace helium {

// An argument or an invariant does not hold. Becomes helium.errors.CacheError in Python.
class CheckError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
[[noreturn]] void raise_check_error(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw CheckError(message.str());
}

}  // namespace helium

// HELIUM_CHECK(condition, "what was expected, got ", value, "; what to do")
#define HELIUM_CHECK(condition, ...)              \
  do {                                            \
    if (!(condition)) {                           \
      ::helium::raise_check_error(__VA_ARGS__);   \
    }                                             \
  } while (false)
