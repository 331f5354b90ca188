// SPDX-License-Identifier: Apache-2.0
#include <linux/if_alg.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "vm/kernel_selfcheck/item.h"

namespace gcs::selfcheck {
namespace {

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[static_cast<unsigned char>(byte) >> 4];
    text += kDigits[static_cast<unsigned char>(byte) & 15];
  }
  return text;
}

// An operation descriptor of the algorithm, keyed if there is a key.
Result<Fd> Algorithm(const char* type, const char* name, std::string_view key) {
  const Fd transform(socket(AF_ALG, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!transform) return ErrnoError("socket", "AF_ALG");
  sockaddr_alg address = {};
  address.salg_family = AF_ALG;
  std::strncpy(reinterpret_cast<char*>(address.salg_type), type, sizeof address.salg_type - 1);
  std::strncpy(reinterpret_cast<char*>(address.salg_name), name, sizeof address.salg_name - 1);
  if (bind(transform.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0)
    return ErrnoError("bind", name);
  if (!key.empty() && setsockopt(transform.get(), SOL_ALG, ALG_SET_KEY, key.data(), key.size()) != 0) {
    return ErrnoError("ALG_SET_KEY", name);
  }
  Fd operation(accept4(transform.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!operation) return ErrnoError("accept", name);
  return operation;
}

Result<> Gives(int operation, const char* name, size_t size, std::string_view expected) {
  std::string out(size, '\0');
  if (read(operation, out.data(), size) != static_cast<ssize_t>(size)) return ErrnoError("read", name);
  if (Hex(out) != expected) return MakeError(EBADMSG, "compare", name, Hex(out));
  return {};
}

Result<> HashIs(const char* name, std::string_view key, std::string_view data, std::string_view expected) {
  GCS_ASSIGN(const Fd operation, Algorithm("hash", name, key));
  if (write(operation.get(), data.data(), data.size()) != static_cast<ssize_t>(data.size())) {
    return ErrnoError("write", name);
  }
  return Gives(operation.get(), name, expected.size() / 2, expected);
}

// Vector 1 of IEEE 1619: everything zero.
Result<> XtsEncrypts() {
  constexpr char kName[] = "xts(aes)";
  GCS_ASSIGN(const Fd operation, Algorithm("skcipher", kName, std::string(32, '\0')));
  constexpr size_t kIvSize = 16;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(uint32_t)) + CMSG_SPACE(sizeof(af_alg_iv) + kIvSize)] = {};
  std::string plain(32, '\0');
  iovec data{.iov_base = plain.data(), .iov_len = plain.size()};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* part = CMSG_FIRSTHDR(&message);
  part->cmsg_level = SOL_ALG;
  part->cmsg_type = ALG_SET_OP;
  part->cmsg_len = CMSG_LEN(sizeof(uint32_t));
  const uint32_t encrypt = ALG_OP_ENCRYPT;
  std::memcpy(CMSG_DATA(part), &encrypt, sizeof encrypt);
  part = CMSG_NXTHDR(&message, part);
  part->cmsg_level = SOL_ALG;
  part->cmsg_type = ALG_SET_IV;
  part->cmsg_len = CMSG_LEN(sizeof(af_alg_iv) + kIvSize);
  const uint32_t iv_size = kIvSize;
  std::memcpy(CMSG_DATA(part), &iv_size, sizeof iv_size);
  if (sendmsg(operation.get(), &message, 0) != static_cast<ssize_t>(plain.size()))
    return ErrnoError("sendmsg", kName);
  return Gives(operation.get(), kName, plain.size(),
               "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e");
}

const Item kItems[] = {
    {"af-alg-sha256",
     [] {
       return HashIs("sha256", "", "abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
     }},
    // RFC 4231, test case 2.
    {"af-alg-hmac-sha256",
     [] {
       return HashIs("hmac(sha256)", "Jefe", "what do ya want for nothing?",
                     "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
     }},
    {"af-alg-xts-aes", XtsEncrypts},
};

}  // namespace

std::span<const Item> CryptoItems() { return kItems; }

}  // namespace gcs::selfcheck
