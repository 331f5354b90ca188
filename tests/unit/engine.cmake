# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  gcs_test(engine_test KIND unit SOURCES engine_spec_test.cc engine_plan_test.cc engine_texts_test.cc engine_intel_rdt_test.cc LINK gcs_engine)
endif()
if(TARGET gcs_oci_options)
  gcs_test(oci_options_test KIND unit TIMEOUT 60 SOURCES oci_options_test.cc LINK gcs_oci_options)
endif()
