# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_guest)
  gcs_test(system_guest KIND system TIMEOUT 300 SOURCES guest_containers_test.cc guest_copy_test.cc guest_sysctl_test.cc engine_view_v2.cc
           LINK gcs_guest)
endif()
# The real program on one side and the full run time of protobuf on the other, as in tests/unit/rpc.cmake. Static, since a
# dynamic one is full of what it must not open.
if(TARGET gcs AND TARGET host_api AND GCS_STATIC)
  gcs_test(system_runtime_files KIND system SOURCES runtime_files_test.cc LINK gcs_base host_api -labsl_synchronization)
  target_compile_definitions(system_runtime_files PRIVATE GCS_PROGRAM="$<TARGET_FILE:gcs>")
  add_dependencies(system_runtime_files gcs)
endif()
