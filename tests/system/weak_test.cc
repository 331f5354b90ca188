// SPDX-License-Identifier: Apache-2.0
// Each test of an escape can fail: with the engine as it is, it passes; with one precaution left out
// (weak_double.cc), the container escapes to the test's canary and the test says so. escapes.md has the whole
// list.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "base/fd.h"
#include "base/paths.h"

namespace gcs::test {
namespace {

struct Ended {
  int status = -1;
  std::string text;
};

// Runs the cases whose name matches, in a process of its own, with what `weak` names left out.
Ended RunCases(const std::string& cases, const std::string& weak, const std::string& view) {
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  base::Fd out(ends[0]);
  base::Fd in(ends[1]);
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    setenv("GCS_TEST_WEAK", weak.c_str(), 1);
    setenv("GCS_TEST_VIEW", view.c_str(), 1);
    for (const char* name : {"GCS_TEST_FULL", "GCS_TEST_PROGRESS", "GCS_TEST_SKIPS"}) unsetenv(name);
    dup2(in.get(), 1);
    dup2(in.get(), 2);
    const std::string filter = "--test-case=" + cases;
    execl(GCS_WEAKENED, "engine_weakened", filter.c_str(), "--no-colors", static_cast<char*>(nullptr));
    _exit(127);
  }
  in.Reset();
  Ended ended;
  const std::string text = base::ReadFd(out.get(), "output", 64 << 20).value_or("unreadable");
  // The columns of the summary are as wide as the numbers.
  std::ranges::unique_copy(text, std::back_inserter(ended.text),
                           [](char a, char b) { return a == ' ' && b == ' '; });
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ended;
}

// `said`: what must be among the failed checks, the one that tells of the escape.
void FailsWithout(const std::string& weak, const std::string& cases, const std::string& said,
                  const std::string& view = "v2") {
  const Ended whole = RunCases(cases, "", view);
  CHECK_MESSAGE(whole.status == 0, whole.text.substr(0, 3000));
  CHECK_MESSAGE(whole.text.find("test cases: 1 | 1 passed") != std::string::npos, whole.text.substr(0, 3000));
  const Ended weakened = RunCases(cases, weak, view);
  CHECK_MESSAGE(weakened.status != 0, weakened.text.substr(0, 3000));
  CHECK_MESSAGE(weakened.text.find(said) != std::string::npos, weakened.text.substr(0, 3000));
}

TEST_CASE("escape 02: without the dumpable flag the container sees the waiting process") {
  FailsWithout("dumpable", "escape 02: a container sees*", "told == \"\"");
}
TEST_CASE("escape 03: with descriptors left open, the program has them") {
  FailsWithout("descriptors", "escape 03: no descriptor of the engine*", "== 4");
}
TEST_CASE("escape 04: with plain look-ups a mount covers a directory outside") {
  FailsWithout("lookup", "escape 04*", "covered == 0");
}
TEST_CASE("escape 05: with plain look-ups the race makes files outside") {
  FailsWithout("lookup", "escape 05: no file*", "outside.untouched()");
}
TEST_CASE("escape 05: with plain look-ups links make files outside") {
  FailsWithout("lookup", "escape 05: relative*", "outside.untouched()");
}
TEST_CASE("escape 06: with procfs by path a label is lost") {
  FailsWithout("proc", "escape 06: a label is not*", "CHECK_FALSE( created )");
}
TEST_CASE("escape 06: with plain look-ups procfs is mounted through a link") {
  FailsWithout("lookup", "escape 06: procfs and*", "CHECK_FALSE( created )");
}
TEST_CASE("escape 06: without verified inodes a part of procfs is mounted over") {
  FailsWithout("inode", "escape 06: nothing of*", "CHECK_FALSE( created )");
}
TEST_CASE("escape 07: with procfs by path a sysctl goes to the file that a link names") {
  FailsWithout("proc", "escape 07: a sysctl*", "outside.untouched()");
}
TEST_CASE("escape 07: with procfs by path the race is lost") {
  FailsWithout("proc", "escape 07: nor while*", "outside.untouched()");
}
TEST_CASE("escape 07: without verified inodes any directory is a cgroup file system") {
  FailsWithout("inode", "escape 07: files that*", "CHECK_FALSE( opened )");
}
TEST_CASE("escape 08: with the container's null device as cover, the mask is the victim") {
  FailsWithout("cover", "escape 08: a masked*", "outside.untouched()");
}
TEST_CASE("escape 08: without verified inodes the image's null device is anything") {
  FailsWithout("inode", "escape 08: a default*", "refused()");
}
TEST_CASE("escape 09: with plain look-ups the console is made outside") {
  FailsWithout("lookup", "escape 09: /dev/console*", "outside.untouched()");
}
TEST_CASE("escape 09: without verified inodes the image's ptmx is taken") {
  FailsWithout("inode", "escape 09: a pty*", "CHECK_FALSE( created )");
}
TEST_CASE("escape 10: with plain look-ups devices and links are made outside") {
  FailsWithout("lookup", "escape 10: a link as*", "outside.untouched()");
}
TEST_CASE("escape 11: with inheritable capabilities as runc once had them") {
  FailsWithout("inheritable", "escape 11: inheritable*", "CapInh");
}
TEST_CASE("escape 13: with the cgroup's mount writable") {
  FailsWithout("readonly", "escape 13: without a cgroup namespace no file*", "line == \"\"");
  FailsWithout("readonly", "escape 13: without a cgroup namespace no file*", "line == \"\"", "v1");
}
TEST_CASE("escape 13: with the root of the hierarchy") {
  FailsWithout("own-cgroup", "escape 13: without a cgroup namespace only*", "outcome.out");
}
TEST_CASE("escape 14: with the root of a v1 hierarchy its release_agent is there") {
  FailsWithout("own-cgroup", "escape 14*", "/release_agent", "v1");
}
TEST_CASE("escape 15: with lengths of 16 bits strings get mixed up") {
  FailsWithout("lengths", "escape 15: long*", "ERROR");
}
TEST_CASE("escape 16: without setgroups nobody notices that groups are missing") {
  FailsWithout("groups", "escape 16: where*", "CHECK_FALSE( created )");
  FailsWithout("groups", "escape 16: groups*", "8 9 10");
}
TEST_CASE("escape 17: with a file of the engine's in the root") {
  FailsWithout("handler", "escape 17*", "known");
}
TEST_CASE("escape 18: without the list of sysctls others get as far as the kernel") {
  FailsWithout("sysctls", "escape 18: which*", "CHECK_FALSE( spec )");
}
TEST_CASE("escape 19: without the device filter the disk is there to be opened") {
  FailsWithout("devices", "escape 19: no disk*", "Operation not permitted");
}
TEST_CASE("escape 20: with plain look-ups a copy goes where a link of the container leads") {
  FailsWithout("lookup", "escape 20: no name*", "box.outside");
}
TEST_CASE("escape 20: with plain look-ups a copy loses the race") {
  FailsWithout("lookup", "escape 20: a container that swaps*", "Listing(box.outside) == outside");
}
TEST_CASE("escape 21: without the guard there are vsock sockets") {
  FailsWithout("filters", "escape 21: no calling*", "97");
}
TEST_CASE("escape 22: with paths as they are, a cgroup is somewhere else") {
  FailsWithout("paths", "escape 22: a cgroupsPath*", "created");
}
TEST_CASE("escape 22: with ids as they are") { FailsWithout("ids", "escape 22: ids*", "bad container id"); }
TEST_CASE("escape 24: without the filter") {
  FailsWithout("filters", "escape 24: a call*", "== 95");
  FailsWithout("filters", "escape 24: no exec*", "== 95");
}
TEST_CASE("escape 25: by number, a signal reaches another process") {
  FailsWithout("pidfd", "escape 25: a signal after*", "CHECK_FALSE( late )");
}
TEST_CASE("escape 26: without the limits") {
  FailsWithout("limits", "escape 26: a configuration that is too large*", "Refused(");
  FailsWithout("limits", "escape 26: a configuration that is too deep*", "too deep");
  FailsWithout("limits", "escape 26: more*", "Refused(");
}

}  // namespace
}  // namespace gcs::test
