// SPDX-License-Identifier: Apache-2.0
#include "rpc/convert.h"

#include <utility>
#include <variant>

#include "stdio/process_io.h"

namespace gcs::rpc {

namespace {

template <typename... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};

bool Continues(const std::string& text, size_t at, size_t length) {
  if (at + length > text.size()) return false;
  for (size_t k = 1; k < length; ++k) {
    if ((static_cast<unsigned char>(text[at + k]) & 0xc0) != 0x80) return false;
  }
  return true;
}

base::Result<guest::StreamRequest> StreamFrom(const gcs::v1::StreamSpec& stream, const char* object) {
  guest::StreamRequest out;
  switch (stream.mode()) {
    case gcs::v1::StreamSpec::MODE_NULL:
      out.mode = stdio::Mode::kNull;
      break;
    case gcs::v1::StreamSpec::MODE_STREAM:
      out.mode = stdio::Mode::kStream;
      break;
    case gcs::v1::StreamSpec::MODE_VSOCK:
      out.mode = stdio::Mode::kSocket;
      if (stream.port() == 0)
        return base::MakeError(EINVAL, "check stdio", object, "MODE_VSOCK needs a port");
      break;
    default:
      return base::MakeError(EINVAL, "check stdio", object, "unknown mode " + std::to_string(stream.mode()));
  }
  if (stream.port() != 0 && out.mode != stdio::Mode::kSocket) {
    return base::MakeError(EINVAL, "check stdio", object, "a port without MODE_VSOCK");
  }
  out.port = stream.port();
  return out;
}

}  // namespace

base::Result<guest::StdioRequest> FromProto(const gcs::v1::StdioSpec& stdio) {
  guest::StdioRequest out;
  GCS_ASSIGN(out.in, StreamFrom(stdio.stdin(), "stdio.stdin"));
  GCS_ASSIGN(out.out, StreamFrom(stdio.stdout(), "stdio.stdout"));
  GCS_ASSIGN(out.err, StreamFrom(stdio.stderr(), "stdio.stderr"));
  switch (stdio.overflow()) {
    case gcs::v1::StdioSpec::OVERFLOW_BLOCK:
      out.overflow = stdio::Overflow::kBlock;
      break;
    case gcs::v1::StdioSpec::OVERFLOW_DROP_OLDEST:
      out.overflow = stdio::Overflow::kDropOldest;
      break;
    default:
      return base::MakeError(EINVAL, "check stdio", "stdio.overflow", std::to_string(stdio.overflow()));
  }
  out.ring_bytes = stdio.ring_bytes();
  return out;
}

std::string ToUtf8(std::string text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    size_t length = 0;
    if (lead < 0x80) {
      length = 1;
    } else if (lead >= 0xc2 && lead < 0xe0) {
      length = 2;
    } else if (lead >= 0xe0 && lead < 0xf0) {
      // Neither overlong forms nor surrogates.
      length = (lead == 0xe0 && next < 0xa0) || (lead == 0xed && next >= 0xa0) ? 0 : 3;
    } else if (lead >= 0xf0 && lead < 0xf5) {
      length = (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next >= 0x90) ? 0 : 4;
    }
    if (length > 0 && Continues(text, i, length)) {
      i += length;
    } else {
      text[i++] = '?';
    }
  }
  return text;
}

void SetExit(gcs::v1::ExitStatus* out, const guest::ExitStatus& exit) {
  out->set_exit_code(exit.exit_code);
  out->set_signal(exit.signal);
  out->set_oom_killed(exit.oom_killed);
  out->set_started_at_ns(exit.started_at_ns);
  out->set_exited_at_ns(exit.exited_at_ns);
  out->set_user_time_ns(exit.user_time_ns);
  out->set_system_time_ns(exit.system_time_ns);
  out->set_max_rss_kib(exit.max_rss_kib);
}

gcs::v1::Event ToProto(const guest::Event& event) {
  gcs::v1::Event out;
  out.set_sequence(event.sequence);
  out.set_time_ns(event.time_ns);
  out.set_container_id(event.container_id);
  out.set_process_id(event.process_id);
  std::visit(
      Overloaded{
          [&](const guest::ContainerCreated& e) { out.mutable_created()->set_pid(e.pid); },
          [&](const guest::ContainerStarted&) { out.mutable_started(); },
          [&](const guest::ProcessExited& e) { SetExit(out.mutable_exited()->mutable_exit(), e.exit); },
          [&](const guest::ContainerOom& e) { out.mutable_oom()->set_kills(e.kills); },
          [&](const guest::ContainerPaused&) { out.mutable_paused(); },
          [&](const guest::ContainerResumed&) { out.mutable_resumed(); },
          [&](const guest::ContainerUpdated&) { out.mutable_updated(); },
          [&](const guest::ContainerDeleted&) { out.mutable_deleted(); },
          [&](const guest::ProcessStarted& e) { out.mutable_process_started()->set_pid(e.pid); },
          [&](const guest::DeviceChanged& e) {
            out.mutable_device()->set_added(e.added);
            out.mutable_device()->set_device(e.device);
          },
          [&](const guest::ClockStepped& e) { out.mutable_clock()->set_step_ns(e.step_ns); },
          [&](const guest::AgentStarted& e) { out.mutable_agent_started()->set_restarts(e.restarts); },
          [&](const guest::EventGap& e) { out.mutable_gap()->set_lost(e.lost); },
      },
      event.body);
  return out;
}

base::Result<std::vector<std::pair<std::string, std::string>>> LabelsFromProto(
    const google::protobuf::Map<std::string, std::string>& labels, std::string_view step) {
  constexpr size_t kMaxLabelBytes = 64 << 10;
  std::vector<std::pair<std::string, std::string>> out;
  size_t bytes = 0;
  for (const auto& [key, value] : labels) {
    out.emplace_back(key, value);
    bytes += key.size() + value.size();
  }
  if (bytes > kMaxLabelBytes) return base::MakeError(EINVAL, step, "labels", "more than 64 KiB");
  return out;
}

}  // namespace gcs::rpc
