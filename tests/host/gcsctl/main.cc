// SPDX-License-Identifier: Apache-2.0
// gcsctl: utility VMs and their containers from the command line of the host. Exit code of `run`, `exec`,
// `attach`: the process's; 125 for a failure of gcsctl's own, 126 and 127 for a program that cannot be
// executed or is not there.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <map>

#include "base/log.h"
#include "host/gcsctl/commands.h"
#include "host/gcsctl/pods.h"
#include "host/gcsctl/run.h"

namespace gcs::gcsctl {
namespace {

const std::map<std::string, host::Machine> kMachines = {{"microvm", host::Machine::kMicrovm},
                                                        {"q35", host::Machine::kQ35}};
const std::map<std::string, host::Accel> kAccels = {
    {"tcg", host::Accel::kTcg}, {"kvm", host::Accel::kKvm}, {"auto", host::Accel::kAuto}};

void AddStartOptions(CLI::App& command, StartOptions& start) {
  command.add_option("--image-dir", start.image_dir, "kernel and initrd: what scripts/build-image prints")
      ->envname("GCS_IMAGE_DIR");
  command.add_option("--vm-memory", start.memory_mib, "memory of the VM in MiB")->capture_default_str();
  command.add_option("--vm-cpus", start.cpus, "its virtual processors")->capture_default_str();
  command.add_option("--machine", start.machine, "microvm or q35")
      ->transform(CLI::CheckedTransformer(kMachines));
  command.add_option("--accel", start.accel, "tcg, kvm or auto (kvm if a trial boot works)")
      ->transform(CLI::CheckedTransformer(kAccels));
  command.add_option("--append", start.append, "more words for the kernel's command line");
}

struct Texts {
  std::string memory, scratch = "tmpfs";
};

// Options that run and exec share.
void AddProcessOptions(CLI::App& command, host::ContainerSettings& settings, bool& interactive,
                       bool& detach) {
  command.add_flag("-i,--interactive", interactive, "connect stdin");
  command.add_flag("-t,--tty", settings.terminal, "give it a terminal");
  command.add_option("-e,--env", settings.env, "NAME=value, or NAME for the caller's own value")
      ->allow_extra_args(false);
  command.add_option("-w,--workdir", settings.cwd, "working directory");
  command.add_flag("-d,--detach", detach, "print the id and leave it running");
}

struct Cli {
  std::string vm = "default";
  bool json = false;
  std::function<int()> act;

