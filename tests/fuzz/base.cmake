# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_base)
  gcs_fuzz(base_json_string SOURCES base_json_string_fuzz.cc LINK gcs_base nlohmann_json::nlohmann_json)
  gcs_fuzz(base_paths SOURCES base_paths_fuzz.cc LINK gcs_base)
  gcs_fuzz(base_procfs SOURCES base_procfs_fuzz.cc LINK gcs_base)
endif()
