// SPDX-License-Identifier: Apache-2.0
#include "engine/cgroup_bpf.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <ranges>
#include <string>

namespace gcs::engine {

namespace {

// Registers of the program: the context's three words, put together once so that a rule for one device is one
// comparison. The verifier's time grows faster than the number of branches.
enum Register : uint8_t {
  kResult = 0,
  kContext = 1,
  kType = 2,    // BPF_DEVCG_DEV_*
  kAccess = 3,  // BPF_DEVCG_ACC_*
  kMajor = 4,   // the major number and kType: see MajorKey
  kDevice = 5,  // kMajor and, in the lower half, the minor number
  kScratch = 6
};
constexpr int kTypeBits = 4;

uint32_t MajorKey(char type, uint32_t major) {
  return major << kTypeBits | static_cast<uint32_t>(type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR);
}

bpf_insn Load(Register to, int offset) {
  return {.code = BPF_LDX | BPF_MEM | BPF_W,
          .dst_reg = to,
          .src_reg = kContext,
          .off = static_cast<int16_t>(offset),
          .imm = 0};
}
bpf_insn Alu(uint8_t op, Register to, int32_t value) {
  return {.code = static_cast<uint8_t>(BPF_ALU | op | BPF_K),
          .dst_reg = to,
          .src_reg = 0,
          .off = 0,
          .imm = value};
}
bpf_insn Alu(uint8_t op, Register to, Register from, uint8_t width = BPF_ALU) {
  return {
      .code = static_cast<uint8_t>(width | op | BPF_X), .dst_reg = to, .src_reg = from, .off = 0, .imm = 0};
}
bpf_insn JumpUnless(uint8_t op, Register left, int32_t value) {
  return {.code = static_cast<uint8_t>(BPF_JMP | op | BPF_K),
          .dst_reg = left,
          .src_reg = 0,
          .off = 0,
          .imm = value};
}

void Return(std::vector<bpf_insn>& program, bool allow) {
  program.push_back(Alu(BPF_MOV, kResult, allow ? 1 : 0));
  program.push_back({.code = BPF_JMP | BPF_EXIT, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = 0});
}

// Whether it decides every request, so that nothing behind it can be reached (which the verifier refuses).
bool AddRule(std::vector<bpf_insn>& program, const DeviceRule& rule) {
  if (rule.type == 'a' && (rule.major || rule.minor)) {
    for (const char type : {'b', 'c'}) {
      DeviceRule one = rule;
      one.type = type;
      AddRule(program, one);
    }
    return false;
  }
  // The kernel has 12 bits of it.
  if (rule.major.value_or(0) > UINT32_MAX >> kTypeBits) return false;
  std::vector<size_t> to_next;  // jumps to the rule that follows
  const auto unless = [&](bpf_insn jump) {
    to_next.push_back(program.size());
    program.push_back(jump);
  };
  const uint32_t major = MajorKey(rule.type, rule.major.value_or(0));
  if (rule.major && rule.minor) {
    program.push_back({.code = BPF_LD | BPF_IMM | BPF_DW,
                       .dst_reg = kScratch,
                       .src_reg = 0,
                       .off = 0,
                       .imm = static_cast<int32_t>(*rule.minor)});
    program.push_back({.code = 0, .dst_reg = 0, .src_reg = 0, .off = 0, .imm = static_cast<int32_t>(major)});
    unless({.code = BPF_JMP | BPF_JNE | BPF_X, .dst_reg = kDevice, .src_reg = kScratch, .off = 0, .imm = 0});
  } else if (rule.major) {
    program.push_back(Alu(BPF_MOV, kScratch, static_cast<int32_t>(major)));
    unless({.code = BPF_JMP | BPF_JNE | BPF_X, .dst_reg = kMajor, .src_reg = kScratch, .off = 0, .imm = 0});
  } else if (rule.type != 'a') {
    unless(JumpUnless(BPF_JNE, kType, rule.type == 'b' ? BPF_DEVCG_DEV_BLOCK : BPF_DEVCG_DEV_CHAR));
    if (rule.minor) {
      program.push_back(Alu(BPF_MOV, kScratch, kDevice));
      program.push_back(Alu(BPF_XOR, kScratch, static_cast<int32_t>(*rule.minor)));
      unless(JumpUnless(BPF_JNE, kScratch, 0));
    }
  }
  const int32_t access = (rule.read ? BPF_DEVCG_ACC_READ : 0) | (rule.write ? BPF_DEVCG_ACC_WRITE : 0) |
                         (rule.mknod ? BPF_DEVCG_ACC_MKNOD : 0);
  constexpr int32_t kAll = BPF_DEVCG_ACC_READ | BPF_DEVCG_ACC_WRITE | BPF_DEVCG_ACC_MKNOD;
  if (access != kAll) {
    program.push_back(Alu(BPF_MOV, kScratch, kAccess));
    program.push_back(Alu(BPF_AND, kScratch, rule.allow ? ~access & kAll : access));
    unless(JumpUnless(rule.allow ? BPF_JNE : BPF_JEQ, kScratch, 0));
  }
  Return(program, rule.allow);
  for (const size_t at : to_next) program[at].off = static_cast<int16_t>(program.size() - at - 1);
  return to_next.empty();
}

long Bpf(int command, bpf_attr& attr) { return syscall(SYS_bpf, command, &attr, sizeof attr); }

}  // namespace

std::vector<DeviceRule> DefaultDeviceRules() {
  std::vector<DeviceRule> rules;
  const auto allow = [&](char type, std::optional<uint32_t> major, std::optional<uint32_t> minor, bool use) {
    rules.push_back({.allow = true,
                     .type = type,
                     .major = major,
                     .minor = minor,
                     .read = use,
                     .write = use,
                     .mknod = true});
  };
  allow('c', {}, {}, false);
  allow('b', {}, {}, false);
  for (const uint32_t minor : {3, 5, 7, 8, 9}) allow('c', 1, minor, true);
  allow('c', 5, 0, true);     // tty
  allow('c', 5, 1, true);     // console
  allow('c', 5, 2, true);     // ptmx
  allow('c', 136, {}, true);  // pts
  allow('c', 10, 200, true);  // net/tun
  return rules;
}

std::vector<bpf_insn> DeviceProgram(const std::vector<DeviceRule>& rules) {
  constexpr int32_t kUpper = 32;
  std::vector<bpf_insn> program{
      Load(kType, offsetof(bpf_cgroup_dev_ctx, access_type)),
      Alu(BPF_MOV, kAccess, kType),
      Alu(BPF_AND, kType, 0xffff),
      Alu(BPF_RSH, kAccess, 16),
      Load(kMajor, offsetof(bpf_cgroup_dev_ctx, major)),
      Alu(BPF_LSH, kMajor, kTypeBits),
      Alu(BPF_OR, kMajor, kType),
      Alu(BPF_MOV, kDevice, kMajor),
      {.code = BPF_ALU64 | BPF_LSH | BPF_K, .dst_reg = kDevice, .src_reg = 0, .off = 0, .imm = kUpper},
      Load(kScratch, offsetof(bpf_cgroup_dev_ctx, minor)),
      Alu(BPF_OR, kDevice, kScratch, BPF_ALU64),
  };
  const std::vector<DeviceRule> defaults = DefaultDeviceRules();
  // From the last rule to the first: the first that matches here decides.
  for (const DeviceRule& rule : std::views::reverse(defaults)) AddRule(program, rule);
  for (const DeviceRule& rule : std::views::reverse(rules)) {
    if (AddRule(program, rule)) return program;
  }
  Return(program, false);
  return program;
}

namespace {

// Loaded programs by their instructions. Verifying one and freeing it again costs a fifth of a container, and
// nearly all containers have the same; any number of cgroups may share one.
class LoadedPrograms {
 public:
  base::Result<std::shared_ptr<const base::Fd>> Get(const std::vector<bpf_insn>& program) {
    const std::string key(reinterpret_cast<const char*>(program.data()), program.size() * sizeof(bpf_insn));
    const std::lock_guard lock(mutex_);
    if (const auto found = programs_.find(key); found != programs_.end()) return found->second;
    bpf_attr load{};
    load.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE;
    load.insns = reinterpret_cast<uint64_t>(program.data());
    load.insn_cnt = static_cast<uint32_t>(program.size());
    load.license = reinterpret_cast<uint64_t>("Apache-2.0");
    auto fd = std::make_shared<base::Fd>(static_cast<int>(Bpf(BPF_PROG_LOAD, load)));
    if (!fd->valid()) {
      return base::ErrnoError("load device filter", {}, std::to_string(program.size()) + " instructions");
    }
    if (programs_.size() >= kMaxEntries) programs_.clear();  // those in use stay with their cgroups
    programs_.emplace(key, fd);
    return fd;
  }

