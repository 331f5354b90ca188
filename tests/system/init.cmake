# SPDX-License-Identifier: Apache-2.0
# The programs run on an empty root: static ones only, which sanitizers cannot be.
if(TARGET gcs_init AND NOT GCS_SANITIZE)
  gcs_program(init_standin SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/init/standin.cc LINK gcs_base)
  gcs_program(init_for_test SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/init/init_for_test.cc LINK gcs_init)
  target_link_options(init_standin PRIVATE -static-pie)
  target_link_options(init_for_test PRIVATE -static-pie)
  gcs_test(system_init KIND system TIMEOUT 120 SOURCES init_test.cc LINK gcs_base)
  target_compile_definitions(system_init PRIVATE INIT_FOR_TEST="$<TARGET_FILE:init_for_test>"
                                                 INIT_STANDIN="$<TARGET_FILE:init_standin>")
  add_dependencies(system_init init_standin init_for_test)
  # The whole image with the stand-in for the agent, under QEMU.
  file(
    GENERATE
    OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/init_vm.run
    CONTENT "#!/bin/sh\n${CMAKE_COMMAND} --build ${CMAKE_BINARY_DIR} --target init_standin >&2 || exit 1\nexec ${CMAKE_SOURCE_DIR}/tests/vm/init_test.py --standin $<TARGET_FILE:init_standin>\n"
    FILE_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
endif()
