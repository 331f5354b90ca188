// SPDX-License-Identifier: Apache-2.0
#include "engine/spec.h"

#include <sched.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/clock.h"
#include "engine/spec_read.h"

namespace gcs::engine {

using base::Json;
using base::JsonReader;
using base::Result;

std::optional<int64_t> ReadNamed(JsonReader& reader, const char* key, std::span<const NamedNumber> names) {
  const std::string name = reader.RequiredString(key);
  const auto found = std::ranges::find(names, name, &NamedNumber::name);
  if (found != names.end()) return found->number;
  reader.Fail(key, "unknown value " + name);
  return std::nullopt;
}

uint64_t ReadFlags(JsonReader& reader, const char* key, std::span<const NamedNumber> names) {
  uint64_t flags = 0;
  for (const std::string& name : reader.Strings(key)) {
    const auto found = std::ranges::find(names, name, &NamedNumber::name);
    if (found == names.end()) {
      reader.Fail(key, "unknown flag " + name);
    } else {
      flags |= static_cast<uint64_t>(found->number);
    }
  }
  return flags;
}

BitMask ReadBitList(JsonReader& reader, const char* key) {
  constexpr uint64_t kMaxBits = 8192;  // of the kernel's largest configurations
  const std::string text = reader.String(key);
  BitMask mask;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end) {
    uint64_t first = 0;
    auto parsed = std::from_chars(at, end, first);
    uint64_t last = first;
    bool good = parsed.ec == std::errc();
    if (good && parsed.ptr != end && *parsed.ptr == '-') {
      parsed = std::from_chars(parsed.ptr + 1, end, last);
      good = parsed.ec == std::errc();
    }
    good = good && first <= last && last < kMaxBits;
    if (good && parsed.ptr != end) {
      good = *parsed.ptr == ',';
      ++parsed.ptr;
      good = good && parsed.ptr != end;
    }
    if (!good) {
      reader.Fail(key, "must be a list of numbers and ranges like 0-3,7");
      return {};
    }
    if (mask.size() <= last / 64) mask.resize(last / 64 + 1);
    for (uint64_t bit = first; bit <= last; ++bit) mask[bit / 64] |= uint64_t{1} << (bit % 64);
    at = parsed.ptr;
  }
  return mask;
}

void Refuse(JsonReader& reader, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (!reader.Has(key)) continue;
    const Json& value = reader.value().at(key);
    const bool empty = (value.is_array() || value.is_object() || value.is_string()) && value.empty();
    const bool blank = value.is_string() && value.get_ref<const std::string&>().empty();
    if (!empty && !blank) reader.Fail(key, "is not supported by this engine", EOPNOTSUPP);
  }
}

namespace {

constexpr std::string_view kStep = "parse config.json";

void ReadMounts(JsonReader& reader, const std::string& bundle, Spec& spec) {
  for (JsonReader& entry : reader.Objects("mounts")) {
    Mount mount{.destination = CleanPath(entry.RequiredString("destination")),
                .type = entry.String("type"),
                .source = entry.String("source"),
                .options = entry.Strings("options")};
    mount.uid_mappings = ReadIdMappings(entry, "uidMappings");
    mount.gid_mappings = ReadIdMappings(entry, "gidMappings");
    const auto bind = [](const std::string& option) { return option == "bind" || option == "rbind"; };
    if (!bundle.empty() && !mount.source.empty() && mount.source[0] != '/' &&
        (mount.type == "bind" || std::ranges::any_of(mount.options, bind))) {
      mount.source = bundle + "/" + mount.source;
    }
    if (mount.uid_mappings.empty() != mount.gid_mappings.empty()) {
      entry.Fail("uidMappings", "and gidMappings go together");
    }
    spec.mounts.push_back(std::move(mount));
  }
  if (spec.mounts.size() > kMaxMounts) reader.Fail("mounts", "more than 1000 mounts", E2BIG);
}

std::vector<Hook> ReadHooks(JsonReader& reader, const char* key) {
  constexpr int64_t kMaxTimeoutSeconds = 86400;
  std::vector<Hook> hooks;
  for (JsonReader& entry : reader.Objects(key)) {
    Hook hook{
        .path = entry.RequiredString("path"), .args = entry.Strings("args"), .env = entry.Strings("env")};
    if (!hook.path.empty() && hook.path[0] != '/') entry.Fail("path", "must be absolute");
    // "timeout ... MUST be greater than zero" if set.
    if (const auto seconds = entry.OptionalInt("timeout", 1, kMaxTimeoutSeconds)) {
      hook.timeout_ns = *seconds * base::kNsPerSec;
    }
    hooks.push_back(std::move(hook));
  }
  constexpr size_t kMaxHooks = 1000;
  if (hooks.size() > kMaxHooks) reader.Fail(key, "more than 1000 hooks", E2BIG);
  return hooks;
}

void CheckNames(JsonReader& reader, Spec& spec) {
  const bool uts = spec.FindNamespace(CLONE_NEWUTS) != nullptr;
  if (!spec.hostname.empty() && !uts) reader.Fail("hostname", "needs a uts namespace");
  if (!spec.domainname.empty() && !uts) reader.Fail("domainname", "needs a uts namespace");
  if (spec.hostname.size() > 64) reader.Fail("hostname", "longer than 64 bytes", ENAMETOOLONG);
  if (spec.domainname.size() > 64) reader.Fail("domainname", "longer than 64 bytes", ENAMETOOLONG);
}

template <typename T>
Result<T> Finish(const JsonReader& reader, T value) {
  if (reader.error()) return std::unexpected(*reader.error());
  return value;
}

}  // namespace