 private:
  static constexpr size_t kMaxEntries = 32;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const base::Fd>> programs_;
};

// The first program that is attached to `dir`; null if none is.
base::Result<std::shared_ptr<const base::Fd>> Attached(int dir, const std::string& path) {
  uint32_t ids[8];
  bpf_attr query{};
  query.query.target_fd = static_cast<uint32_t>(dir);
  query.query.attach_type = BPF_CGROUP_DEVICE;
  query.query.prog_ids = reinterpret_cast<uint64_t>(ids);
  query.query.prog_cnt = std::size(ids);
  if (Bpf(BPF_PROG_QUERY, query) != 0) return base::ErrnoError("query device filter", path);
  if (query.query.prog_cnt == 0) return nullptr;
  bpf_attr open{};
  open.prog_id = ids[0];
  auto fd = std::make_shared<base::Fd>(static_cast<int>(Bpf(BPF_PROG_GET_FD_BY_ID, open)));
  if (!fd->valid()) return base::ErrnoError("open device filter", path);
  return fd;
}

}  // namespace

base::Result<> DeviceFilter::Set(int dir, const std::string& path, const std::vector<DeviceRule>& rules) {
  static LoadedPrograms loaded;
  auto program = loaded.Get(DeviceProgram(rules));
  if (!program) {
    program.error().object = path;
    return std::unexpected(std::move(program.error()));
  }
  if (unknown_) {
    GCS_ASSIGN(program_, Attached(dir, path));
    unknown_ = false;
  }
  bpf_attr attach{};
  attach.target_fd = static_cast<uint32_t>(dir);
  attach.attach_bpf_fd = static_cast<uint32_t>((*program)->get());
  attach.attach_type = BPF_CGROUP_DEVICE;
  // Several programs on one cgroup are ANDed, so an update must replace the old one, not join it.
  attach.attach_flags = BPF_F_ALLOW_MULTI;
  if (program_ != nullptr) {
    attach.attach_flags |= BPF_F_REPLACE;
    attach.replace_bpf_fd = static_cast<uint32_t>(program_->get());
  }
  if (Bpf(BPF_PROG_ATTACH, attach) != 0) return base::ErrnoError("attach device filter", path);
  program_ = std::move(*program);
  return {};
}

}  // namespace gcs::engine
