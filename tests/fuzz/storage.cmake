# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_storage)
  gcs_fuzz(fuzz_storage_uevent SOURCES storage_uevent_fuzz.cc LINK gcs_storage)
endif()
