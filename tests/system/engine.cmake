# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  # The same tests on each kind of cgroups.
  add_library(system_engine_cases OBJECT engine_test.cc engine_namespaces_test.cc engine_hooks_test.cc engine_process_test.cc
              engine_cgroup_test.cc engine_seccomp_test.cc
              engine_escape_test.cc engine_net_devices_test.cc engine_intel_rdt_test.cc)
  target_include_directories(system_engine_cases PRIVATE ${CMAKE_SOURCE_DIR}/agent ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(system_engine_cases PRIVATE gcs_engine doctest::doctest)
  gcs_test(system_engine KIND system TIMEOUT 300 SOURCES engine_view_v2.cc LINK system_engine_cases gcs_engine)
  gcs_test(system_engine_v1 KIND system TIMEOUT 300 SOURCES engine_view_v1.cc LINK system_engine_cases gcs_engine)
  gcs_test(system_engine_hybrid KIND system TIMEOUT 300 SOURCES engine_view_hybrid.cc LINK system_engine_cases gcs_engine)
endif()
