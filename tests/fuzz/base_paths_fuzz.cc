// SPDX-License-Identifier: Apache-2.0
// Paths of a hostile image: whatever path is asked for below a root that holds links out of it, what is
// opened or made lies inside, and no descriptor is left open.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "base/fd.h"
#include "base/paths.h"

namespace {

using gcs::base::Fd;

[[noreturn]] void Fail(const std::string& what) {
  fprintf(stderr, "%s\n", what.c_str());
  abort();
}

// A directory of two: root/ with links that point out of it, and outside/, which must stay empty.
class Place {
 public:
  Place() {
    char name[] = "/tmp/gcs-fuzz.XXXXXX";
    if (mkdtemp(name) == nullptr) Fail("mkdtemp");
    path_ = name;
    std::filesystem::create_directory(path_ + "/outside");
    Reset();
  }
  ~Place() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  void Reset() {
    std::filesystem::remove_all(path_ + "/root");
    std::filesystem::create_directories(path_ + "/root/d/e");
    std::filesystem::create_symlink("../outside", path_ + "/root/l");
    std::filesystem::create_symlink(path_ + "/outside", path_ + "/root/a");
    std::filesystem::create_symlink("../../outside/new", path_ + "/root/d/n");
    std::filesystem::create_symlink("/d", path_ + "/root/s");
    root_.Reset(open((path_ + "/root").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!root_) Fail("open root");
  }

  [[nodiscard]] int root() const { return root_.get(); }

  void Check(int fd, const char* step) const {
    if (!std::filesystem::is_empty(path_ + "/outside")) Fail(std::string(step) + " made something outside");
    if (fd < 0) return;
    const std::string opened = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd));
    const std::string root = path_ + "/root";
    if (opened != root && !opened.starts_with(root + "/")) Fail(std::string(step) + " opened " + opened);
  }

 private:
  std::string path_;
  Fd root_;
};

int LowestFree() {
  const Fd probe(dup(2));
  return probe.get();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Place place;
  static unsigned count = 0;
  if (++count % 256 == 0) place.Reset();  // what earlier inputs made takes part for a while
  const std::string path(std::string_view(reinterpret_cast<const char*>(data), size));
  const int before = LowestFree();
  char leaf[NAME_MAX + 1];
  {
    const Fd opened(gcs::base::OpenInRoot(place.root(), path.c_str(), O_PATH));
    place.Check(opened.get(), "OpenInRoot");
    const Fd parent(gcs::base::OpenParentInRoot(place.root(), path.c_str(), 0, leaf));
    place.Check(parent.get(), "OpenParentInRoot");
    if (parent && std::string_view(leaf).find('/') != std::string_view::npos) Fail("the leaf is a path");
    const Fd file(gcs::base::CreateFileInRoot(place.root(), path.c_str(), 0644));
    place.Check(file.get(), "CreateFileInRoot");
    const Fd made(gcs::base::MkdirAllInRoot(place.root(), path.c_str(), 0755));
    place.Check(made.get(), "MkdirAllInRoot");
  }
  if (LowestFree() != before) Fail("a descriptor was left open");
  return 0;
}
