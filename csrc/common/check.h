// Errors that reach Python with the right type, and messages made of values.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace sysgen {

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};  // wrong dtype
struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};  // wrong shape or value
struct NotImplementedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};  // missing combination

template <class... A>
std::string cat(const A&... a) {
  std::ostringstream s;
  (s << ... << a);
  return s.str();
}

template <class Error = ValueError, class... A>
void check(bool ok, const A&... message) {
  if (!ok) throw Error(cat(message...));
}

}  // namespace sysgen
