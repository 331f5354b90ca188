# SPDX-License-Identifier: Apache-2.0
if(TARGET host_image)
  gcs_test(host_image_test KIND unit TIMEOUT 180
           SOURCES ${CMAKE_SOURCE_DIR}/tests/unit/host_image_convert_test.cc
                   ${CMAKE_SOURCE_DIR}/tests/unit/host_image_hostile_test.cc
                   ${CMAKE_SOURCE_DIR}/tests/unit/host_image_layout_test.cc
           LINK host_image)
endif()
