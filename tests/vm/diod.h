// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
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
    // It allows itself core files, and Debian's version dies of SIGTERM at times: they go where the test's
    // own files are.
    posix_spawn_file_actions_t actions;
    REQUIRE(posix_spawn_file_actions_init(&actions) == 0);
    REQUIRE(posix_spawn_file_actions_addchdir_np(&actions,
                                                 std::filesystem::path(socket).parent_path().c_str()) == 0);
    REQUIRE(posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
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
