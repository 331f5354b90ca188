// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <cstdio>
#include <mutex>
#include <string>

#include "host/image/image.h"

namespace gcs::gcsctl {

// A bar on a terminal's stderr; one line per finished layer elsewhere. Any thread.
class Progress {
 public:
  void Layer(const host::LayerProgress& state) {
    using Phase = host::LayerProgress::Phase;
    const std::lock_guard lock(mutex_);
    const bool done = state.phase == Phase::kDone;
    if (state.phase == Phase::kCached) return;
    const std::string head = "layer " + std::to_string(state.index + 1) + "/" + std::to_string(state.count) +
                             " " + state.diff_id.substr(0, 19);
    if (!terminal_) {
      if (done) fprintf(stderr, "gcsctl: %s converted\n", head.c_str());
      return;
    }
    constexpr int kWidth = 30;
    const double part =
        state.total == 0 ? 0 : static_cast<double>(state.done) / static_cast<double>(state.total);
    const int filled = done ? kWidth : static_cast<int>(part * kWidth);
    fprintf(stderr, "\r\033[K%s [%s%s] %s %llu MiB", head.c_str(), std::string(filled, '=').c_str(),
            std::string(kWidth - filled, ' ').c_str(), std::string(host::PhaseName(state.phase)).c_str(),
            static_cast<unsigned long long>(state.done >> 20));
    shown_ = true;
  }
  void Clear() {
    const std::lock_guard lock(mutex_);
    if (shown_) fputs("\r\033[K", stderr);
    shown_ = false;
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  std::mutex mutex_;
  bool shown_ = false;
};

}  // namespace gcs::gcsctl
