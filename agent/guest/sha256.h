// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::guest {

// SHA-256 of a stream, by the kernel (AF_ALG; CONFIG_CRYPTO_USER_API_HASH). Errors: EAFNOSUPPORT without it.
class Sha256 {
 public:
  static base::Result<Sha256> Create();

  base::Result<> Update(std::string_view bytes);
  base::Result<std::string> Finish();  // 32 bytes; once

 private:
  explicit Sha256(base::Fd operation) : operation_(std::move(operation)) {}
  base::Fd operation_;
};

}  // namespace gcs::guest