  // A command that needs a running VM.
  void Need(CLI::App* command, std::function<int(const Machine&)> work) {
    command->callback([this, work = std::move(work)] {
      act = [this, work] {
        const auto machine = RequireMachine(vm);
        return machine ? work(*machine) : Report(machine.error());
      };
    });
  }
};

void AddVmCommands(CLI::App& app, Cli& cli, StartOptions& start) {
  static bool force = false;
  static uint32_t grace_ms = 0;
  CLI::App* vm = app.add_subcommand("vm", "Start, stop and look at utility VMs");
  vm->require_subcommand(1);
  CLI::App* begin = vm->add_subcommand("start", "Boot a VM and keep it");
  AddStartOptions(*begin, start);
  begin->callback([&] {
    cli.act = [&] {
      start.name = cli.vm;
      return VmStart(start, cli.json);
    };
  });
  CLI::App* stop = vm->add_subcommand("stop", "Shut a VM down");
  stop->add_flag("--force", force, "end QEMU without asking the guest");
  stop->add_option("--grace-ms", grace_ms, "time that processes get between SIGTERM and SIGKILL (0: 2 s)");
  stop->callback([&] { cli.act = [&] { return VmStop(cli.vm, force, grace_ms); }; });
  CLI::App* status = vm->add_subcommand("status", "Tell whether a VM runs (exit code 1: it does not)");
  status->callback([&] { cli.act = [&] { return VmStatus(cli.vm, cli.json); }; });
}

void AddPodCommands(CLI::App& app, Cli& cli, PodOptions& pod, std::vector<std::string>& ids) {
  CLI::App* pods = app.add_subcommand("pod", "Namespaces, /dev/shm and files that containers share");
  pods->require_subcommand(1);
  CLI::App* command = pods->add_subcommand("create", "Make one; containers join it by run --pod");
  command->add_option("--hostname", pod.hostname, "host name in it (default: its id)");
  command->add_flag("--share-pid", pod.share_pid, "its containers see each other's processes");
  command->add_option("--shm-size", pod.shm_size, "size of its /dev/shm, as 64m");
  command->add_option("--sysctl", pod.sysctls, "NAME=VALUE")->allow_extra_args(false);
  command->add_option("POD", pod.id)->required();
  cli.Need(command, [&](const Machine& machine) { return CreatePod(machine, pod); });
  command = pods->add_subcommand("ls", "List them");
  cli.Need(command, [&](const Machine& machine) { return ListPods(machine, cli.json); });
  command = pods->add_subcommand("rm", "Delete those that no container is in");
  command->add_option("POD", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return RemovePods(machine, ids); });
}

void AddNetCommands(CLI::App& app, Cli& cli, InterfaceOptions& net, std::vector<std::string>& words) {
  static std::vector<std::string> domains;
  CLI::App* group = app.add_subcommand("net", "The network of the VM and of pods");
  group->require_subcommand(1);
  const auto add_pod = [&net](CLI::App* command) {
    command->add_option("--pod", net.pod, "of this pod instead of the VM");
  };
  CLI::App* command = group->add_subcommand("ls", "List interfaces");
  add_pod(command);
  cli.Need(command, [&](const Machine& machine) { return ListInterfaces(machine, net.pod, cli.json); });
  command = group->add_subcommand("set", "Make an interface have these addresses and routes, and no others");
  add_pod(command);
  command->add_option("--name", net.name, "new name");
  command->add_option("--mtu", net.mtu, "largest packet in bytes");
  command->add_option("--address", net.addresses, "as 10.0.0.2/24")->allow_extra_args(false);
  command->add_option("--route", net.routes, "DESTINATION[@GATEWAY], as 0.0.0.0/0@10.0.0.1")
      ->allow_extra_args(false);
  command->add_option("INTERFACE", net.interface, "its name or MAC address")->required();
  cli.Need(command, [&](const Machine& machine) { return ConfigureInterface(machine, net, cli.json); });
  command = group->add_subcommand("dns", "Set the name servers");
  add_pod(command);
  command->add_option("--search", domains, "domain of short names")->allow_extra_args(false);
  command->add_option("SERVER", words)->required();
  cli.Need(command, [&](const Machine& machine) { return ConfigureDns(machine, net.pod, words, domains); });
  command = app.add_subcommand("sysctl", "Kernel parameters of the VM");
  command->add_option("NAME[=VALUE]", words)->required();
  cli.Need(command, [&](const Machine& machine) { return Sysctl(machine, words, cli.json); });
}

void AddRun(CLI::App& app, Cli& cli, RunOptions& run, Texts& texts, std::vector<std::string>& places) {
  CLI::App* command = app.add_subcommand("run", "Run a container; without a running VM, in one of its own");
  AddProcessOptions(*command, run.settings, run.interactive, run.detach);
  command->add_option("-v,--volume", run.volumes, "HOST-DIRECTORY:/PATH[:ro], shared by 9P")
      ->allow_extra_args(false);
  CLI::Option* user =
      command->add_option("-u,--user", run.user, "user[:group], names of the image or numbers");
  command->add_option("--memory,-m", texts.memory, "limit, as 512m or 2g");
  command->add_option("--cpus", run.settings.cpus, "limit, as 1.5");
  command->add_option("--pids-limit", run.settings.pids_limit, "most processes and threads");
  command->add_flag("--read-only", run.settings.read_only, "root file system read-only");
  command->add_option("--cap-add", run.settings.cap_add, "capability, or ALL")->allow_extra_args(false);
  command->add_option("--cap-drop", run.settings.cap_drop, "capability, or ALL")->allow_extra_args(false);
  command->add_flag("--no-new-privileges", run.settings.no_new_privileges,
                    "set-user-id programs gain nothing");
  command->add_flag("--privileged", run.settings.privileged, "all capabilities and devices, nothing masked");
  command->add_flag("!--no-seccomp", run.settings.seccomp, "without the default seccomp profile");
  command->add_option("--name", run.name, "id of the container");
  command->add_option("--pod", run.pod, "pod that it joins");
  command->add_option("--hostname", run.settings.hostname, "host name in it (default: its id)");
  CLI::Option* entrypoint =
      command->add_option("--entrypoint", run.entrypoint, "program instead of the image's entrypoint");
  command->add_flag("--rm", run.remove, "delete the container when it has ended");
  command->add_option("--scratch", texts.scratch, "writable layer: tmpfs, or the size of a disk (as 8g)")
      ->capture_default_str();
  command->add_option("--timings", run.timings,
                      "where the time went: - for a table on stderr, else a JSON file");
  AddStartOptions(*command, run.start);
  command->add_option("IMAGE", run.image, "[oci:|oci-archive:|docker-archive:]PATH[:NAME]")->required();
  command->add_option("ARGS", places, "arguments instead of the image's own");
  command->positionals_at_end(true);
  command->callback([&cli, &run, &texts, user, entrypoint] {
    run.has_user = user->count() != 0;
    run.has_entrypoint = entrypoint->count() != 0;
    cli.act = [&cli, &run, &texts] {
      run.vm = cli.vm;
      if (!texts.memory.empty()) {
        const auto bytes = host::ParseSize(texts.memory);
        if (!bytes) return Report(bytes.error());
        run.settings.memory_bytes = *bytes;
      }
      if (texts.scratch != "tmpfs") {
        const auto bytes = host::ParseSize(texts.scratch);
        if (!bytes) return Report(bytes.error());
        run.scratch_bytes = *bytes;
      }
      return Run(run);
    };
  });
}

// Whether the word behind `word`, an option of `command` or of the program, is its value.
bool TakesNext(const CLI::App& command, const std::string& word) {
  const auto has_value = [&command](const std::string& name) {
    const CLI::Option* option = command.get_option_no_throw(name);
    if (option == nullptr && command.get_parent() != nullptr) {
      option = command.get_parent()->get_option_no_throw(name);
    }
    return option != nullptr && option->get_items_expected_max() > 0;
  };
  if (word[1] == '-') {
    const size_t equals = word.find('=');
    return (equals == std::string::npos || equals + 1 == word.size()) && has_value(word.substr(0, equals));
  }
  // As in -it or -eNAME=value: what follows the first letter with a value is the value.
  for (size_t i = 1; i < word.size(); ++i) {
    if (has_value({'-', word[i]})) return i + 1 == word.size();
  }
  return false;
}

// Cuts off what follows the first positional argument of run and exec: the container's arguments, which CLI11
// must not see, as it reads "[a,b]", "{}" and "%%" as lists. Words without a meaning stay in their places.
std::vector<std::string> CutArguments(const CLI::App& app, std::vector<std::string>& words) {
  const CLI::App* command = &app;
  bool options = true;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (options && word == "--") {
      options = false;
    } else if (options && word.size() > 1 && word[0] == '-') {
      if (TakesNext(*command, word)) ++i;
    } else if (command != &app) {
      const auto begin = words.begin() + static_cast<std::ptrdiff_t>(i) + 1;
      std::vector<std::string> arguments(begin, words.end());
      std::fill(begin, words.end(), "ARG");
      return arguments;
    } else if (word == "run" || word == "exec") {
      command = app.get_subcommand(word);
    } else {
      break;
    }
  }
  return {};
}

