// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "base/error.h"

namespace gcs::net {

// The text of a resolv.conf(5). EINVAL, object: "name_servers[1]" and so on: an address that is none (an IPv6
// one may have a "%zone"), a domain or an option with characters that could end the line it is in. E2BIG:
// more than 64 of one kind.
base::Result<std::string> ResolvConf(const std::vector<std::string>& name_servers,
                                     const std::vector<std::string>& search_domains,
                                     const std::vector<std::string>& options);

}  // namespace gcs::net
