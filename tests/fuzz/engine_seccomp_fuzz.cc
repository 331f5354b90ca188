// SPDX-License-Identifier: Apache-2.0
// A seccomp section to a filter: any bytes either give an error that names a step, or a program that the
// kernel's checker takes, whose jumps stay inside and whose every path ends with an answer.
#include <linux/filter.h>
#include <linux/seccomp.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "engine/seccomp.h"

namespace {

void Wrong(const char* what, size_t at) {
  fprintf(stderr, "instruction %zu: %s\n", at, what);
  abort();
}

// What bpf_check_classic and seccomp_check_filter of the kernel refuse.
void CheckProgram(const std::vector<sock_filter>& program) {
  if (program.empty() || program.size() > BPF_MAXINSNS) Wrong("too many or none", program.size());
  for (size_t at = 0; at < program.size(); ++at) {
    const sock_filter& insn = program[at];
    const size_t left = program.size() - at - 1;  // behind this one
    switch (BPF_CLASS(insn.code)) {
      case BPF_JMP:
        if (BPF_OP(insn.code) == BPF_JA ? insn.k >= left : insn.jt >= left || insn.jf >= left)
          Wrong("jumps out", at);
        break;
      case BPF_LD:
        if (insn.code == (BPF_LD | BPF_W | BPF_ABS) && (insn.k >= sizeof(seccomp_data) || insn.k % 4 != 0)) {
          Wrong("loads from elsewhere", at);
        }
        break;
      case BPF_RET:
        if (BPF_RVAL(insn.code) != BPF_K) Wrong("returns no constant", at);
        break;
      default:
        break;
    }
  }
  if (BPF_CLASS(program.back().code) != BPF_RET) Wrong("does not end", program.size() - 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gcs;
  const auto json = base::ParseJson({reinterpret_cast<const char*>(data), size}, "seccomp");
  if (!json) return 0;
  const auto filter = engine::CompileSeccomp(*json);
  if (!filter) {
    if (filter.error().step.empty() || filter.error().err == 0) abort();
    return 0;
  }
  if (filter->code.size() % sizeof(sock_filter) != 0) Wrong("is cut", filter->code.size());
  std::vector<sock_filter> program(filter->code.size() / sizeof(sock_filter));
  memcpy(program.data(), filter->code.data(), filter->code.size());
  CheckProgram(program);
  // A listener is asked for if and only if there is one to send it to.
  const bool listens = (filter->flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) != 0;
  if (listens == filter->listener_path.empty())
    Wrong("listener without a path, or a path without a listener", 0);
  if (listens && filter->listener_path[0] != '/') Wrong("a relative listener", 0);
  return 0;
}
