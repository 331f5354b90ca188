# SPDX-License-Identifier: Apache-2.0
if(TARGET gcs_engine)
  gcs_fuzz(engine_config SOURCES engine_config_fuzz.cc LINK gcs_engine)
  gcs_fuzz(engine_plan SOURCES engine_plan_fuzz.cc LINK gcs_engine)
endif()
