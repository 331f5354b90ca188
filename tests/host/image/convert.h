// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "host/image/blob_store.h"
#include "host/image/digest.h"
#include "host/image/image.h"

namespace gcs::host {

struct ConvertedLayer {
  uint64_t bytes = 0;
  uint64_t dropped = 0;
};

// The conversion itself, without cache: reads `blob` to its end, compares the tar stream with `diff_id` (not
// when `check_diff_id` is off: fuzzing), and only then writes the disk to the empty file `out`. `scratch_dir`
// takes the file data in between. `progress` hears phase, done and total.
base::Result<ConvertedLayer> ConvertBlob(
    const Blob& blob, const Digest& diff_id, bool check_diff_id, int out, const std::string& scratch_dir,
    const ImageLimits& limits, const std::function<void(LayerProgress::Phase, uint64_t, uint64_t)>& progress);

// Compares size and digest of a stored blob with what its descriptor promised.
base::Result<> VerifyBlob(const Blob& blob, const Digest& digest, uint64_t size,
                          const std::function<void(uint64_t)>& on_bytes);

}  // namespace gcs::host
