// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <cstring>

#include "base/fd.h"

namespace gcs::base {

void Fd::Reset(int fd) {
  if (fd_ >= 0) {
    const int saved = errno;
    close(fd_);
    errno = saved;
  }
  fd_ = fd;
}

std::string ErrnoName(int err) {
  const char* name = strerrorname_np(err);
  return name != nullptr ? name : "E?" + std::to_string(err);
}

std::string Error::ToString() const {
  std::string text = step;
  if (!object.empty()) text += " (" + object + ")";
  if (err != 0) {
    const char* what = strerrordesc_np(err);
    text += ": ";
    text += what != nullptr ? what : "error " + std::to_string(err);
  }
  if (!message.empty()) text += ": " + message;
  return text;
}

}  // namespace gcs::base
