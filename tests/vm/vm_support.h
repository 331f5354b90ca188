// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "host/client/attach.h"
#include "host/client/client.h"
#include "host/client/container.h"
#include "host/client/oci_config.h"
#include "host/vm/vm.h"
#include "support/temp.h"

namespace gcs::test {

// The product's image (GCS_IMAGE_DIR) in a VM. One per test program, booted by the first test that asks and
// kept for the rest.
class TestVm {
 public:
  // Its network adapters, which hang on one wire.
  static constexpr const char* kMacs[] = {"02:00:00:00:00:01", "02:00:00:00:00:02"};
  static TestVm& Get();

  explicit TestVm(host::Machine machine);
  ~TestVm();
  TestVm(const TestVm&) = delete;
  TestVm& operator=(const TestVm&) = delete;

  host::Vm& vm() { return *vm_; }
  host::Client& client() { return *client_; }
  host::GuestStorage& storage() { return *storage_; }
  // Lowest first: the default image's two, the probe's, one with whiteouts.
  [[nodiscard]] const std::vector<std::string>& layers() const { return layers_; }
  [[nodiscard]] const TempDir& dir() const { return dir_; }
  // Breaks the client's connections under it.
  void BreakConnections();

 private:
  TempDir dir_;
  std::vector<std::string> layers_;
  std::unique_ptr<host::Vm> vm_;
  std::mutex mutex_;
  std::vector<base::Fd> connections_;  // duplicates of what the client got
  std::unique_ptr<host::Client> client_;
  std::unique_ptr<host::GuestStorage> storage_;
};

// One container, deleted with everything it owns by the destructor.
class TestContainer {
 public:
  struct Options {
    host::ContainerSettings settings;
    v1::StdioSpec stdio;                     // set by Make: stdout and stderr are streams
    std::function<void(std::string&)> edit;  // of config.json, before Create
    bool allow_vsock = false;
    std::string pod_id;
    uint64_t scratch_bytes = 0;
  };
  static Options Make(std::vector<std::string> args);

  explicit TestContainer(Options options);
  ~TestContainer();
  TestContainer(const TestContainer&) = delete;
  TestContainer& operator=(const TestContainer&) = delete;

  [[nodiscard]] const std::string& id() const { return id_; }
  [[nodiscard]] const host::CallResult<v1::CreateContainerResponse>& created() const { return created_; }
  // REQUIREs success.
  void Start();
  host::CallResult<v1::StartContainerResponse> TryStart();
  v1::ExitStatus Wait(int64_t timeout_ms = 60'000);
  host::CallResult<> Signal(int signal, bool all = false);
  host::CallResult<> Delete();

 private:
  std::string id_;
  std::vector<std::string> owned_;
  host::CallResult<v1::CreateContainerResponse> created_;
  bool deleted_ = false;
};

// Collects what a process prints.
class Output {
 public:
  // `process_id` "": the first process.
  explicit Output(const std::string& container_id, const std::string& process_id = {}, bool in = false,
                  bool err = true);
  // Until the streams' end.
  void Finish(int64_t timeout_ms = 60'000);
  // Until stdout holds `text`.
  bool WaitFor(const std::string& text, int64_t timeout_ms = 30'000);
  [[nodiscard]] std::string out() const;
  [[nodiscard]] std::string err() const;
  host::AttachSession& session() { return *session_; }

 private:
  struct Text {
    std::mutex mutex;
    std::string out, err;
  };
  std::shared_ptr<Text> text_ = std::make_shared<Text>();
  std::unique_ptr<host::AttachSession> session_;
};

struct Ran {
  v1::ExitStatus exit;
  std::string out, err;
};
Ran RunToEnd(TestContainer::Options options, const std::string& input = {}, bool with_input = false);
inline Ran RunToEnd(std::vector<std::string> args) { return RunToEnd(TestContainer::Make(std::move(args))); }

inline std::string Text(const base::Error& error) { return error.ToString(); }
template <typename T>
std::string Why(const T& result) {
  return result ? std::string() : result.error().ToString();
}

// "full" counts by GCS_TEST_FULL.
inline bool Full() { return getenv("GCS_TEST_FULL") != nullptr; }

}  // namespace gcs::test
