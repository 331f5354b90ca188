// SPDX-License-Identifier: Apache-2.0
#include "guest/sysctl.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ranges>
#include <span>
#include <utility>

#include "base/log.h"
#include "base/paths.h"
#include "engine/source_mount.h"

namespace gcs::guest {

namespace {

using base::ErrnoError;
using base::Fd;
using base::MakeError;
using base::Result;

constexpr size_t kMaxNames = 256;
constexpr size_t kMaxNameBytes = 255;
// With its line's end one less than a page: beyond that the kernel cuts lists of numbers off without an
// error.
constexpr size_t kMaxValueBytes = 4094;
constexpr size_t kMaxReadBytes = 16384;
constexpr char kCheck[] = "check sysctl";
constexpr char kSet[] = "set sysctl";

bool Allowed(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
         c == '/' || c == '-';
}

Result<> CheckValue(const std::string& name, std::string_view value) {
  if (value.size() > kMaxValueBytes)
    return MakeError(EINVAL, kCheck, name, "a value of more than 4094 bytes");
  if (value.find_first_of(std::string_view("\n\0", 2)) != std::string_view::npos)
    return MakeError(EINVAL, kCheck, name, "a value of more than one line");
  return {};
}

struct Parameter {
  std::string name;
  Fd fd;
  bool network = false;
  bool readable = true;
  std::string before;
};

Result<Parameter> OpenParameter(int directory, const std::string& name, int flags) {
  GCS_ASSIGN(const std::string path, SysctlPath(name));
  Parameter parameter{.name = name, .fd = {}, .network = path.starts_with("net/"), .before = {}};
  int fd = base::OpenInRoot(directory, path.c_str(), flags);
  // The kernel goes by the mode even with root.
  if (fd == -EACCES && flags == O_RDWR) {
    fd = base::OpenInRoot(directory, path.c_str(), O_WRONLY);
    parameter.readable = false;
  }
  if (fd < 0) return MakeError(-fd, "open sysctl", name);
  parameter.fd.Reset(fd);
  return parameter;
}

// As it stands in the file.
Result<std::string> Read(const Parameter& parameter) {
  if (lseek(parameter.fd.get(), 0, SEEK_SET) != 0) return ErrnoError("read sysctl", parameter.name);
  auto text = base::ReadFd(parameter.fd.get(), parameter.name, kMaxReadBytes);
  if (!text) return MakeError(text.error().err, "read sysctl", parameter.name);
  return text;
}

// `text` ends with a line's end: a write of no bytes would change nothing.
Result<> Write(const Parameter& parameter, const std::string& text) {
  ssize_t written = -1;
  do {
    // kernel.sysctl_writes_strict: at the file's begin, at once.
    written = pwrite(parameter.fd.get(), text.data(), text.size(), 0);
  } while (written < 0 && errno == EINTR);
  if (written < 0) return ErrnoError(kSet, parameter.name);
  if (static_cast<size_t>(written) != text.size())
    return MakeError(EIO, kSet, parameter.name, "a part of the value was written");
  return {};
}

Result<> WriteBack(const Parameter& parameter) {
  if (!parameter.readable) return {};
  const auto now = Read(parameter);
  if (now && *now == parameter.before) return {};
  return Write(parameter, parameter.before.ends_with('\n') ? parameter.before : parameter.before + '\n');
}

}  // namespace

Result<std::string> SysctlPath(std::string_view name) {
  const std::string shown(name.substr(0, kMaxNameBytes));
  if (name.size() > kMaxNameBytes) return MakeError(EINVAL, kCheck, shown, "a name of more than 255 bytes");
  if (!std::ranges::all_of(name, Allowed))
    return MakeError(EINVAL, kCheck, shown, "has other characters than letters, digits and _./-");
  std::string path = shown;
  const size_t separator = path.find_first_of("./");
  if (separator != std::string::npos && path[separator] == '.') {
    for (char& c : path) c = c == '.' ? '/' : c == '/' ? '.' : c;
  }
  for (const auto part : std::views::split(std::string_view(path), '/')) {
    const std::string_view component(part.begin(), part.end());
    if (component.empty() || component == "." || component == "..")
      return MakeError(EINVAL, kCheck, shown, "has a component that is empty, \".\" or \"..\"");
  }
  if (path.empty()) return MakeError(EINVAL, kCheck, shown, "an empty name");
  return path;
}

Result<> Sysctls::Open() {
  if (directory_) return {};
  GCS_ASSIGN(const Fd proc, engine::DetachedProc());
  const int fd = base::OpenInRoot(proc.get(), "sys", O_PATH | O_DIRECTORY);
  if (fd < 0) return MakeError(-fd, "open", "/proc/sys");
  directory_.Reset(fd);
  return {};
}

Result<std::map<std::string, std::string>> Sysctls::Apply(const std::map<std::string, std::string>& set,
                                                          const std::vector<std::string>& get) {
  if (set.size() + get.size() > kMaxNames) return MakeError(EINVAL, kCheck, {}, "more than 256 names");
  for (const auto& [name, value] : set) {
    GCS_TRY(SysctlPath(name));
    GCS_TRY(CheckValue(name, value));
  }
  for (const std::string& name : get) GCS_TRY(SysctlPath(name));
  const std::lock_guard lock(mutex_);
  GCS_TRY(Open());
  std::vector<Parameter> written;
  for (const std::string& name : std::views::keys(set)) {
    GCS_ASSIGN(Parameter parameter, OpenParameter(directory_.get(), name, O_RDWR));
    if (parameter.readable) {
      GCS_ASSIGN(parameter.before, Read(parameter));
    }
    written.push_back(std::move(parameter));
  }
  std::vector<Parameter> asked;
  for (const std::string& name : get) {
    GCS_ASSIGN(Parameter parameter, OpenParameter(directory_.get(), name, O_RDONLY));
    asked.push_back(std::move(parameter));
  }

  size_t touched = 0;
  std::map<std::string, std::string> values;
  Result<> outcome = [&]() -> Result<> {
    for (const auto& [name, value] : set) GCS_TRY(Write(written[touched++], value + '\n'));
    for (const Parameter& parameter : asked) {
      GCS_ASSIGN(std::string text, Read(parameter));
      if (text.ends_with('\n')) text.pop_back();
      values[parameter.name] = std::move(text);
    }
    return {};
  }();
  const auto attempted = std::span(written).first(touched);
  if (!outcome) {
    for (const Parameter& parameter : attempted | std::views::reverse) {
      if (const auto restored = WriteBack(parameter); !restored) {
        base::Log(base::Level::kError, "sysctl not written back", {{"error", restored.error().ToString()}});
        std::string& message = outcome.error().message;
        message += (message.empty() ? "" : "; ") + ("not written back: " + restored.error().ToString());
      }
    }
  }
  if (std::ranges::any_of(attempted, &Parameter::network)) network_changed_();
  if (!outcome) return std::unexpected(std::move(outcome).error());
  return values;
}

}  // namespace gcs::guest
