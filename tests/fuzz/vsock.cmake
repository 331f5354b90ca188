# SPDX-License-Identifier: Apache-2.0
if(TARGET host_vsock)
  gcs_fuzz(vsock_packet SOURCES vsock_packet_fuzz.cc LINK host_vsock)
endif()
