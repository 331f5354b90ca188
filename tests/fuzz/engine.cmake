# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  foreach(name cgroup_files config passwd plan seccomp)
    gcs_fuzz(engine_${name} SOURCES engine_${name}_fuzz.cc LINK gcs_engine)
  endforeach()
endif()
