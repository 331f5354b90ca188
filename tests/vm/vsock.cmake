# SPDX-License-Identifier: Apache-2.0
# The guest is static, which no sanitizer build is.
if(TARGET host_vm AND GCS_STATIC)
  gcs_program(vsock-guest SOURCES ${CMAKE_CURRENT_LIST_DIR}/vsock_guest/main.cc LINK Threads::Threads)
  gcs_test(vm_vsock_test KIND vm TIMEOUT 300 SOURCES ${CMAKE_CURRENT_LIST_DIR}/vsock_test.cc LINK host_vm)
  target_compile_definitions(vm_vsock_test PRIVATE VSOCK_GUEST="$<TARGET_FILE:vsock-guest>")
  add_dependencies(vm_vsock_test vsock-guest)
endif()
