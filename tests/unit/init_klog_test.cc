// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/paths.h"
#include "init/klog.h"

using gcs::base::Fd;
using gcs::init::LineForwarder;
using gcs::init::Priority;
using gcs::init::PriorityOf;

namespace {

// The kernel log replaced by a file, of which each test sees what was added.
class LogFile {
 public:
  LogFile() {
    static const std::string path = [] {
      char name[] = "/tmp/init_klog_test.XXXXXX";
      const int fd = mkstemp(name);
      REQUIRE(fd >= 0);
      close(fd);
      REQUIRE(gcs::init::OpenKernelLog(name));
      return std::string(name);
    }();
    fd_.Reset(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    REQUIRE(fd_);
    lseek(fd_.get(), 0, SEEK_END);
    unlinkable_ = path;
  }
  std::string Added() { return *gcs::base::ReadFd(fd_.get(), unlinkable_, 1 << 20); }
  ~LogFile() = default;

 private:
  Fd fd_;
  std::string unlinkable_;
};

void Put(int fd, const std::string& text) {
  REQUIRE(write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
}

}  // namespace

TEST_CASE("a line's first word tells its priority") {
  CHECK(PriorityOf("error cannot mount") == Priority::kError);
  CHECK(PriorityOf("warning slow disk") == Priority::kWarning);
  CHECK(PriorityOf("debug") == Priority::kDebug);
  CHECK(PriorityOf("info started") == Priority::kInfo);
  CHECK(PriorityOf("errors are values") == Priority::kInfo);
  CHECK(PriorityOf("") == Priority::kInfo);
}

TEST_CASE("a program's output reaches the kernel log line by line") {
  LogFile log;
  LineForwarder output("gcs");
  REQUIRE(output.Open());
  Put(output.write_fd(), "info one\nerror two\nthr");
  output.Pump();
  CHECK(log.Added() == "<6>gcs: info one\n<3>gcs: error two\n");
  Put(output.write_fd(), "ee\n\n");
  output.Pump();
  CHECK(log.Added() == "<6>gcs: three\n<6>gcs: \n");
  Put(output.write_fd(), "no end");
  output.Pump();
  CHECK(log.Added().empty());
  output.Flush();
  CHECK(log.Added() == "<6>gcs: no end\n");
  output.Pump();  // nothing there: returns at once
  CHECK(log.Added().empty());
}

TEST_CASE("a line longer than a kernel log record is cut into records and loses no byte") {
  LogFile log;
  LineForwarder output("gcs");
  REQUIRE(output.Open());
  const std::string line = "error " + std::string(2500, 'x');
  Put(output.write_fd(), line + "\n");
  output.Pump();
  const std::string added = log.Added();
  std::string joined;
  for (size_t at = 0, end; (end = added.find('\n', at)) != std::string::npos; at = end + 1) {
    CHECK(end - at < 1024);
    REQUIRE(added.substr(at, 8) == "<3>gcs: ");
    joined += added.substr(at + 8, end - at - 8);
  }
  CHECK(joined == line);
}

TEST_CASE("output without any newline does not pile up in init") {
  LogFile log;
  LineForwarder output("gcs");
  REQUIRE(output.Open());
  size_t put = 0;
  for (int i = 0; i < 20; ++i) {
    Put(output.write_fd(), std::string(1000, 'y'));
    put += 1000;
    output.Pump();
  }
  output.Flush();
  const std::string added = log.Added();
  CHECK(static_cast<size_t>(std::count(added.begin(), added.end(), 'y')) == put);
}
