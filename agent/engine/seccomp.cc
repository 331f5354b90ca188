// SPDX-License-Identifier: Apache-2.0
#include "engine/seccomp.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

#include "base/fd.h"
#include "base/paths.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV  // Linux 5.19
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

namespace gcs::engine {

using base::JsonReader;
using base::MakeError;
using base::Result;

namespace {

constexpr std::string_view kStep = "compile seccomp";

struct FilterDeleter {
  void operator()(void* context) const { seccomp_release(context); }
};
using Context = std::unique_ptr<void, FilterDeleter>;

std::optional<uint32_t> ParseAction(JsonReader& reader, const char* key, const char* errno_key) {
  const std::string action = reader.RequiredString(key);
  const auto errno_ret = reader.OptionalInt(errno_key, 0, 4095);
  if (action == "SCMP_ACT_ERRNO") return SCMP_ACT_ERRNO(static_cast<uint32_t>(errno_ret.value_or(EPERM)));
  if (action == "SCMP_ACT_TRACE") return SCMP_ACT_TRACE(static_cast<uint32_t>(errno_ret.value_or(EPERM)));
  if (errno_ret) reader.Fail(errno_key, "goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE only");
  if (action == "SCMP_ACT_ALLOW") return SCMP_ACT_ALLOW;
  if (action == "SCMP_ACT_LOG") return SCMP_ACT_LOG;
  if (action == "SCMP_ACT_TRAP") return SCMP_ACT_TRAP;
  if (action == "SCMP_ACT_KILL" || action == "SCMP_ACT_KILL_THREAD") return SCMP_ACT_KILL_THREAD;
  if (action == "SCMP_ACT_KILL_PROCESS") return SCMP_ACT_KILL_PROCESS;
  if (action == "SCMP_ACT_NOTIFY") return SCMP_ACT_NOTIFY;
  reader.Fail(key, "unknown action " + action);
  return std::nullopt;
}

std::optional<scmp_compare> ParseOperator(const std::string& name) {
  constexpr std::array<std::pair<std::string_view, scmp_compare>, 7> kOperators{
      {{"SCMP_CMP_NE", SCMP_CMP_NE},
       {"SCMP_CMP_LT", SCMP_CMP_LT},
       {"SCMP_CMP_LE", SCMP_CMP_LE},
       {"SCMP_CMP_EQ", SCMP_CMP_EQ},
       {"SCMP_CMP_GE", SCMP_CMP_GE},
       {"SCMP_CMP_GT", SCMP_CMP_GT},
       {"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ}}};
  for (const auto& [text, op] : kOperators) {
    if (text == name) return op;
  }
  return std::nullopt;
}

std::vector<scmp_arg_cmp> ParseArguments(JsonReader& rule) {
  std::vector<scmp_arg_cmp> arguments;
  for (JsonReader& entry : rule.Objects("args")) {
    const auto op = ParseOperator(entry.RequiredString("op"));
    if (!op) {
      entry.Fail("op", "unknown operator");
      break;
    }
    const auto index = static_cast<unsigned>(entry.Int("index", 0, 0, 5));
    const uint64_t value = entry.Uint64("value", 0);
    // For MASKED_EQ the specification's value is the mask and valueTwo the datum, which is libseccomp's
    // order.
    arguments.push_back({index, *op, value, entry.Uint64("valueTwo", 0)});
  }
  return arguments;
}

// The listener of a filter that asks somebody. Without one the kernel would answer ENOSYS in its place.
void ReadListener(JsonReader& reader, bool notifies, SeccompFilter& filter) {
  filter.listener_path = reader.String("listenerPath");
  filter.listener_metadata = reader.String("listenerMetadata");
  const bool has_path = !filter.listener_path.empty();
  if (has_path && filter.listener_path[0] != '/') reader.Fail("listenerPath", "must be absolute");
  if (notifies && !has_path) reader.Fail("listenerPath", "is required for SCMP_ACT_NOTIFY");
  if (!has_path && !filter.listener_metadata.empty())
    reader.Fail("listenerMetadata", "goes with listenerPath");
  const bool killable = (filter.flags & SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) != 0;
  if (killable && !notifies)
    reader.Fail("flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs SCMP_ACT_NOTIFY");
  if (notifies) {
    filter.flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
  } else {
    filter.listener_path.clear();
  }
}

// 0 or an errno. Conditions on different arguments must all hold; several on one argument are alternatives,
// one rule each.
int AddRule(void* context, uint32_t action, int number, const std::vector<scmp_arg_cmp>& arguments) {
  std::array<int, 6> uses{};
  for (const auto& argument : arguments) ++uses[argument.arg];
  const bool alternatives = std::ranges::any_of(uses, [](int n) { return n > 1; });
  if (!alternatives) {
    return -seccomp_rule_add_array(context, action, number, arguments.size(), arguments.data());
  }
  for (const auto& argument : arguments) {
    const int rc = seccomp_rule_add_array(context, action, number, 1, &argument);
    if (rc < 0) return -rc;
  }
  return 0;
}

// Whether any rule asks a listener.
bool AddRules(JsonReader& reader, void* context, uint32_t default_action) {
  // Each takes libseccomp longer than the one before, and an instruction at least of those that the kernel
  // takes.
  constexpr size_t kMaxRules = BPF_MAXINSNS;
  size_t rules = 0;
  bool notifies = false;
  for (JsonReader& rule : reader.Objects("syscalls")) {
    const auto action = ParseAction(rule, "action", "errnoRet");
    const std::vector<std::string> names = rule.Strings("names");
    if (names.empty()) rule.Fail("names", "is required");
    const std::vector<scmp_arg_cmp> arguments = ParseArguments(rule);
    if (rule.error() || !action) return notifies;
    if (*action == default_action) continue;
    notifies = notifies || *action == SCMP_ACT_NOTIFY;
    rules += names.size() * std::max<size_t>(arguments.size(), 1);
    if (rules > kMaxRules) {
      reader.Fail("syscalls", "more than " + std::to_string(kMaxRules) + " rules", E2BIG);
      return notifies;
    }
    for (const std::string& name : names) {
      const int number = seccomp_syscall_resolve_name(name.c_str());
      if (number == __NR_SCMP_ERROR) continue;
      // EEXIST: the same rule twice, which profiles do contain.
      if (const int err = AddRule(context, *action, number, arguments); err != 0 && err != EEXIST) {
        rule.Fail("names", "rule for " + name + " refused by libseccomp", err);
        return notifies;
      }
    }
  }
  return notifies;
}

uint32_t ParseFlags(JsonReader& reader) {
  uint32_t flags = 0;
  for (const std::string& flag : reader.Strings("flags")) {
    if (flag == "SECCOMP_FILTER_FLAG_LOG") {
      flags |= SECCOMP_FILTER_FLAG_LOG;
    } else if (flag == "SECCOMP_FILTER_FLAG_SPEC_ALLOW") {
      flags |= SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    } else if (flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV") {
      flags |= SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    } else if (flag != "SECCOMP_FILTER_FLAG_TSYNC") {
      // TSYNC: the process that loads the filter has one thread, so it is in sync by itself.
      reader.Fail("flags", "unsupported flag " + flag, EOPNOTSUPP);
    }
  }
  return flags;
}

void AddArchitectures(JsonReader& reader, void* context) {
  for (const std::string& arch : reader.Strings("architectures")) {
    std::string name = arch.starts_with("SCMP_ARCH_") ? arch.substr(10) : "";
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    const uint32_t token = name.empty() ? 0 : seccomp_arch_resolve_name(name.c_str());
    if (token == 0) return reader.Fail("architectures", "unknown architecture " + arch);
    if (const int rc = seccomp_arch_add(context, token); rc < 0 && rc != -EEXIST) {
      return reader.Fail("architectures", arch, -rc);
    }
  }
}

Result<std::string> Export(void* context) {
  const base::Fd memory(memfd_create("seccomp", MFD_CLOEXEC));
  if (!memory.valid()) return base::ErrnoError("memfd_create", "seccomp");
  if (const int rc = seccomp_export_bpf(context, memory.get()); rc < 0)
    return MakeError(-rc, kStep, "export");
  if (lseek(memory.get(), 0, SEEK_SET) != 0) return base::ErrnoError("lseek", "seccomp");
  return base::ReadFd(memory.get(), "seccomp", BPF_MAXINSNS * sizeof(sock_filter));
}

}  // namespace

Result<SeccompFilter> CompileSeccomp(const base::Json& seccomp) {
  JsonReader reader(seccomp, kStep);
  const auto default_action = ParseAction(reader, "defaultAction", "defaultErrnoRet");
  if (default_action == SCMP_ACT_NOTIFY) {
    // Nothing that the process does before its program could be answered.
    reader.Fail("defaultAction", "SCMP_ACT_NOTIFY can't be the default");
  }
  SeccompFilter filter{.flags = ParseFlags(reader)};
  if (reader.error()) return std::unexpected(*reader.error());
  const Context context(seccomp_init(*default_action));
  if (context == nullptr) return MakeError(EINVAL, kStep, "defaultAction", "refused by libseccomp");
  // The tree form is dearer to build, but the cache pays for that, and both kernel and container run it
  // faster.
  seccomp_attr_set(context.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2);
  AddArchitectures(reader, context.get());
  const bool notifies = AddRules(reader, context.get(), *default_action);
  ReadListener(reader, notifies, filter);
  if (reader.error()) return std::unexpected(*reader.error());
  GCS_ASSIGN(filter.code, Export(context.get()));
  return filter;
}

Result<std::shared_ptr<const SeccompFilter>> SeccompCache::Get(const base::Json& seccomp) {
  const std::string key = seccomp.dump(-1, ' ', false, base::Json::error_handler_t::replace);
  {
    const std::lock_guard lock(mutex_);
    if (const auto it = filters_.find(key); it != filters_.end()) return it->second;
  }
  GCS_ASSIGN(SeccompFilter filter, CompileSeccomp(seccomp));
  auto shared = std::make_shared<const SeccompFilter>(std::move(filter));
  const std::lock_guard lock(mutex_);
  if (filters_.size() >= kMaxEntries) filters_.clear();
  filters_.emplace(key, shared);
  return shared;
}

SeccompFilter VsockGuard() {
  constexpr uint32_t kNumber = offsetof(seccomp_data, nr);
  constexpr uint32_t kArch = offsetof(seccomp_data, arch);
  constexpr uint32_t kArg0 = offsetof(seccomp_data, args[0]);  // low half: int arguments have 32 bits
  constexpr uint32_t kX32Bit = 0x40000000;
  // Jumps count instructions to skip (true, false). Other architectures and x32 get no system calls at all:
  // the kernel we ship has neither, and socketcall(2) of i386 can't be looked into.
  const std::array<sock_filter, 12> program{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kArch),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kNumber),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, kX32Bit, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, kArg0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_VSOCK, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
  }};
  SeccompFilter filter;
  filter.code.assign(reinterpret_cast<const char*>(program.data()), sizeof program);
  return filter;
}

}  // namespace gcs::engine
