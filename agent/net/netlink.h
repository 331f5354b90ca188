// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <netlink/attr.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace gcs::net {

struct FreeMessage {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
using Message = std::unique_ptr<nl_msg, FreeMessage>;

// A request of this type with its fixed part; null without memory, which Netlink::Talk reports.
template <typename Header>
Message NewMessage(int type, int flags, Header header) {
  Message message(nlmsg_alloc_simple(type, flags));
  if (message && nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO) != 0) message.reset();
  return message;
}

// Adds an attribute; a message that has no room for it becomes null.
void Put(Message& message, int attribute, const void* data, size_t size);
void PutNumber(Message& message, int attribute, uint32_t value);
void PutName(Message& message, int attribute, const std::string& name);

// One NETLINK_ROUTE socket; of the network namespace that it was made in, whoever uses it. For one thread at
// a time. The kernel answers within the call that asks, so there is nothing to wait for but its own locks.
class Netlink {
 public:
  static base::Result<std::unique_ptr<Netlink>> Open();
  // Of the namespace behind this descriptor; the calling thread stays where it is.
  static base::Result<std::unique_ptr<Netlink>> OpenIn(int namespace_fd);
  // A socket that is told what changes there, of these groups (RTMGRP_*).
  static base::Result<base::Fd> WatchIn(int namespace_fd, uint32_t groups);
  ~Netlink();
  Netlink(const Netlink&) = delete;
  Netlink& operator=(const Netlink&) = delete;

  // One request and all of its answer, each message of which goes to `each`. The error has the kernel's
  // errno, and its words if it has any; `step` and `object` are the caller's.
  base::Result<> Talk(const Message& message, std::string_view step, std::string_view object,
                      const std::function<void(nlmsghdr*)>& each = {});

 private:
  explicit Netlink(nl_sock* socket) : socket_(socket) {}
  nl_sock* socket_;
};

}  // namespace gcs::net
