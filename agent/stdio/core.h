// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "stdio/input.h"
#include "stdio/output.h"
#include "stdio/process_io.h"

namespace gcs::stdio {

// What ProcessIo and its Sessions share. Descriptors, their readiness and timers belong to the loop's thread;
// rings, readers and flags are guarded by the mutex, under which the pumps run. Callbacks to the outside run
// without the mutex.
class Core final : public Host, public std::enable_shared_from_this<Core> {
 public:
  Core(base::Loop* loop, const Config& config);

  // Before any other thread knows of it.
  base::Result<ChildFds> MakePipes(Config& config);
  base::Result<> Restore(std::map<Part, base::Fd>& parts);

  // Any thread.
  base::Result<> AttachTerminal(base::Fd master);
  base::Result<> Resize(uint32_t width, uint32_t height);
  base::Result<std::unique_ptr<Session>> Attach(AttachOptions options);
  void Detach(uint64_t session);
  base::Result<OutputChunk> Read(uint64_t session, Stream stream, size_t max);
  base::Result<> Ack(uint64_t session, Stream stream, uint64_t offset);
  base::Result<uint64_t> WriteStdin(uint64_t session, uint64_t offset, std::string_view data, bool close);
  StdinState Stdin() const;
  OutputState StateOf(Stream stream) const;
  bool terminal() const { return terminal_; }
  base::Result<std::vector<std::pair<Part, base::Fd>>> Parts() const;

  // Loop thread.
  void Start();
  void Resume();  // in its place, after Restore
  void ProcessExited(std::function<void()> drained);
  void Shutdown();

  // Host.
  base::Loop* loop() override { return loop_; }
  const std::string& name() const override { return name_; }
  void Pump() override;
  void PumpSoon() override;  // any thread, with or without the mutex
  void PumpAfterPause() override;
  void Closed(Part part) override;

 private:
  using Wake = std::shared_ptr<const std::function<void()>>;
  struct Client {
    uint64_t id;
    Wake wake;
  };

  void WatchTerminal();
  void TellDrained();
  Output* Find(Stream stream);
  void CollectWakes(bool in, bool out, bool err, std::vector<Wake>& wakes) const;
  base::Result<> SetWindowSize();

  base::Loop* const loop_;
  const std::string name_;
  const bool terminal_;
  const int64_t drain_limit_ns_;
  const std::function<void(Part)> closed_;

  mutable std::mutex mutex_;
  Input in_;
  Output out_;
  Output err_;
  std::optional<Endpoint> master_;
  uint16_t width_;
  uint16_t height_;
  std::vector<Client> clients_;
  uint64_t next_client_ = 1;
  uint64_t stdin_holder_ = 0;  // 0: nobody
  bool down_ = false;
  bool wake_all_ = false;  // something changed outside the pumps

  std::atomic<bool> pump_posted_ = false;
  // Loop thread only.
  std::function<void()> drained_;
  base::Loop::TimerId drain_timer_ = 0;
  base::Loop::TimerId pause_timer_ = 0;
};

}  // namespace gcs::stdio
