# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_base)
  gcs_test(base_test KIND unit TIMEOUT 60
           SOURCES base_error_test.cc base_executor_test.cc base_log_test.cc base_loop_test.cc base_paths_test.cc
                   base_procfs_test.cc
           LINK gcs_base nlohmann_json::nlohmann_json)
endif()
