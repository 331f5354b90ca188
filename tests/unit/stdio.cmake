# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_stdio)
  gcs_test(stdio_test KIND unit TIMEOUT 180
    SOURCES stdio_ring_test.cc stdio_stream_test.cc stdio_relay_test.cc stdio_terminal_test.cc stdio_model_test.cc
    LINK gcs_stdio util)
  # Apart: it forks while it has threads, which the thread sanitizer does not support.
  gcs_test(stdio_restore_test KIND unit TIMEOUT 120 SOURCES stdio_restore_test.cc LINK gcs_stdio util)
endif()
