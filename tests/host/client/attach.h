// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "gcs/v1/stdio.pb.h"
#include "host/client/client.h"

namespace gcs::host {

struct AttachOptions {
  std::string container_id;
  std::string process_id;  // "": the first process
  bool in = false;
  bool out = true;
  bool err = true;
  // Bytes of an output in order, each once; called on the session's thread. Until it returns nothing is
  // acknowledged, so that a slow reader slows the process. Bytes that the agent no longer has (a drop-oldest
  // ring) are skipped and counted.
  std::function<void(v1::Stream stream, std::string_view data)> on_output;
};

// The standard streams of a process, over any number of connections: what one that broke had not delivered or
// taken is sent again by offset on the next. Calls from any thread.
class AttachSession {
 public:
  // Returns when the agent has accepted the attachment.
  static CallResult<std::unique_ptr<AttachSession>> Open(Client& client, AttachOptions options);
  ~AttachSession();  // lets go of the streams; the process goes on
  AttachSession(const AttachSession&) = delete;
  AttachSession& operator=(const AttachSession&) = delete;

  // Waits while 256 KiB are on their way. False: the process takes no more input, or the session has ended.
  bool Write(std::string_view data);
  // Half-close behind everything written.
  void CloseStdin();
  // The next attempts use it too.
  void Resize(uint32_t width, uint32_t height);

  // Until every output has ended (or the session has failed). ETIMEDOUT; 0: no limit.
  CallResult<> WaitOutputs(int64_t timeout_ms);

  [[nodiscard]] bool terminal() const;
  [[nodiscard]] uint64_t reconnects() const;
  [[nodiscard]] uint64_t lost_bytes() const;  // skipped in gaps

 private:
  struct State;
  explicit AttachSession(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace gcs::host
