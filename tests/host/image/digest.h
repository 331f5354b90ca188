// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"

struct evp_md_ctx_st;

namespace gcs::host {

// A content digest in the image spec's form, "sha256:<64 hex>" or "sha512:<128 hex>", lower case.
struct Digest {
  std::string algorithm;
  std::string hex;

  [[nodiscard]] std::string ToString() const { return algorithm + ":" + hex; }
  bool operator==(const Digest&) const = default;
};

// EBADMSG for anything but the two forms above, so that a digest is always safe as part of a file name.
base::Result<Digest> ParseDigest(std::string_view text);

// A running hash (OpenSSL EVP).
class Hasher {
 public:
  static base::Result<Hasher> Make(std::string_view algorithm);
  void Update(const void* data, size_t size);
  // Ends the hash; call once.
  [[nodiscard]] Digest Finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* ctx) const;
  };
  Hasher() = default;
  std::string algorithm_;
  std::unique_ptr<evp_md_ctx_st, Free> ctx_;
};

base::Result<Digest> DigestOf(std::string_view algorithm, std::string_view data);

}  // namespace gcs::host
