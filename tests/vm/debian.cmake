# SPDX-License-Identifier: Apache-2.0
# System tests inside the VM, in a small Debian: debian/README.md.
if(NOT TARGET gcs-oci OR GCS_SANITIZE)
  return() # The image has no sanitizer's run time.
endif()
# gcs_debian_test(NAME TARGETS t... ARGUMENTS a...): NAME.run in the build directory builds the targets and calls debian/run.
function(gcs_debian_test name)
  cmake_parse_arguments(A "" "" "TARGETS;ARGUMENTS" ${ARGN})
  list(JOIN A_TARGETS " " targets)
  list(JOIN A_ARGUMENTS " " arguments)
  file(
    GENERATE
    OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${name}.run
    CONTENT "#!/bin/sh\n${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target ${targets} >&2 || exit 1\nexec ${CMAKE_CURRENT_SOURCE_DIR}/debian/run --gcs-oci $<TARGET_FILE:gcs-oci> ${arguments} \"$@\"\n"
    FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
endfunction()
gcs_debian_test(engine_vm TARGETS gcs-oci system_engine ARGUMENTS --program $<TARGET_FILE:system_engine> --seconds 750)
gcs_debian_test(podman_vm TARGETS gcs-oci ARGUMENTS --script podman_test.py --seconds 1150)
