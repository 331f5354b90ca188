// SPDX-License-Identifier: Apache-2.0
#include "system/engine_support.h"

namespace gcs::test {

extern const CgroupView kCgroupView = CgroupView::kV1;

}  // namespace gcs::test
