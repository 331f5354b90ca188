# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  gcs_test(system_engine KIND system TIMEOUT 300
           SOURCES engine_test.cc engine_namespaces_test.cc engine_hooks_test.cc engine_process_test.cc LINK gcs_engine)
endif()
