# SPDX-License-Identifier: Apache-2.0
# The whole: client, agent, kernel. The guest is static, which no sanitizer build is.
if(TARGET host_client AND GCS_STATIC)
  gcs_program(guest_probe SOURCES ${CMAKE_CURRENT_LIST_DIR}/guest_probe.cc LINK Threads::Threads)
  # vm_support.h: one VM per test program.
  add_library(vm_support STATIC ${CMAKE_CURRENT_LIST_DIR}/vm_support.cc)
  target_include_directories(vm_support PUBLIC ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(vm_support PUBLIC host_client doctest::doctest nlohmann_json::nlohmann_json)
  target_compile_definitions(vm_support PRIVATE GUEST_PROBE="$<TARGET_FILE:guest_probe>")
  add_dependencies(vm_support guest_probe)
  gcs_test(vm_api_test KIND vm TIMEOUT 600
           SOURCES ${CMAKE_CURRENT_LIST_DIR}/api_test.cc ${CMAKE_CURRENT_LIST_DIR}/config_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/copy_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/limits_test.cc ${CMAKE_CURRENT_LIST_DIR}/pods_test.cc ${CMAKE_CURRENT_LIST_DIR}/streams_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/storage_test.cc ${CMAKE_CURRENT_LIST_DIR}/processes_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/guest_services_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/end_test.cc
           LINK vm_support -labsl_synchronization)
  gcs_test(vm_recovery_test KIND vm TIMEOUT 300 SOURCES ${CMAKE_CURRENT_LIST_DIR}/recovery_test.cc LINK vm_support)
endif()
