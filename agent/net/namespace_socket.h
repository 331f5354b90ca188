// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "net/namespace.h"
#include "net/netlink.h"

// How Namespace talks and reads. Not for other folders.
namespace gcs::net {

inline std::string Bytes(const nlattr* attribute) {
  if (attribute == nullptr) return {};
  return {static_cast<const char*>(nla_data(attribute)), static_cast<size_t>(nla_len(attribute))};
}

inline std::string Text(const nlattr* attribute) {
  std::string text = Bytes(attribute);
  text.resize(strnlen(text.data(), text.size()));
  return text;
}

template <typename T>
T Number(const nlattr* attribute, T fallback) {
  if (attribute == nullptr || nla_len(attribute) < static_cast<int>(sizeof(T))) return fallback;
  T value;
  memcpy(&value, nla_data(attribute), sizeof value);
  return value;
}

// The attributes of a message by their number; those beyond `N` are left out.
template <typename Header, size_t N>
std::array<nlattr*, N> Parse(nlmsghdr* head) {
  std::array<nlattr*, N> attributes{};
  nlmsg_parse(head, sizeof(Header), attributes.data(), static_cast<int>(N) - 1, nullptr);
  return attributes;
}

template <typename Header>
const Header* Fixed(nlmsghdr* head) {
  return nlmsg_valid_hdr(head, sizeof(Header)) != 0 ? static_cast<const Header*>(nlmsg_data(head)) : nullptr;
}

class Namespace::Socket {
 public:
  explicit Socket(std::unique_ptr<Netlink> netlink) : netlink_(std::move(netlink)) {}

  base::Result<> Talk(const Message& message, std::string_view step, std::string_view object) {
    return netlink_->Talk(message, step, object);
  }
  // All that `read` makes of the answer. What changed meanwhile is read again, some times.
  template <typename T, typename Read>
  base::Result<std::vector<T>> Ask(const Message& message, std::string_view step, std::string_view object,
                                   Read read) {
    constexpr int kAttempts = 5;
    for (int attempt = 1;; ++attempt) {
      std::vector<T> found;
      auto asked = netlink_->Talk(message, step, object, [&](nlmsghdr* head) { read(head, found); });
      if (asked) return found;
      if (asked.error().err != EAGAIN || attempt == kAttempts) return std::unexpected(asked.error());
      // The next attempt is another request.
      nlmsg_hdr(message.get())->nlmsg_seq = NL_AUTO_SEQ;
    }
  }

 private:
  std::unique_ptr<Netlink> netlink_;
};

}  // namespace gcs::net
