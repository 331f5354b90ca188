# SPDX-License-Identifier: Apache-2.0
if(TARGET host_image)
  gcs_test(system_host_image KIND system SOURCES host_image_mount_test.cc LINK host_image)
endif()
