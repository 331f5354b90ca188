// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace gcs::base {

// What went wrong, as a value. gRPC statuses and HRESULTs are made from it at the edge, once; the errno
// decides which.
struct Error {
  std::string step;  // the act that failed, in the words of the kernel or the spec: "mount", "openat2", "find
                     // container"
  int err = 0;       // errno; never 0 in an error that leaves a library
  std::string object;   // what it was done to: a path, a container id, a JSON path; may be empty
  std::string message;  // anything that helps a person and is not in the three above; may be empty

  // "mount (/run/layers/0): No such device: detail"
  [[nodiscard]] std::string ToString() const;
};

template <typename T = void>
using Result = std::expected<T, Error>;

// The failure of a system call: takes errno at the call.
inline std::unexpected<Error> ErrnoError(std::string_view step, std::string_view object = {},
                                         std::string_view message = {}) {
  const int err = errno;
  return std::unexpected(Error{std::string(step), err, std::string(object), std::string(message)});
}

// A failure with a chosen errno.
inline std::unexpected<Error> MakeError(int err, std::string_view step, std::string_view object = {},
                                        std::string_view message = {}) {
  return std::unexpected(Error{std::string(step), err, std::string(object), std::string(message)});
}

// Name of an errno, "ENOENT"; "E?" and the number when unknown.
std::string ErrnoName(int err);

}  // namespace gcs::base

// Returns the error of a Result<> expression to the caller; `var` names the value otherwise.
#define GCS_CONCAT2(a, b) a##b
#define GCS_CONCAT(a, b) GCS_CONCAT2(a, b)
#define GCS_TRY(expr)                                                               \
  do {                                                                              \
    auto&& gcs_try_result = (expr);                                                 \
    if (!gcs_try_result) return std::unexpected(std::move(gcs_try_result).error()); \
  } while (false)
#define GCS_ASSIGN(var, expr)                                                     \
  auto GCS_CONCAT(gcs_result_, __LINE__) = (expr);                                \
  if (!GCS_CONCAT(gcs_result_, __LINE__))                                         \
    return std::unexpected(std::move(GCS_CONCAT(gcs_result_, __LINE__)).error()); \
  var = std::move(*GCS_CONCAT(gcs_result_, __LINE__))
