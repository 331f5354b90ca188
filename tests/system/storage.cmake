# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_storage)
  gcs_test(system_storage KIND system SOURCES storage_disk_test.cc storage_overlay_test.cc storage_share_test.cc
           storage_test.cc LINK gcs_storage)
endif()
if(TARGET gcs-tools)
  gcs_test(system_tools KIND system SOURCES storage_tools_test.cc)
  target_compile_definitions(system_tools PRIVATE GCS_TOOLS="$<TARGET_FILE:gcs-tools>")
  add_dependencies(system_tools gcs-tools)
endif()
