// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include "init/command_line.h"

using gcs::init::BootConfig;
using gcs::init::EndAction;
using gcs::init::ParseBootConfig;
using gcs::init::SplitCommandLine;
using Words = std::vector<std::string>;

namespace {

BootConfig Parse(std::string_view cmdline, const Words& args = {}) {
  return ParseBootConfig(cmdline, args, "/bin/gcs");
}

}  // namespace

TEST_CASE("an empty command line gives the defaults") {
  const BootConfig config = Parse("");
  CHECK(config.hostname == "lcow");
  CHECK(config.power_off == EndAction::kPowerOff);
  CHECK(config.console.empty());
  CHECK(config.entropy_port == 0);
  CHECK(config.agent == Words{"/bin/gcs"});
  CHECK(config.ignored.empty());
}

TEST_CASE("gcs words become flags of the agent, in their order") {
  const BootConfig config =
      Parse("console=ttyS0 quiet gcs.port=1024 panic=-1 gcs.log-level=debug gcs.verbose gcs.empty=\n");
  CHECK(config.agent == Words{"/bin/gcs", "--port=1024", "--log-level=debug", "--verbose", "--empty="});
  CHECK(config.ignored.empty());
}

TEST_CASE("init keeps its own words") {
  const BootConfig config =
      Parse("gcs.hostname=vm-7.example gcs.poweroff=reboot gcs.console=/bin/sh gcs.port=1");
  CHECK(config.hostname == "vm-7.example");
  CHECK(config.power_off == EndAction::kReboot);
  CHECK(config.console == "/bin/sh");
  CHECK(config.agent == Words{"/bin/gcs", "--port=1"});
  CHECK(Parse("gcs.poweroff=off").power_off == EndAction::kPowerOff);
}

TEST_CASE("words that cannot be a flag or have a bad value are reported and change nothing") {
  for (const std::string word : {"gcs.", "gcs.=x", "gcs.Upper=1", "gcs.under_score", "gcs.-x=1", "gcs.a.b=c",
                                 "gcs.\xc3\xa4=1", "gcs.hostname=", "gcs.hostname=-x", "gcs.hostname=a/b",
                                 "gcs.hostname=.", "gcs.poweroff=", "gcs.poweroff=halt", "gcs.console=sh"}) {
    CAPTURE(word);
    const BootConfig config = Parse("quiet " + word + " gcs.x");
    CHECK(config.ignored == Words{word});
    CHECK(config.agent == Words{"/bin/gcs", "--x"});
    CHECK(config.hostname == "lcow");
    CHECK(config.power_off == EndAction::kPowerOff);
    CHECK(config.console.empty());
  }
  CHECK(Parse("gcs.hostname=" + std::string(64, 'a')).ignored.empty());
  CHECK(Parse("gcs.hostname=" + std::string(65, 'a')).ignored.size() == 1);
}

TEST_CASE(
    "quotes keep spaces together as the kernel does, and words after -- are not taken from the command "
    "line") {
  CHECK(SplitCommandLine("a \"b c\" d=\"e f\"  g\t\"\" -- h \"i\"\n") == Words{"a", "b c", "d=e f", "g", ""});
  CHECK(SplitCommandLine("--") == Words{});
  CHECK(SplitCommandLine("a --") == Words{"a"});
  CHECK(SplitCommandLine("a --b") == Words{"a", "--b"});
  CHECK(SplitCommandLine("\"open end") == Words{"open end"});
  CHECK(Parse("gcs.motd=\"two words\" -- gcs.late=1").agent == Words{"/bin/gcs", "--motd=two words"});
}

TEST_CASE("the command line of the Windows shim starts its command and asks for entropy") {
  const Words args = {"-e",       "1",   "/bin/vsockexec", "-o",  "109", "-e", "109",
                      "/bin/gcs", "-v4", "-log-format",    "json"};
  const BootConfig config =
      Parse("8250_core.nr_uarts=0 panic=-1 quiet gcs.port=7 -- -e 1 /bin/vsockexec", args);
  CHECK(config.entropy_port == 1);
  CHECK(config.agent == Words(args.begin() + 2, args.end()));
  CHECK(config.ignored.empty());
}

TEST_CASE("the debug form of the Windows shim, sh -c, is left to the search path") {
  const BootConfig config = Parse("", {"-e", "1", "sh", "-c", "/bin/gcs -v4 & exec sh"});
  CHECK(config.agent == Words{"sh", "-c", "/bin/gcs -v4 & exec sh"});
}

TEST_CASE("words that the kernel hands on without knowing them do not become the command") {
  const BootConfig config = Parse("nosuchword", {"nosuchword", "-w", "-d", "/bin/sh", "-e", "70000000000"});
  CHECK(config.agent == Words{"/bin/gcs"});
  CHECK(config.console == "/bin/sh");
  CHECK(config.entropy_port == 0);
  CHECK(config.ignored == Words{"nosuchword", "-w", "-e 70000000000"});
  CHECK(Parse("", {"-e"}).ignored == Words{"-e"});
  CHECK(Parse("", {"-e", "x1"}).entropy_port == 0);
  CHECK(Parse("", {"-e", "1x"}).entropy_port == 0);
}
