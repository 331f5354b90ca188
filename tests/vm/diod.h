// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

extern char** environ;

namespace gcs::test {

// Debian's 9P server for one directory, ended with the object.
class Diod {
 public:
  Diod(const std::string& directory, const std::string& socket, const std::string& log) {
    std::vector<std::string> words = {"/usr/sbin/diod", "--foreground", "--no-auth", "--export", directory,
                                      "--listen",       socket,         "--logdest", log};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    REQUIRE(posix_spawn(&pid_, argv[0], nullptr, nullptr, argv.data(), environ) == 0);
    for (int i = 0; i < 500 && access(socket.c_str(), F_OK) != 0; ++i) usleep(10'000);
    REQUIRE(access(socket.c_str(), F_OK) == 0);
  }
  ~Diod() {
    kill(pid_, SIGTERM);
    kill(pid_, SIGCONT);
    waitpid(pid_, nullptr, 0);
  }
  Diod(const Diod&) = delete;
  Diod& operator=(const Diod&) = delete;

  void Signal(int signal) const { kill(pid_, signal); }

 private:
  pid_t pid_ = -1;
};

}  // namespace gcs::test
