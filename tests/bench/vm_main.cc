// SPDX-License-Identifier: Apache-2.0
// The sections that need the virtual machine; see README.md.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <map>
#include <string>

#include "bench/vm.h"

int main(int argc, char** argv) {
  using gcs::bench::VmBenchOptions;
  const std::map<std::string, gcs::base::Result<> (*)(const VmBenchOptions&)> sections = {
      {"boot", gcs::bench::BenchBoot},
      {"rpc", gcs::bench::BenchRpc},
      {"stdio", gcs::bench::BenchStdio},
      {"scale", gcs::bench::BenchScale}};
  VmBenchOptions options;
  std::string section;
  CLI::App app("The product's image in a virtual machine (GCS_IMAGE_DIR)");
  app.add_option("section", section)->required()->check(CLI::IsMember(sections));
  app.add_option("--boots", options.boots)->check(CLI::PositiveNumber);
  app.add_option("--calls", options.calls)->check(CLI::PositiveNumber);
  app.add_option("--containers", options.containers)->check(CLI::PositiveNumber);
  app.add_option("--mib", options.mebibytes)->check(CLI::PositiveNumber);
  app.add_option("--idle", options.idle, "containers for the agent's memory")->check(CLI::PositiveNumber);
  app.add_option("--many", options.many, "containers for scale, at least --idle")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  signal(SIGPIPE, SIG_IGN);
  if (const auto done = sections.at(section)(options); !done) {
    fprintf(stderr, "bench_vm: %s: %s\n", section.c_str(), done.error().ToString().c_str());
    return 1;
  }
  return 0;
}
