# SPDX-License-Identifier: Apache-2.0
if(TARGET host_client)
  gcs_test(host_client_test KIND unit
           SOURCES ${CMAKE_CURRENT_LIST_DIR}/host_client_config_test.cc ${CMAKE_CURRENT_LIST_DIR}/host_client_users_test.cc
                   ${CMAKE_CURRENT_LIST_DIR}/host_client_link_test.cc
           LINK host_client nlohmann_json::nlohmann_json)
endif()
