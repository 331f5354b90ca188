// SPDX-License-Identifier: Apache-2.0
#include "host/image/digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

namespace gcs::host {

base::Result<Digest> ParseDigest(std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view algorithm = text.substr(0, colon);
  const std::string_view hex = colon == std::string_view::npos ? "" : text.substr(colon + 1);
  const size_t want = algorithm == "sha256" ? 64 : algorithm == "sha512" ? 128 : 0;
  const bool lower_hex =
      std::ranges::all_of(hex, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
  if (want == 0 || hex.size() != want || !lower_hex) {
    return base::MakeError(EBADMSG, "parse digest", text.substr(0, 160),
                           "want sha256: or sha512: and lower-case hex digits");
  }
  return Digest{std::string(algorithm), std::string(hex)};
}

void Hasher::Free::operator()(evp_md_ctx_st* ctx) const { EVP_MD_CTX_free(ctx); }

base::Result<Hasher> Hasher::Make(std::string_view algorithm) {
  Hasher hasher;
  hasher.algorithm_ = algorithm;
  hasher.ctx_.reset(EVP_MD_CTX_new());
  const EVP_MD* md = algorithm == "sha256" ? EVP_sha256() : algorithm == "sha512" ? EVP_sha512() : nullptr;
  if (md == nullptr || !hasher.ctx_ || EVP_DigestInit_ex(hasher.ctx_.get(), md, nullptr) != 1) {
    return base::MakeError(ENOTSUP, "start digest", algorithm);
  }
  return hasher;
}

void Hasher::Update(const void* data, size_t size) { EVP_DigestUpdate(ctx_.get(), data, size); }

Digest Hasher::Finish() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> raw{};
  unsigned int size = 0;
  EVP_DigestFinal_ex(ctx_.get(), raw.data(), &size);
  static constexpr char kHex[] = "0123456789abcdef";
  Digest digest{algorithm_, {}};
  for (unsigned int i = 0; i < size; ++i) {
    digest.hex += kHex[raw[i] >> 4];
    digest.hex += kHex[raw[i] & 15];
  }
  return digest;
}

base::Result<Digest> DigestOf(std::string_view algorithm, std::string_view data) {
  GCS_ASSIGN(Hasher hasher, Hasher::Make(algorithm));
  hasher.Update(data.data(), data.size());
  return hasher.Finish();
}

}  // namespace gcs::host
