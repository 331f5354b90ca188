# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  foreach(name cgroup_files config passwd plan seccomp)
    gcs_fuzz(engine_${name} SOURCES engine_${name}_fuzz.cc LINK gcs_engine)
  endforeach()
endif()
if(TARGET gcs_oci_options)
  gcs_fuzz(oci_options SOURCES oci_options_fuzz.cc LINK gcs_oci_options)
endif()
