# SPDX-License-Identifier: Apache-2.0
if(TARGET host_client)
  # The one file: the rest of the library is gRPC.
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(FUZZ_CLIENT_EXT2FS REQUIRED IMPORTED_TARGET ext2fs)
  gcs_fuzz(client_users SOURCES client_users_fuzz.cc ${CMAKE_SOURCE_DIR}/tests/host/client/users.cc
           LINK gcs_base PkgConfig::FUZZ_CLIENT_EXT2FS)
endif()
