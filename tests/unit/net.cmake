# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_net)
  gcs_test(unit_net KIND unit SOURCES net_text_test.cc LINK gcs_net)
endif()
