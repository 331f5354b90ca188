// SPDX-License-Identifier: Apache-2.0
// Static glibc would load shared objects for character sets and name services, by files of whatever root the
// process has: a container's code in the runtime (CVE-2019-14271). These take the place of its loader, so
// that none of that is linked; for every user of theirs nullptr is an error like that of a missing file.
#include <cstddef>

namespace gcs::oci {

void* LoadNothing(const char* file, int mode) asm("__libc_dlopen_mode");
void* LoadNothing(const char* /*file*/, int /*mode*/) { return nullptr; }

void* FindNothing(void* object, const char* name) asm("__libc_dlsym");
void* FindNothing(void* /*object*/, const char* /*name*/) { return nullptr; }

void* FindNoVersion(void* object, const char* name, const char* version) asm("__libc_dlvsym");
void* FindNoVersion(void* /*object*/, const char* /*name*/, const char* /*version*/) { return nullptr; }

int UnloadNothing(void* object) asm("__libc_dlclose");
int UnloadNothing(void* /*object*/) { return 0; }

}  // namespace gcs::oci
