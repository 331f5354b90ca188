// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace gcs::rpc {

// An index of a serialized google.protobuf.FileDescriptorSet. Constant after Parse.
class Descriptors {
 public:
  // EBADMSG if `set` is no such set.
  static base::Result<Descriptors> Parse(std::string_view set);

  // Full names of all services, sorted.
  [[nodiscard]] const std::set<std::string>& services() const { return services_; }
  // Serialized FileDescriptorProtos: the file and all that it imports, itself first. Empty if it isn't there.
  [[nodiscard]] std::vector<std::string> File(const std::string& name) const;
  // The same for the file that defines a service, method, message or enum.
  [[nodiscard]] std::vector<std::string> FileOf(const std::string& symbol) const;
  [[nodiscard]] bool HasSymbol(const std::string& symbol) const { return symbols_.contains(symbol); }

 private:
  struct Entry {
    std::string bytes;
    std::vector<std::string> imports;
  };
  std::map<std::string, Entry> files_;
  std::map<std::string, std::string> symbols_;  // full name to file
  std::set<std::string> services_;
};

}  // namespace gcs::rpc
