// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace gcs::bench {

// The `percent`-th percentile by rank; 0 of nothing.
inline double Percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  const auto rank = static_cast<size_t>(std::lround(static_cast<double>(values.size() - 1) * percent / 100));
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(rank));
  return values[rank];
}
inline double Median(const std::vector<double>& values) { return Percentile(values, 50); }

// Median over the rounds of a[i] / b[i]: both sides of each quotient saw the same load of the machine.
inline double MedianRatio(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) ratios.push_back(a[i] / b[i]);
  return Median(ratios);
}

// A figure of the budget table goes to the file that GCS_BENCH_KEYS names, for `scripts/bench --json`.
inline void Key(const char* name, double value) {
  const char* path = getenv("GCS_BENCH_KEYS");
  if (path == nullptr) return;
  FILE* file = fopen(path, "ae");
  if (file == nullptr || fprintf(file, "%s %.6g\n", name, value) < 0 || fclose(file) != 0) {
    fprintf(stderr, "bench: write %s: %m\n", path);
    exit(1);
  }
}

// One row of a section's table.
inline void Row(const char* what, const std::string& value, const std::string& comparison = "",
                const std::string& target = "") {
  printf("  %-34s %16s  %-40s %s\n", what, value.c_str(), comparison.c_str(), target.c_str());
  fflush(stdout);
}
inline void Head(const char* section) {
  printf("%s\n", section);
  Row("", "value", "compared with", "target");
}

inline std::string Number(double value, const char* unit, int digits = 2) {
  char text[64];
  snprintf(text, sizeof text, "%.*f%s%s", digits, value, *unit == '\0' ? "" : " ", unit);
  return text;
}

}  // namespace gcs::bench
