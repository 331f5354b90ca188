// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <google/protobuf/map.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "gcs/v1/common.pb.h"
#include "gcs/v1/events.pb.h"
#include "guest/containers.h"
#include "guest/exit_status.h"
#include "guest/journal.h"
#include "rpc/call.h"

namespace gcs::rpc {

// From the model's types to the API's.
void SetExit(gcs::v1::ExitStatus* out, const guest::ExitStatus& exit);
gcs::v1::Event ToProto(const guest::Event& event);

// `Timings` is anybody's range of {step, duration_ns}.
template <typename Out, typename Timings>
void SetTimings(Out* out, const Timings& timings) {
  for (const auto& timing : timings) {
    gcs::v1::Timing* entry = out->Add();
    entry->set_step(timing.step);
    entry->set_duration_ns(timing.duration_ns);
  }
}

// The labels of a container or a pod: EINVAL above 64 KiB in all.
base::Result<std::vector<std::pair<std::string, std::string>>> LabelsFromProto(
    const google::protobuf::Map<std::string, std::string>& labels, std::string_view step);

// From the API's to the model's: EINVAL for values that the contract doesn't know.
base::Result<guest::StdioRequest> FromProto(const gcs::v1::StdioSpec& stdio);

// Replaces each byte that is no part of well-formed UTF-8 by "?": protobuf's strings must be UTF-8, the
// kernel's need not be.
std::string ToUtf8(std::string text);

// The way of both Wait methods: `done` is a Done of a response with an `exit` field.
template <typename DoneType>
void WaitForExit(guest::Containers* containers, const CallPtr& call, const std::string& container_id,
                 const std::string& process_id, const DoneType& done) {
  const uint64_t wait =
      containers->Wait(container_id, process_id, [done](const base::Result<guest::ExitStatus>& exit) {
        if (!exit) {
          done(std::unexpected(exit.error()));
          return;
        }
        typename DoneType::ResponseType response;
        SetExit(response.mutable_exit(), *exit);
        done(std::move(response));
      });
  call->OnCancel([containers, wait, done] {
    containers->CancelWait(wait);
    done(base::MakeError(ECANCELED, "wait"));
  });
}

}  // namespace gcs::rpc
