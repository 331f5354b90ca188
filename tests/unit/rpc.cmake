# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_transport)
  gcs_test(transport_test KIND unit SOURCES transport_test.cc LINK gcs_transport)
endif()
if(TARGET gcs_guest)
  gcs_test(guest_journal_test KIND unit
           SOURCES guest_journal_test.cc guest_info_test.cc guest_sysctl_test.cc guest_tar_test.cc guest_turn_test.cc guest_exit_test.cc LINK gcs_guest)
endif()
if(TARGET gcs_rpc)
  gcs_test(rpc_test KIND unit SOURCES rpc_request_cache_test.cc rpc_status_test.cc LINK gcs_rpc gcs_init)
endif()
# The real program on one side and the full run time of protobuf on the other: generated code for the lite run time has the
# same symbols, so the two meet through a socket only.
if(TARGET gcs AND TARGET host_api)
  set(dir ${CMAKE_CURRENT_BINARY_DIR}/rpc_proto)
  set(proto ${CMAKE_SOURCE_DIR}/agent/rpc/proto)
  set(reflection grpc/reflection/v1alpha/reflection)
  add_custom_command(
    OUTPUT ${dir}/${reflection}.pb.cc ${dir}/${reflection}.grpc.pb.cc
    COMMAND ${CMAKE_COMMAND} -E make_directory ${dir}
    COMMAND ${PROTOC} -I ${proto} --cpp_out=${dir} --grpc_out=${dir} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN}
            ${proto}/${reflection}.proto
    DEPENDS ${proto}/${reflection}.proto VERBATIM)
  gcs_test(rpc_server_test KIND unit TIMEOUT 300 SOURCES rpc_server_test.cc rpc_reflection_test.cc
           ${dir}/${reflection}.pb.cc ${dir}/${reflection}.grpc.pb.cc LINK gcs_base host_api -labsl_synchronization)
  target_include_directories(rpc_server_test SYSTEM PRIVATE ${dir})
  target_compile_definitions(rpc_server_test PRIVATE
    GCS_PROGRAM="$<TARGET_FILE:gcs>" GCS_VERSION="${PROJECT_VERSION}")
  add_dependencies(rpc_server_test gcs)
endif()