const Namespace* Spec::FindNamespace(int flag) const {
  const auto it = std::ranges::find(namespaces, flag, &Namespace::flag);
  return it == namespaces.end() ? nullptr : &*it;
}

bool Spec::MakesNamespace(int flag) const {
  const Namespace* ns = FindNamespace(flag);
  return ns != nullptr && ns->path.empty();
}

bool ValidId(std::string_view id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '+' || c == '-';
  };
  return !id.empty() && id.size() <= 1024 && allowed(id[0]) &&
         std::ranges::all_of(id, [&](char c) { return allowed(c) || c == '.'; });
}

std::string CleanPath(std::string_view path) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= path.size();) {
    const size_t end = std::min(path.find('/', at), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
    at = end + 1;
  }
  std::string clean;
  for (const std::string_view part : parts) {
    clean += '/';
    clean += part;
  }
  return clean.empty() ? "/" : clean;
}

Result<Spec> ParseSpec(std::string_view config_json, const std::string& bundle) {
  GCS_ASSIGN(const Json document, base::ParseJson(config_json, "config.json"));
  JsonReader reader(document, kStep);
  Spec spec;
  spec.oci_version = reader.RequiredString("ociVersion");
  if (!spec.oci_version.starts_with("1.")) reader.Fail("ociVersion", "must be 1.x, is " + spec.oci_version);
  JsonReader root = reader.Object("root");
  spec.root_path = root.RequiredString("path");
  if (!bundle.empty() && !spec.root_path.empty() && spec.root_path[0] != '/') {
    spec.root_path = bundle + "/" + spec.root_path;
  }
  if (!spec.root_path.empty() && spec.root_path[0] != '/') root.Fail("path", "must be absolute in the guest");
  spec.root_readonly = root.Bool("readonly");
  spec.hostname = reader.String("hostname");
  spec.domainname = reader.String("domainname");
  if (!reader.Has("linux")) reader.Fail("linux", "is required");
  ReadLinux(reader.Object("linux"), spec);
  ReadMounts(reader, bundle, spec);
  if (reader.Has("process")) spec.process = ReadProcess(reader.Object("process"), Process{});
  spec.annotations = reader.StringMap("annotations");
  JsonReader hooks = reader.Object("hooks");
  spec.hooks = {.prestart = ReadHooks(hooks, "prestart"),
                .create_runtime = ReadHooks(hooks, "createRuntime"),
                .create_container = ReadHooks(hooks, "createContainer"),
                .start_container = ReadHooks(hooks, "startContainer"),
                .poststart = ReadHooks(hooks, "poststart"),
                .poststop = ReadHooks(hooks, "poststop")};
  CheckNames(reader, spec);
  CheckSysctls(reader, spec);
  return Finish(reader, std::move(spec));
}

Result<Process> ParseProcess(std::string_view process_json, const Process& defaults) {
  GCS_ASSIGN(const Json document, base::ParseJson(process_json, "process"));
  JsonReader reader(document, "parse process");
  return Finish(reader, ReadProcess(reader, defaults));
}

Result<Resources> ParseResources(std::string_view resources_json) {
  GCS_ASSIGN(const Json document, base::ParseJson(resources_json, "resources"));
  JsonReader reader(document, "parse resources");
  return Finish(reader, ReadResources(reader));
}

}  // namespace gcs::engine
