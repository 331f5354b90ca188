# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  # The same tests on each kind of cgroups. With the full counts, races take minutes.
  add_library(system_engine_cases OBJECT engine_test.cc engine_namespaces_test.cc engine_hooks_test.cc engine_process_test.cc
              engine_cgroup_test.cc engine_seccomp_test.cc
              escape_root_test.cc escape_process_test.cc escape_syscall_test.cc escape_config_test.cc
              engine_net_devices_test.cc engine_intel_rdt_test.cc)
  target_include_directories(system_engine_cases PRIVATE ${CMAKE_SOURCE_DIR}/agent ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(system_engine_cases PRIVATE gcs_engine doctest::doctest)
  gcs_test(system_engine KIND system TIMEOUT 900 SOURCES engine_view_v2.cc LINK system_engine_cases gcs_engine)
  gcs_test(system_engine_v1 KIND system TIMEOUT 900 SOURCES engine_view_v1.cc LINK system_engine_cases gcs_engine)
  gcs_test(system_engine_hybrid KIND system TIMEOUT 900 SOURCES engine_view_hybrid.cc LINK system_engine_cases gcs_engine)
  gcs_test(system_engine_fault KIND system TIMEOUT 600 SOURCES engine_fault_test.cc fault_injector.cc engine_view_v2.cc
           LINK gcs_engine)
  gcs_test(system_engine_fault_v1 KIND system TIMEOUT 600 SOURCES engine_fault_test.cc fault_injector.cc
           engine_view_v1.cc LINK gcs_engine)
  # So that a report names the functions that a call came from.
  set_target_properties(system_engine_fault system_engine_fault_v1 PROPERTIES ENABLE_EXPORTS ON)

  # The same cases once more, where the linker puts weak_double.cc between the engine's objects; system_engine_weak runs it.
  add_executable(engine_weakened engine_view_env.cc weak.cc weak_double.cc ${CMAKE_SOURCE_DIR}/tests/unit/main.cc)
  target_include_directories(engine_weakened PRIVATE ${CMAKE_SOURCE_DIR}/agent ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(engine_weakened PRIVATE system_engine_cases gcs_engine doctest::doctest Threads::Threads)
  if(TARGET gcs_guest)
    target_sources(engine_weakened PRIVATE guest_copy_test.cc)
    target_link_libraries(engine_weakened PRIVATE gcs_guest)
  endif()
  set(view "St17basic_string_viewIcSt11char_traitsIcEE")
  foreach(symbol syscall prctl
          _ZN3gcs4base12OpenResolvedEiPKcmmm
          _ZN3gcs6engine12OpenProcFileEiPKcb
          _ZN3gcs6engine11VerifyInodeEiRKNS0_5InodeE
          _ZN3gcs6engine9CleanPathB5cxx11E${view}
          _ZN3gcs6engine7ValidIdE${view}
          _ZN3gcs6engine12CheckSysctlsERNS_4base10JsonReaderERNS0_4SpecE
          _ZN3gcs4base9ParseJsonB5cxx11E${view}S4_m
          _ZN3gcs4base10JsonReader4FailE${view}S5_i
          _ZN3gcs6engine11PlanBuilder6StringE${view}
          _ZNK3gcs6engine12ChildProcess6SignalEi)
    target_link_options(engine_weakened PRIVATE -Wl,--wrap=${symbol})
  endforeach()
  gcs_test(system_engine_weak KIND system TIMEOUT 600 SOURCES weak_test.cc LINK gcs_base)
  target_compile_definitions(system_engine_weak PRIVATE GCS_WEAKENED="$<TARGET_FILE:engine_weakened>")
  add_dependencies(system_engine_weak engine_weakened)
endif()
# gcs-oci from the same objects, for gcs_oci_escape_test.py.
if(TARGET gcs-oci)
  get_target_property(sources gcs-oci SOURCES)
  list(FILTER sources EXCLUDE REGEX no_loading)  # of a static program
  list(TRANSFORM sources PREPEND ${CMAKE_SOURCE_DIR}/agent/engine/cli/)
  add_executable(gcs-oci-weakened ${sources} weak.cc weak_cli.cc)
  target_include_directories(gcs-oci-weakened PRIVATE ${CMAKE_SOURCE_DIR}/agent ${CMAKE_SOURCE_DIR}/tests)
  target_link_libraries(gcs-oci-weakened PRIVATE gcs_oci_options)
  foreach(symbol _ZN3gcs3oci18BecomeSealedZygoteEi
          _ZN3gcs3oci9ParseUserERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE
          _ZN3gcs6engine7ValidIdESt17basic_string_viewIcSt11char_traitsIcEE)
    target_link_options(gcs-oci-weakened PRIVATE -Wl,--wrap=${symbol})
  endforeach()
endif()
