# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_net)
  gcs_test(system_net KIND system SOURCES net_device_test.cc net_interface_test.cc net_interface_undo_test.cc LINK gcs_net)
endif()
