# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_storage)
  gcs_test(unit_storage KIND unit SOURCES storage_disk_test.cc storage_dirs_test.cc storage_ext4_test.cc storage_job_test.cc
           storage_request_test.cc storage_uevent_test.cc LINK gcs_storage)
endif()
