# SPDX-License-Identifier: Apache-2.0
if(TARGET host_vsock_fake)
  gcs_test(host_vsock_test KIND unit SOURCES ${CMAKE_CURRENT_LIST_DIR}/host_vsock_device_test.cc
           ${CMAKE_CURRENT_LIST_DIR}/host_vsock_hostile_test.cc ${CMAKE_CURRENT_LIST_DIR}/host_vsock_packet_test.cc
           LINK host_vsock_fake)
endif()
