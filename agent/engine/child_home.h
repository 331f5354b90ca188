// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string_view>

namespace gcs::engine {

// The home directory of `uid` in the text of an /etc/passwd (passwd(5)), part of `passwd`; empty: it has
// none. The first line of the uid counts. Allocates nothing: the child process calls it.
std::string_view HomeOf(std::string_view passwd, uint32_t uid) noexcept;

}  // namespace gcs::engine
