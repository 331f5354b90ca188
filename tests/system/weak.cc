// SPDX-License-Identifier: Apache-2.0
#include "system/weak.h"

#include <cstdlib>
#include <cstring>

namespace gcs::test {

bool Weak(const char* name) noexcept {
  const char* at = getenv("GCS_TEST_WEAK");
  const size_t length = strlen(name);
  while (at != nullptr && *at != '\0') {
    const char* end = strchrnul(at, ',');
    if (static_cast<size_t>(end - at) == length && strncmp(at, name, length) == 0) return true;
    at = *end == ',' ? end + 1 : end;
  }
  return false;
}

}  // namespace gcs::test
