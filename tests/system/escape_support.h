// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <linux/fs.h>
#include <sys/syscall.h>

#include <atomic>
#include <string>
#include <thread>
#include <utility>

#include "system/engine_support.h"

namespace gcs::test {

inline int Rounds(int quick, int full) { return getenv("GCS_TEST_FULL") != nullptr ? full : quick; }

// Exchanges two names as fast as it can while it lives.
class Swapper {
 public:
  Swapper(std::string a, std::string b)
      : thread_([this, a = std::move(a), b = std::move(b)] {
          while (!stop_) syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE);
        }) {}
  ~Swapper() {
    stop_ = true;
    thread_.join();
  }
  Swapper(const Swapper&) = delete;
  Swapper& operator=(const Swapper&) = delete;

 private:
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

// A directory on the machine that no container is given, with a file "victim". What an escape can reach in
// these tests is this and nothing else.
struct Outside : TempDir {
  Outside() { Reset(); }
  void Reset() const { REQUIRE(base::ReplaceFile(*this / "victim", "untouched", 0666)); }
  [[nodiscard]] std::string victim() const { return base::ReadFile(*this / "victim").value_or("gone"); }
  // Nothing was made here, and the victim is as it was.
  [[nodiscard]] bool untouched() const {
    const auto names = base::ListDir(path());
    return names && *names == std::vector<std::string>{"victim"} && victim() == "untouched";
  }
};

// For a hook of this kind the container's root is built below the whole of the machine's files (read by the
// child of the zygote), not below the zygote's empty root: where a look-up that goes wrong really arrives.
inline void BuildBelowMachine(base::Json& config) {
  config["hooks"]["createContainer"] = {{{"path", "/bin/true"}}};
}

inline void RemoveMounts(base::Json& config, const std::string& below) {
  std::erase_if(config["mounts"].get_ref<base::Json::array_t&>(), [&](const base::Json& m) {
    const std::string destination = m["destination"];
    return destination == below || destination.starts_with(below + "/");
  });
}

inline void GiveCapabilities(base::Json& config, const std::vector<std::string>& names) {
  for (const char* set : {"bounding", "effective", "permitted"})
    config["process"]["capabilities"][set] = names;
  config["process"]["capabilities"]["ambient"] = base::Json::array();
}

}  // namespace gcs::test
