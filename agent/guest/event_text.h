// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "guest/journal.h"

namespace gcs::guest {

// Events and exit records as text, for the next life of the agent.
std::string EncodeEvent(const Event& event);
base::Result<Event> DecodeEvent(std::string_view text);

base::Json ExitToJson(const ExitStatus& exit);
ExitStatus ExitFromJson(base::JsonReader& reader);  // errors are the reader's

}  // namespace gcs::guest
