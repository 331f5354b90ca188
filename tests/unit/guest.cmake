# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_guest AND TARGET gcs_init)
  gcs_test(guest_keep_test KIND unit TIMEOUT 180 SOURCES guest_keep_test.cc guest_restore_test.cc LINK gcs_guest gcs_init)
endif()
