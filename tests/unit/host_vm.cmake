# SPDX-License-Identifier: Apache-2.0
if(TARGET host_vm)
  gcs_test(host_vm_test KIND unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/host_vm_accel_test.cc
           ${CMAKE_CURRENT_LIST_DIR}/host_vm_command_test.cc LINK host_vm)
endif()
