// SPDX-License-Identifier: Apache-2.0
#include "host/vm/qmp.h"

#include <sys/socket.h>

#include <array>
#include <utility>

#include "base/clock.h"
#include "host/vm/wait.h"
#include "host/vsock/unix_socket.h"

namespace gcs::host {

namespace {
constexpr size_t kMaxLine = 16 << 20;
}

base::Result<QmpClient> QmpClient::Connect(const std::string& path, int64_t timeout_ms) {
  GCS_ASSIGN(base::Fd socket, vsock::ConnectUnix(path));
  QmpClient client(std::move(socket), base::MonotonicNs() + (timeout_ms * base::kNsPerMs));
  GCS_ASSIGN(const nlohmann::json greeting, client.ReadObject());
  if (!greeting.contains("QMP")) return base::MakeError(EPROTO, "qmp greeting", path, greeting.dump());
  GCS_TRY(client.Execute("qmp_capabilities", nlohmann::json::object()));
  return client;
}

base::Result<nlohmann::json> QmpClient::ReadObject() {
  for (;;) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos) {
      auto object =
          nlohmann::json::parse(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(newline), nullptr,
                                /*allow_exceptions=*/false);
      if (!object.is_object()) return base::MakeError(EPROTO, "qmp read", {}, buffer_.substr(0, newline));
      buffer_.erase(0, newline + 1);
      return object;
    }
    if (buffer_.size() > kMaxLine) return base::MakeError(EMSGSIZE, "qmp read");
    GCS_TRY(WaitFd(socket_.get(), POLLIN, deadline_ns_, "qmp read"));
    std::array<char, 16384> chunk;
    const ssize_t n = recv(socket_.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n < 0) return base::ErrnoError("qmp read");
    if (n == 0) return base::MakeError(EPIPE, "qmp read", {}, "QEMU closed its monitor");
    buffer_.append(chunk.data(), n);
  }
}

base::Result<nlohmann::json> QmpClient::Execute(const std::string& command, const nlohmann::json& arguments) {
  nlohmann::json request = {{"execute", command}};
  if (!arguments.empty()) request["arguments"] = arguments;
  // A path may hold any bytes; what is no UTF-8 cannot be said in JSON and QEMU will not find the file.
  const std::string line = request.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  for (size_t done = 0; done < line.size();) {
    GCS_TRY(WaitFd(socket_.get(), POLLOUT, deadline_ns_, "qmp write"));
    const ssize_t n =
        send(socket_.get(), line.data() + done, line.size() - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN && errno != EINTR) return base::ErrnoError("qmp write", command);
    if (n > 0) done += n;
  }
  for (;;) {
    GCS_ASSIGN(nlohmann::json answer, ReadObject());
    if (answer.contains("event")) {
      events_.push_back(std::move(answer));
    } else if (answer.contains("error")) {
      return base::MakeError(EREMOTEIO, "qmp " + command, {}, answer["error"].value("desc", answer.dump()));
    } else if (answer.contains("return")) {
      return answer["return"];
    }
  }
}

base::Result<nlohmann::json> QmpClient::WaitEvent(
    const std::string& name, const std::function<bool(const nlohmann::json& data)>& match) {
  for (size_t at = 0;; ++at) {
    if (at == events_.size()) {
      GCS_ASSIGN(nlohmann::json object, ReadObject());
      events_.push_back(std::move(object));
    }
    const nlohmann::json& event = events_[at];
    if (event.value("event", "") != name) continue;
    nlohmann::json data = event.value("data", nlohmann::json::object());
    if (match(data)) return data;
  }
}

}  // namespace gcs::host
