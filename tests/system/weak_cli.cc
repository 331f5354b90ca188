// SPDX-License-Identifier: Apache-2.0
// What gcs-oci itself does against escapes, left out by name; see weak.h.
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "engine/cli/cli.h"
#include "engine/cli/sealed.h"
#include "system/weak.h"

namespace gcs::test {

using base::Result;

int RealSealed(int socket) asm("__real__ZN3gcs3oci18BecomeSealedZygoteEi");
int WeakSealed(int socket) asm("__wrap__ZN3gcs3oci18BecomeSealedZygoteEi");
int WeakSealed(int socket) {
  if (!Weak("sealed")) return RealSealed(socket);
  execl("/proc/self/exe", oci::kZygoteName, static_cast<char*>(nullptr));
  return -errno;
}

Result<oci::UserIds> RealUser(const std::string& text) asm(
    "__real__ZN3gcs3oci9ParseUserERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE");
Result<oci::UserIds> WeakUser(const std::string& text) asm(
    "__wrap__ZN3gcs3oci9ParseUserERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE");
Result<oci::UserIds> WeakUser(const std::string& text) {
  if (!Weak("user")) return RealUser(text);
  // As crun had it (CVE-2026-30892).
  return oci::UserIds{.uid = static_cast<uint32_t>(strtoul(text.c_str(), nullptr, 10)), .gid = {}};
}

bool RealValidId(std::string_view id) asm(
    "__real__ZN3gcs6engine7ValidIdESt17basic_string_viewIcSt11char_traitsIcEE");
bool WeakValidId(std::string_view id) asm(
    "__wrap__ZN3gcs6engine7ValidIdESt17basic_string_viewIcSt11char_traitsIcEE");
bool WeakValidId(std::string_view id) { return Weak("ids") || RealValidId(id); }

}  // namespace gcs::test
