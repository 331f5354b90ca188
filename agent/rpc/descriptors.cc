// SPDX-License-Identifier: Apache-2.0
#include "rpc/descriptors.h"

#include <utility>

#include "descriptor_sketch.pb.h"

namespace gcs::rpc {

namespace {

void AddMessage(const sketch::MessageDescriptor& message, const std::string& scope,
                std::vector<std::string>* names) {
  const std::string name = scope + message.name();
  names->push_back(name);
  for (const auto& nested : message.nested_type()) AddMessage(nested, name + ".", names);
  for (const auto& type : message.enum_type()) names->push_back(name + "." + type.name());
}

}  // namespace

base::Result<Descriptors> Descriptors::Parse(std::string_view set) {
  sketch::FileDescriptorSet files;
  if (!files.ParseFromArray(set.data(), static_cast<int>(set.size()))) {
    return base::MakeError(EBADMSG, "parse descriptors");
  }
  Descriptors result;
  for (const std::string& bytes : files.file()) {
    sketch::FileDescriptor file;
    if (!file.ParseFromString(bytes)) return base::MakeError(EBADMSG, "parse descriptors", "file");
    const std::string scope = file.package().empty() ? "" : file.package() + ".";
    std::vector<std::string> names;
    for (const auto& message : file.message_type()) AddMessage(message, scope, &names);
    for (const auto& type : file.enum_type()) names.push_back(scope + type.name());
    for (const auto& service : file.service()) {
      const std::string name = scope + service.name();
      result.services_.insert(name);
      names.push_back(name);
      for (const auto& method : service.method()) names.push_back(name + "." + method.name());
    }
    for (std::string& name : names) result.symbols_.emplace(std::move(name), file.name());
    result.files_.emplace(file.name(), Entry{bytes, {file.dependency().begin(), file.dependency().end()}});
  }
  return result;
}

std::vector<std::string> Descriptors::File(const std::string& name) const {
  std::vector<std::string> found;
  std::set<std::string> seen;
  std::vector<std::string> open = {name};
  while (!open.empty()) {
    const std::string next = std::move(open.back());
    open.pop_back();
    const auto at = files_.find(next);
    if (at == files_.end() || !seen.insert(next).second) continue;
    found.push_back(at->second.bytes);
    open.insert(open.end(), at->second.imports.begin(), at->second.imports.end());
  }
  return found;
}

std::vector<std::string> Descriptors::FileOf(const std::string& symbol) const {
  const auto at = symbols_.find(symbol);
  return at == symbols_.end() ? std::vector<std::string>() : File(at->second);
}

}  // namespace gcs::rpc
