// SPDX-License-Identifier: Apache-2.0
#include "net/netlink.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <netdb.h>
#include <netlink/socket.h>
#include <sched.h>
#include <sys/socket.h>

#include <cstdlib>

#include "base/log.h"
#include "base/paths.h"

namespace gcs::net {

using base::ErrnoError;
using base::MakeError;
using base::Result;

namespace {

// What the callbacks of one request leave.
struct Answer {
  const std::function<void(nlmsghdr*)>* each = nullptr;
  bool done = false;
  bool interrupted = false;  // a dump of what changed meanwhile
  int err = 0;
  std::string words;
};

int OnValid(nl_msg* message, void* argument) {
  const auto& each = *static_cast<Answer*>(argument)->each;
  if (each) each(nlmsg_hdr(message));
  return NL_OK;
}

int OnDone(nl_msg*, void* argument) {
  static_cast<Answer*>(argument)->done = true;
  return NL_STOP;
}

int OnInterrupted(nl_msg*, void* argument) {
  static_cast<Answer*>(argument)->interrupted = true;
  return NL_OK;
}

// With NETLINK_CAP_ACK and NETLINK_EXT_ACK attributes follow the error (netlink(7)).
int OnError(sockaddr_nl*, nlmsgerr* error, void* argument) {
  auto& answer = *static_cast<Answer*>(argument);
  answer.done = true;
  answer.err = -error->error;
  auto* head = reinterpret_cast<nlmsghdr*>(reinterpret_cast<char*>(error) - NLMSG_HDRLEN);
  if ((head->nlmsg_flags & NLM_F_ACK_TLVS) == 0 || (head->nlmsg_flags & NLM_F_CAPPED) == 0) return NL_STOP;
  const nlattr* words = nlmsg_find_attr(head, sizeof(nlmsgerr), NLMSGERR_ATTR_MSG);
  if (words != nullptr && nla_len(words) > 0) {
    const auto* text = static_cast<const char*>(nla_data(words));
    answer.words.assign(text, strnlen(text, static_cast<size_t>(nla_len(words))));
  }
  return NL_STOP;
}

// The thread goes there and comes back. A helper thread would be safer only in appearance: that setns(2) back
// to where the thread has come from fails for want of memory is as likely as that a thread can't be made, and
// one that stays in a container's namespace must not go on.
template <typename T>
Result<T> Visit(int namespace_fd, const std::function<Result<T>()>& open) {
  GCS_ASSIGN(const base::Fd home, base::OpenFile("/proc/thread-self/ns/net", O_RDONLY));
  if (setns(namespace_fd, CLONE_NEWNET) != 0) return ErrnoError("enter network namespace");
  auto opened = open();
  if (setns(home.get(), CLONE_NEWNET) != 0) {
    base::LogError("stop", ErrnoError("leave network namespace").error());
    std::abort();
  }
  return opened;
}

}  // namespace

void Put(Message& message, int attribute, const void* data, size_t size) {
  if (message && nla_put(message.get(), attribute, static_cast<int>(size), data) != 0) message.reset();
}

void PutNumber(Message& message, int attribute, uint32_t value) {
  Put(message, attribute, &value, sizeof value);
}

void PutName(Message& message, int attribute, const std::string& name) {
  Put(message, attribute, name.c_str(), name.size() + 1);
}

Result<std::unique_ptr<Netlink>> Netlink::Open() {
  nl_sock* socket = nl_socket_alloc();
  if (socket == nullptr) return MakeError(ENOMEM, "open netlink socket");
  std::unique_ptr<Netlink> netlink(new Netlink(socket));
  if (nl_connect(socket, NETLINK_ROUTE) != 0) return ErrnoError("open netlink socket");
  const int fd = nl_socket_get_fd(socket);
  // Dumps of one device only, and errors in words. Without them there is more to read, and less.
  for (const int option : {NETLINK_GET_STRICT_CHK, NETLINK_EXT_ACK, NETLINK_CAP_ACK}) {
    const int on = 1;
    setsockopt(fd, SOL_NETLINK, option, &on, sizeof on);
  }
  constexpr timeval kPatience{.tv_sec = 10, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof kPatience);
  return netlink;
}

Result<std::unique_ptr<Netlink>> Netlink::OpenIn(int namespace_fd) {
  return Visit<std::unique_ptr<Netlink>>(namespace_fd, Open);
}

Result<base::Fd> Netlink::WatchIn(int namespace_fd, uint32_t groups) {
  return Visit<base::Fd>(namespace_fd, [&]() -> Result<base::Fd> {
    base::Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
    sockaddr_nl address{};
    address.nl_family = AF_NETLINK;
    address.nl_groups = groups;
    if (!fd || bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return ErrnoError("watch network devices");
    }
    return fd;
  });
}

Netlink::~Netlink() { nl_socket_free(socket_); }

Result<> Netlink::Talk(const Message& message, std::string_view step, std::string_view object,
                       const std::function<void(nlmsghdr*)>& each) {
  if (!message) return MakeError(ENOMEM, step, object, "netlink message");
  if (nl_send_auto(socket_, message.get()) < 0) return ErrnoError(step, object, "send");
  Answer answer{.each = &each};
  nl_cb* callbacks = nl_cb_alloc(NL_CB_DEFAULT);
  if (callbacks == nullptr) return MakeError(ENOMEM, step, object, "netlink callbacks");
  nl_cb_set(callbacks, NL_CB_VALID, NL_CB_CUSTOM, OnValid, &answer);
  nl_cb_set(callbacks, NL_CB_FINISH, NL_CB_CUSTOM, OnDone, &answer);
  nl_cb_set(callbacks, NL_CB_ACK, NL_CB_CUSTOM, OnDone, &answer);
  nl_cb_set(callbacks, NL_CB_DUMP_INTR, NL_CB_CUSTOM, OnInterrupted, &answer);
  nl_cb_err(callbacks, NL_CB_CUSTOM, OnError, &answer);
  int failed = 0;
  while (!answer.done && failed >= 0) failed = nl_recvmsgs(socket_, callbacks);
  nl_cb_put(callbacks);
  if (answer.err != 0) return MakeError(answer.err, step, object, answer.words);
  if (!answer.done) return MakeError(EIO, step, object, nl_geterror(failed));
  if (answer.interrupted) return MakeError(EAGAIN, step, object, "changed while it was read");
  return {};
}

}  // namespace gcs::net

// Stand-ins for what libnl's addr.c and utils.c refer to, for names of hosts and protocols that nobody here
// looks up: with them a static program has no resolver and no NSS in it (--wrap in gcs_program). The names
// are the linker's.
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
int __wrap_getaddrinfo(const char*, const char*, const addrinfo*, addrinfo**) { return EAI_FAIL; }
void __wrap_freeaddrinfo(addrinfo*) {}
int __wrap_getnameinfo(const sockaddr*, socklen_t, char*, socklen_t, char*, socklen_t, int) {
  return EAI_FAIL;
}
protoent* __wrap_getprotobyname(const char*) { return nullptr; }
protoent* __wrap_getprotobynumber(int) { return nullptr; }
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)
}
