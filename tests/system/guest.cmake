# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_guest)
  gcs_test(system_guest KIND system TIMEOUT 300 SOURCES guest_copy_test.cc LINK gcs_guest)
endif()
