// SPDX-License-Identifier: Apache-2.0
// Escapes round a filter: each way there is to make a system call, from a program of a few bytes.
#include <elf.h>
#include <linux/audit.h>
#include <sys/socket.h>

#include <csignal>

#include "system/escape_support.h"

namespace gcs::test {
namespace {

using base::Json;

#ifndef AF_VSOCK
#define AF_VSOCK 40
#endif

void Append(std::string& code, std::initializer_list<int> bytes, uint32_t number) {
  for (const int byte : bytes) code.push_back(static_cast<char>(byte));
  code.append(reinterpret_cast<const char*>(&number), sizeof number);
}

enum class Entry { kSyscall, kInt80 };

// A program that makes one system call, by the instruction of one of two calling conventions, and ends with
// its errno.
std::string Program(Entry entry, uint32_t number, uint32_t first, uint32_t second) {
  std::string code;
  Append(code, {0xb8}, number);  // mov eax, number
  if (entry == Entry::kSyscall) {
    Append(code, {0xbf}, first);   // mov edi, first
    Append(code, {0xbe}, second);  // mov esi, second
    Append(code, {0xba}, 0);       // mov edx, 0
    code.append("\x0f\x05", 2);    // syscall
  } else {
    Append(code, {0xbb}, first);   // mov ebx, first
    Append(code, {0xb9}, second);  // mov ecx, second
    Append(code, {0xba}, 0);       // mov edx, 0
    code.append("\xcd\x80", 2);    // int 0x80
  }
  code.append("\xf7\xd8\x89\xc7", 4);    // neg eax; mov edi, eax
  Append(code, {0xb8}, SYS_exit_group);  // mov eax, exit_group
  code.append("\x0f\x05", 2);            // syscall

  constexpr uint64_t kAddress = 0x400000;
  Elf64_Ehdr header{};
  memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_EXEC;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_entry = kAddress + sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr);
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_flags = PF_R | PF_X;
  segment.p_vaddr = segment.p_paddr = kAddress;
  segment.p_filesz = segment.p_memsz = sizeof header + sizeof segment + code.size();
  segment.p_align = 0x1000;
  std::string file(reinterpret_cast<const char*>(&header), sizeof header);
  file.append(reinterpret_cast<const char*>(&segment), sizeof segment);
  return file + code;
}

constexpr uint32_t kX32 = 0x40000000;

// Exit code of a container whose program makes this call: its errno, 256 minus what it returned, or 128 +
// signal.
int Try(const Json& base, Entry entry, uint32_t number, uint32_t first = 0, uint32_t second = 0,
        bool allow_vsock = true) {
  static const std::string root = EngineMachine::Get().MakeRoot("calls");
  REQUIRE(base::ReplaceFile(root + "/call", Program(entry, number, first, second), 0755));
  Json config = base;
  config["root"]["path"] = root;
  config["process"]["args"] = {"/call"};
  return Run(config, allow_vsock).status;
}

constexpr uint32_t kGetppid = SYS_getppid;
constexpr uint32_t kGetppid32 = 64;
constexpr int kFiltered = 95;

// A kernel without IA32 emulation, as ours is, has no 32-bit convention to get round by: the instruction is a
// fault.
constexpr int kNoEntry = 128 + SIGSEGV;
bool Has32() {
  const int status = Try(DefaultConfig("/", {"x"}), Entry::kInt80, kGetppid32);
  REQUIRE((status == 0 || status == kNoEntry));
  return status == 0;
}

TEST_CASE("escape 24: a call that a profile refuses is refused by every calling convention") {
  const Json plain = DefaultConfig("/", {"x"});
  REQUIRE(Try(plain, Entry::kSyscall, kGetppid) == 0);
  const bool has_32 = Has32();
  for (const bool no_new_privileges : {true, false}) {
    for (const bool both : {true, false}) {
      CAPTURE(no_new_privileges);
      CAPTURE(both);
      Json config = plain;
      config["process"]["noNewPrivileges"] = no_new_privileges;
      config["linux"]["seccomp"] = {
          {"defaultAction", "SCMP_ACT_ALLOW"},
          {"architectures",
           both ? Json{"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"} : Json{"SCMP_ARCH_X86_64"}},
          {"syscalls", {{{"names", {"getppid"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", kFiltered}}}}};
      CHECK(Try(config, Entry::kSyscall, kGetppid) == kFiltered);
      // Of an architecture that the profile does not name, no call is possible.
      const int other = Try(config, Entry::kSyscall, kGetppid | kX32);
      CHECK(other == (both ? kFiltered : 128 + SIGSYS));
      const int allowed_32 = both ? kFiltered : 128 + SIGSYS;
      CHECK(Try(config, Entry::kInt80, kGetppid32) == (has_32 ? allowed_32 : kNoEntry));
    }
  }
}

TEST_CASE("escape 24: no exec of a container is outside its profile") {
  Json config = DefaultConfig(EngineMachine::Get().MakeRoot("calls-exec"), {"sleep", "1000"});
  const std::string root = config["root"]["path"];
  REQUIRE(base::ReplaceFile(root + "/call", Program(Entry::kSyscall, kGetppid, 0, 0), 0755));
  config["linux"]["seccomp"] = {
      {"defaultAction", "SCMP_ACT_ALLOW"},
      {"syscalls", {{{"names", {"getppid"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", kFiltered}}}}};
  RunningContainer running;
  REQUIRE(running.Create(config, NextId()));
  REQUIRE(running.Start());
  for (const char* text : {R"({"args": ["/call"]})", R"({"args": ["/call"], "noNewPrivileges": false})",
                           R"({"args": ["/call"], "user": {"uid": 5}})"}) {
    const auto process = engine::ParseProcess(text, *running.container->spec.process);
    REQUIRE(process);
    auto child = EngineMachine::Get().engine().Exec(
        *running.container, *process,
        {.stdio = {running.null.get(), running.null.get(), running.null.get()}, .deadline_ns = In(10)});
    REQUIRE_MESSAGE(child, child.error().ToString());
    REQUIRE(child->Start(In(10)));
    CHECK(Reap(child->pidfd()) == kFiltered);
  }
}

TEST_CASE(
    "escape 21: no calling convention gets a container a vsock socket, with all capabilities and no "
    "profile") {
  Json config = DefaultConfig("/", {"x"});
  GiveCapabilities(config, {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_RAWIO"});
  config["process"]["noNewPrivileges"] = false;
  std::erase_if(config["linux"]["namespaces"].get_ref<Json::array_t&>(),
                [](const Json& ns) { return ns["type"] == "network"; });
  const auto guarded = [&](Entry entry, uint32_t number, uint32_t first = 0) {
    return Try(config, entry, number, first, SOCK_STREAM, false);
  };
  constexpr uint32_t kSocket32 = 359;
  constexpr uint32_t kSocketcall32 = 102;
  constexpr uint32_t kUringSetup = 425;                        // in both conventions
  CHECK(guarded(Entry::kSyscall, SYS_socket, AF_UNIX) > 200);  // a descriptor
  CHECK(guarded(Entry::kSyscall, SYS_socket, AF_VSOCK) == EAFNOSUPPORT);
  CHECK(guarded(Entry::kSyscall, SYS_socket | kX32, AF_VSOCK) == ENOSYS);
  CHECK(guarded(Entry::kSyscall, kUringSetup) == ENOSYS);
  CHECK(guarded(Entry::kSyscall, kUringSetup | kX32) == ENOSYS);
  const int refused_32 = Has32() ? ENOSYS : kNoEntry;
  CHECK(guarded(Entry::kInt80, kSocket32, AF_VSOCK) == refused_32);
  CHECK(guarded(Entry::kInt80, kSocketcall32, 1) == refused_32);
  CHECK(guarded(Entry::kInt80, kUringSetup) == refused_32);
}

}  // namespace
}  // namespace gcs::test
