# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_guest)
  gcs_fuzz(guest_tar SOURCES guest_tar_fuzz.cc LINK gcs_guest)
  gcs_fuzz(guest_keep SOURCES guest_keep_fuzz.cc LINK gcs_guest)
endif()
