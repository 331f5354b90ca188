# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_init)
  gcs_test(unit_init KIND unit TIMEOUT 60 LINK gcs_init
           SOURCES init_backoff_test.cc init_command_line_test.cc init_control_test.cc init_klog_test.cc init_mountinfo_test.cc
                   init_store_test.cc init_table_test.cc)
endif()
