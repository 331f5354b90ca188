// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <string_view>

#include "system/engine_support.h"

namespace gcs::test {

namespace {

CgroupView View() {
  const char* name = getenv("GCS_TEST_VIEW");
  return name != nullptr && std::string_view(name) == "v1" ? CgroupView::kV1 : CgroupView::kV2;
}

}  // namespace

extern const CgroupView kCgroupView = View();

}  // namespace gcs::test
