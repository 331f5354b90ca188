# SPDX-License-Identifier: Apache-2.0
# Writes OUTPUT, the definitions of version.h, if they have changed. GCS_COMMIT in the environment stands for git where the
# sources are no repository.
set(commit "$ENV{GCS_COMMIT}")
if(commit STREQUAL "")
  execute_process(COMMAND git -C ${SOURCE} rev-parse HEAD OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE
                  ERROR_QUIET RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    set(commit "unknown")
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT [[
// Generated.
#include "gcs/version.h"

namespace gcs {

const char* const kVersion = "@VERSION@";
const char* const kCommit = "@commit@";
const char* const kInputHash = "@INPUT_HASH@";

}  // namespace gcs
]] @ONLY)