int Main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  Cli cli;
  StartOptions start;
  RunOptions run;
  ExecOptions exec;
  PodOptions pod;
  InterfaceOptions net;
  Texts texts;
  std::vector<std::string> ids, places;
  std::string id, signal = "TERM", from, to;
  bool all = false, force = false, follow = false;
  uint64_t after = 0;

  CLI::App app{"Runs Linux containers in utility VMs", "gcsctl"};
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--vm", cli.vm, "name of the VM")->capture_default_str()->envname("GCSCTL_VM");
  app.add_flag("--json", cli.json, "machine-readable output");
  AddVmCommands(app, cli, start);
  AddRun(app, cli, run, texts, places);
  AddPodCommands(app, cli, pod, ids);
  AddNetCommands(app, cli, net, ids);

  CLI::App* command = app.add_subcommand("exec", "Run a program in a running container");
  AddProcessOptions(*command, exec.settings, exec.interactive, exec.detach);
  command->add_option("-u,--user", exec.user, "user[:group], names of the image or numbers");
  command->positionals_at_end(true);
  command->add_option("CONTAINER", exec.container_id)->required();
  command->add_option("ARGS", places, "program and arguments")->required();
  cli.Need(command, [&](const Machine& machine) { return Exec(machine, exec); });

  command = app.add_subcommand("attach", "Show a container's output from the oldest byte kept until it ends");
  command->add_option("CONTAINER", id)->required();
  cli.Need(command, [&](const Machine& machine) { return AttachTo(machine, id); });

  command = app.add_subcommand("ps", "List containers, or the processes of one");
  command->add_option("CONTAINER", id);
  cli.Need(command, [&](const Machine& machine) {
    return id.empty() ? ListContainers(machine, cli.json) : ListProcesses(machine, id, cli.json);
  });

  command = app.add_subcommand("kill", "Send a signal to containers");
  command->add_option("-s,--signal", signal, "name or number")->capture_default_str();
  command->add_flag("-a,--all", all, "to every process instead of the first");
  command->add_option("CONTAINER", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return Kill(machine, ids, signal, all); });

  command = app.add_subcommand("wait", "Wait for containers to end; prints their exit codes");
  command->add_option("CONTAINER", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return Wait(machine, ids, cli.json); });

  command = app.add_subcommand("rm", "Delete stopped containers");
  command->add_flag("-f,--force", force, "kill what still runs");
  command->add_option("CONTAINER", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return Remove(machine, ids, force); });

  command = app.add_subcommand("pause", "Freeze containers");
  command->add_option("CONTAINER", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return Pause(machine, ids, false); });
  command = app.add_subcommand("unpause", "Thaw containers");
  command->add_option("CONTAINER", ids)->required();
  cli.Need(command, [&](const Machine& machine) { return Pause(machine, ids, true); });

  command = app.add_subcommand("stats", "Counters of containers");
  command->add_option("CONTAINER", ids, "default: all");
  cli.Need(command, [&](const Machine& machine) { return Stats(machine, ids, cli.json); });

  command = app.add_subcommand("events", "What has happened in the VM");
  command->add_option("--after", after, "only events after this sequence number");
  command->add_flag("-f,--follow", follow, "and what happens from now on");
  cli.Need(command, [&](const Machine& machine) { return Events(machine, after, follow, cli.json); });

  command = app.add_subcommand("logs", "The agent's log");
  command->add_option("--after", after, "only lines after this sequence number");
  command->add_flag("-f,--follow", follow, "and the lines from now on");
  cli.Need(command, [&](const Machine& machine) { return Logs(machine, after, follow, cli.json); });

  command = app.add_subcommand("cp", "Copy a tar stream into or out of a container");
  command->add_option("FROM", from, "CONTAINER:PATH, or - for stdin")->required();
  command->add_option("TO", to, "CONTAINER:PATH, or - for stdout")->required();
  cli.Need(command, [&](const Machine& machine) { return Copy(machine, from, to); });

  command = app.add_subcommand("info", "The VM and its agent");
  cli.Need(command, [&](const Machine& machine) { return Info(machine, cli.json); });

  std::vector<std::string> words(argv + 1, argv + argc);
  run.args = exec.settings.args = CutArguments(app, words);
  std::ranges::reverse(words);  // as CLI11 wants them
  try {
    app.parse(words);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kFailure;
  }
  return cli.act();
}

}  // namespace
}  // namespace gcs::gcsctl

int main(int argc, char** argv) {
  gcs::base::SetLogOutput(2, gcs::base::LogFormat::kText, gcs::base::Level::kWarn);
  return gcs::gcsctl::Main(argc, argv);
}
