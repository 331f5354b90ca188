// SPDX-License-Identifier: Apache-2.0
// gcs-oci's command line, read and not run.
#include "engine/cli/options.h"

#include <doctest/doctest.h>

namespace gcs::oci {
namespace {

using Words = std::vector<std::string>;

CommandLine Parse(const Words& words) {
  CommandLine line;
  const auto parsed = ParseCommandLine(words, line);
  CAPTURE(words.size());
  REQUIRE_MESSAGE(parsed, parsed.error().ToString());
  return line;
}

std::string Refusal(const Words& words) {
  CommandLine line;
  const auto parsed = ParseCommandLine(words, line);
  return parsed ? "" : parsed.error().ToString();
}

TEST_CASE("what follows exec's id is the program's, and -- ends the flags before it") {
  const Words program{"sh",    "-c", "x",  "--", "--help",   "-t", "",
                      "[a,b]", "{}", "++", "%%", "--user=5", "=",  "list"};
  for (const Words& head :
       {Words{"exec", "-t", "id"}, Words{"exec", "-t", "--", "id"}, Words{"exec", "--tty", "id"},
        Words{"exec", "-tty", "id"}, Words{"exec", "--tty=true", "id"}}) {
    Words words = head;
    words.insert(words.end(), program.begin(), program.end());
    const CommandLine line = Parse(words);
    CHECK(line.exec.id == "id");
    CHECK(line.exec.args == program);
    CHECK(line.exec.tty);
  }
  CHECK(Parse({"exec", "id", "--", "true"}).exec.args == Words{"--", "true"});  // as runc has it
  CHECK(Parse({"exec", "--", "-t", "true"}).exec.id == "-t");
  CHECK(Parse({"exec", "--", "--", "true"}).exec.id == "--");
  CHECK(Parse({"exec", "list", "exec"}).exec.id == "list");
  CHECK(Refusal({"exec"}).find("container-id") != std::string::npos);
  CHECK(Refusal({"exec", "--"}).find("container-id") != std::string::npos);
}

TEST_CASE("flags with values before exec's id") {
  const CommandLine line =
      Parse({"exec", "-e",        "A=b",         "-e=C=d",          "-eE=f", "--env",    "-x=",      "-tu",
             "5:6",  "-pid-file", "/p",          "-preserve-fds=2", "-d",    "--cap",    "CAP_KILL", "-g",
             "7",    "--cwd=/w",  "--apparmor=", "--process-label", "l",     "--cgroup", "/sub",     "id",
             "-x"});
  CHECK(line.exec.env == Words{"A=b", "C=d", "E=f", "-x="});
  CHECK(line.exec.tty);
  CHECK(line.exec.user == "5:6");
  CHECK(line.exec.options.pid_file == "/p");
  CHECK(line.exec.options.preserve_fds == 2);
  CHECK(line.exec.options.detach);
  CHECK(line.exec.capabilities == Words{"CAP_KILL"});
  CHECK(line.exec.additional_gids == std::vector<uint32_t>{7});
  CHECK(line.exec.cwd == "/w");
  CHECK(line.exec.selinux == "l");
  CHECK(line.exec.cgroup == "/sub");
  CHECK(line.exec.id == "id");
  CHECK(line.exec.args == Words{"-x"});
}

TEST_CASE("ps takes the options of ps(1) behind the id") {
  const CommandLine line = Parse({"ps", "-f", "json", "--", "id", "-o", "pid,comm", "--", "aux"});
  CHECK(line.id == "id");
  CHECK(line.format == "json");
  CHECK(line.ps_options == Words{"-o", "pid,comm", "--", "aux"});
  CHECK(Parse({"ps", "id"}).ps_options.empty());
}

TEST_CASE("other commands take flags behind the id, too") {
  CommandLine line =
      Parse({"-root", "/r", "--log=/l", "--log-format", "json", "--debug", "delete", "id", "--force"});
  CHECK(line.command == "delete");
  CHECK(line.id == "id");
  CHECK(line.force);
  CHECK(line.global.root == "/r");
  CHECK(line.global.log == "/l");
  CHECK(line.global.log_format == "json");
  CHECK(line.global.debug);
  line = Parse({"kill", "--all", "--", "id", "9"});
  CHECK(line.all);
  CHECK(line.signal == "9");
  CHECK(Parse({"kill", "id"}).signal == "TERM");
  line = Parse({"run", "-b", "/b", "--no-pivot", "--no-new-keyring", "--no-subreaper", "--keep", "-d", "id"});
  CHECK(line.create.bundle == "/b");
  CHECK((line.create.keep && line.create.no_new_keyring && line.create.process.detach));
  line = Parse({"--root", "/a", "--root", "/b", "delete", "-f", "--force", "id"});
  CHECK(line.global.root == "/b");
  CHECK(line.force);
  CHECK(Parse({"update", "--memory", "1", "--memory", "2", "id"}).update.resources["memory"]["limit"] == 2);
  CHECK(Parse({"events", "--interval", "250ms", "id"}).interval_s == 0.25);
  CHECK(Parse({"update", "--memory", "2m", "-r", "-", "id"}).update.resources.dump() ==
        R"({"memory":{"limit":2097152}})");
}

TEST_CASE("what can't be is refused, and where to tell it is known") {
  for (const Words& words :
       {Words{}, Words{"nonsense"}, Words{"run"}, Words{"run", "--nonsense", "id"}, Words{"state", "a", "b"},
        Words{"run", "--preserve-fds", "-1", "id"}, Words{"exec", "--nonsense", "id"},
        Words{"--log-format", "xml", "list"}, Words{"update", "--memory", "1x", "id"},
        Words{"events", "--interval", "5h", "id"}, Words{"--root"}, Words{std::string("a\0b", 3)}}) {
    CHECK(!Refusal(words).empty());
  }
  for (const auto& [words, why] : std::initializer_list<std::pair<Words, const char*>>{
           {{"--systemd-cgroup", "list"}, "systemd cgroups are not supported"},
           {{"--criu", "x", "list"}, "checkpoint and restore"},
           {{"--rootless", "true", "list"}, "--rootless"},
           {{"spec", "--rootless"}, "without root"},
           {{"update", "--l3-cache-schema", "x", "id"}, "RDT"}}) {
    CHECK(Refusal(words).find(why) != std::string::npos);
  }
  CommandLine line;
  CHECK(!ParseCommandLine({"--log", "/l", "--log-format", "json", "state", "--nonsense", "id"}, line));
  CHECK(line.global.log == "/l");
  CHECK(line.global.log_format == "json");
}

TEST_CASE("help and version are texts") {
  CHECK(Parse({"--version"}).text.find("gcs-oci version") == 0);
  CHECK(Parse({"--help"}).text.find("update") != std::string::npos);
  CHECK(Parse({"exec", "--help"}).text.find("container-id program") != std::string::npos);
  CHECK(Parse({"exec", "-h"}).command.empty());
}

}  // namespace
}  // namespace gcs::oci
