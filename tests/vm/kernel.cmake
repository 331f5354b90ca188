# SPDX-License-Identifier: Apache-2.0
# /init of the kernel's self-check; kernel_selfcheck/run boots it. tests/vm/kernel_selfcheck.run in the build directory
# builds the program and calls run with it.
if(GCS_SANITIZE)
  return() # The program is static, which sanitizers cannot be.
endif()
find_library(GCS_ZLIB_STATIC NAMES libz.a REQUIRED)
add_executable(
  kernel_selfcheck
  kernel_selfcheck/main.cc kernel_selfcheck/item.cc kernel_selfcheck/namespaces.cc kernel_selfcheck/cgroups.cc
  kernel_selfcheck/filesystems.cc kernel_selfcheck/block.cc kernel_selfcheck/crypto.cc kernel_selfcheck/vsock.cc
  kernel_selfcheck/network.cc kernel_selfcheck/syscalls.cc kernel_selfcheck/hardening.cc kernel_selfcheck/machine.cc)
target_include_directories(kernel_selfcheck PRIVATE ${CMAKE_SOURCE_DIR}/agent ${CMAKE_SOURCE_DIR}/tests)
target_link_libraries(kernel_selfcheck PRIVATE gcs_base ${GCS_ZLIB_STATIC})
# It is alone in its image: static also where GCS_STATIC is off.
target_link_options(kernel_selfcheck PRIVATE -static-pie)
file(
  GENERATE
  OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/kernel_selfcheck.run
  CONTENT "#!/bin/sh\n${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target kernel_selfcheck >&2 || exit 1\nexec ${CMAKE_CURRENT_SOURCE_DIR}/kernel_selfcheck/run --init $<TARGET_FILE:kernel_selfcheck> \"$@\"\n"
  FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
