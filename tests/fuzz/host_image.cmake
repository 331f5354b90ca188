# SPDX-License-Identifier: Apache-2.0
if(TARGET host_image)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(FUZZ_EXT2FS REQUIRED IMPORTED_TARGET ext2fs)
  gcs_fuzz(host_image_layer SOURCES image_layer_fuzz.cc LINK host_image PkgConfig::FUZZ_EXT2FS)
endif()
