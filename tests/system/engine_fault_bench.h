// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dirent.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <type_traits>

#include "system/engine_support.h"
#include "system/fault_injector.h"

namespace gcs::test {

using base::Json;

enum class Phase : int { kNone, kCreate, kStart, kExec, kExecStart, kDestroy };
constexpr const char* kPhaseNames[] = {"-", "create", "start", "exec", "start of exec", "destroy"};

// What the daemon tells about a round, in memory that it shares with the test.
struct Told {
  int spare;  // descriptors that each step has; 0: as many as it wants
  Phase now;
  Phase failed;  // first
  int err;
  char step[128];
  char text[1024];
  bool complete;  // all ran and the output was right
  int64_t slowest_ns;
};

struct Scenario {
  // Made once, in the daemon.
  std::function<Json(const EngineMachine&)> config;
  bool exec = false;  // "echo executed", with what else the configuration's process has
  // Another configuration each round, so that nothing is found in a cache.
  std::function<void(Json& config, int round)> vary;
  std::function<void()> after;  // each round
};

// The daemon's side: one container from create to destroy, as a careful caller goes about it.
class Round {
 public:
  Round(const Json& config, bool exec, Told& told)
      : config_(config), exec_(exec), terminal_(config["process"]["terminal"] == true), told_(told) {}

  void Run() {
    const int spare = told_.spare;
    memset(static_cast<void*>(&told_), 0, sizeof told_);
    told_.spare = spare;
    auto& engine = EngineMachine::Get().engine();
    auto spec = engine::ParseSpec(config_.dump());
    REQUIRE_MESSAGE(spec, spec.error().ToString());
    Pipe in, out;
    const base::Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
    const base::Fd preserved(dup(null.get()));
    auto container = Step(Phase::kCreate, [&] {
      return engine.CreateContainer(NextId(), std::move(*spec),
                                    {.stdio = {in.read_end.get(), out.write_end.get(), null.get()},
                                     .bundle = EngineMachine::Get().dir(),
                                     .preserved = {preserved.get()},
                                     .deadline_ns = In(8)});
    });
    in.read_end.Reset();
    if (!container) return;
    const bool started = Step(Phase::kStart, [&] {
                           return engine::Engine::Start(*container, container->init, In(8));
                         }).has_value();
    const bool executed = !started || !exec_ || Exec(engine, *container, null.get());
    // The end of its input is the end of the program, if it got that far.
    in.write_end.Reset();
    if (!started || terminal_) {
      [[maybe_unused]] const auto killed = container->init.Signal(SIGKILL);
    }
    Reap(container->init.pidfd());
    out.write_end.Reset();
    const bool destroyed =
        Step(Phase::kDestroy, [&] { return engine::Engine::Destroy(*container, In(8)); }).has_value();
    // Who is told that it did not work asks again.
    if (!destroyed) {
      const auto again = engine::Engine::Destroy(*container, In(8));
      REQUIRE_MESSAGE(again, again.error().ToString());
    }
    const bool said = terminal_ || ReadAll(out.read_end) == "begun\n";
    told_.complete = started && executed && said && destroyed;
  }

 private:
  template <typename Act>
  std::invoke_result_t<Act> Step(Phase phase, Act act) {
    const int64_t begin = base::MonotonicNs();
    told_.now = phase;
    rlimit many{};
    REQUIRE(getrlimit(RLIMIT_NOFILE, &many) == 0);
    if (told_.spare != 0) {
      const base::Fd next(fcntl(0, F_DUPFD_CLOEXEC, 0));
      const rlimit few{static_cast<rlim_t>(next.get() + told_.spare), many.rlim_max};
      REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
    }
    Tell(Mark::kEnter);
    auto result = act();
    Tell(Mark::kLeave);
    REQUIRE(setrlimit(RLIMIT_NOFILE, &many) == 0);
    told_.slowest_ns = std::max(told_.slowest_ns, base::MonotonicNs() - begin);
    if (!result && told_.failed == Phase::kNone) {
      told_.failed = phase;
      told_.err = result.error().err;
      strncpy(told_.step, result.error().step.c_str(), sizeof told_.step - 1);
      strncpy(told_.text, result.error().ToString().c_str(), sizeof told_.text - 1);
    }
    return result;
  }

  bool Exec(engine::Engine& engine, const engine::EngineContainer& container, int null) {
    Pipe out;
    Json config = config_;
    config["process"]["args"] = {"echo", "executed"};
    auto spec = engine::ParseSpec(config.dump());
    REQUIRE_MESSAGE(spec, spec.error().ToString());
    auto child = Step(Phase::kExec, [&] {
      return engine.Exec(container, *spec->process,
                         {.stdio = {null, out.write_end.get(), null}, .deadline_ns = In(8)});
    });
    out.write_end.Reset();
    if (!child) return false;
    const bool started = Step(Phase::kExecStart, [&] { return child->Start(In(8)); }).has_value();
    if (!started) {
      child->Kill();
      return false;
    }
    const base::Fd console = child->TakeConsole();
    return Reap(child->pidfd()) == 0 && (terminal_ || ReadAll(out.read_end) == "executed\n");
  }

  const Json& config_;
  const bool exec_, terminal_;
  Told& told_;
};

// What could be left, as lines.
using State = std::set<std::string>;

inline void AddDescriptors(pid_t pid, const std::string& whose, State& state) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const std::string dir = "/proc/" + std::to_string(pid) + "/fd";
  // By what they are, not by number: some are kept for the next container.
  std::map<std::string, int> seen;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    const std::string target = fs::read_symlink(entry.path(), ignored).string();
    state.insert(whose + " descriptor " + target + " number " + std::to_string(++seen[target]));
  }
}

inline void AddCgroups(const std::string& dir, int depth, const std::string& name, State& state) {
  DIR* entries = opendir(dir.c_str());
  if (entries == nullptr) return;
  while (const dirent* entry = readdir(entries)) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const std::string path = dir + "/" + entry->d_name;
    const bool ours = path.find(name) != std::string::npos;
    if (ours) state.insert("cgroup " + path);
    if (ours || depth > 0) AddCgroups(path, depth - 1, name, state);
  }
  closedir(entries);
}

inline void AddProcess(pid_t pid, const std::string& whose, State& state) {
  AddDescriptors(pid, whose + "'s", state);
  const std::string proc = "/proc/" + std::to_string(pid);
  std::ifstream mounts(proc + "/mountinfo");
  for (std::string line; std::getline(mounts, line);) state.insert(whose + "'s mount " + line);
  std::ifstream children(proc + "/task/" + std::to_string(pid) + "/children");
  for (std::string child; children >> child;) state.insert(whose + "'s child " + child);
}

inline std::string Difference(const State& before, const State& after) {
  std::vector<std::string> changes;
  std::ranges::set_difference(after, before, std::back_inserter(changes));
  std::string text;
  for (const std::string& line : changes) text += "\n    left: " + line;
  changes.clear();
  std::ranges::set_difference(before, after, std::back_inserter(changes));
  for (const std::string& line : changes) text += "\n    gone: " + line;
  return text;
}

// A daemon under the injector, and what it looks like between rounds.
class Bench {
 public:
  Bench(const Scenario& scenario, FaultsSeen& seen)
      : told_(*static_cast<Told*>(
            mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))),
        varies_(scenario.vary != nullptr),
        injector_([&scenario, this] { Daemon(scenario); }, seen) {
    REQUIRE_MESSAGE(Expect(Mark::kReady), "the daemon ", injector_.HowDaemonEnded());
    injector_.Answer(0);
    REQUIRE_MESSAGE(Expect(Mark::kBegin), "the daemon ", injector_.HowDaemonEnded());
    // The first fills caches.
    for (int i = 0; i < 2; ++i) {
      REQUIRE_MESSAGE(Whole(), "the daemon ", injector_.HowDaemonEnded());
      REQUIRE_MESSAGE(told_.complete, std::string(told_.text));
      REQUIRE(injector_.Settle(In(5)));
      state_ = Look();
      usable_ = Next();
      REQUIRE(usable_);
    }
  }
  ~Bench() {
    if (usable_) {
      injector_.Answer(0);
      injector_.Await(In(5));
    }
    munmap(&told_, sizeof(Told));
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // A round in which something fails, made so by `before` and `after`, and one in which nothing does. What
  // `judge` says of the first, and what is wrong beside that; empty: nothing.
  template <typename Before, typename After>
  std::string Rounds(Before before, After judge) {
    before(injector_, told_);
    usable_ = Whole();
    std::string wrong;
    if (!usable_) {
      wrong = injector_.daemon_alive() ? "; it hangs, others:" + injector_.Others()
                                       : "; the daemon " + injector_.HowDaemonEnded();
      return judge(injector_, static_cast<Told*>(nullptr)) + wrong;
    }
    wrong = judge(injector_, &told_);
    if (!injector_.Settle(In(3))) wrong += "; processes are left:" + injector_.Others();
    if (!injector_.zygote_alive()) wrong += "; the zygote has ended";
    wrong += Left();
    usable_ = Next() && Whole();
    if (!usable_ || !told_.complete) return wrong + "; the next container does not work: " + told_.text;
    injector_.Settle(In(3));
    if (wrong.empty()) wrong = Left();
    usable_ = Next();
    return wrong;
  }
  [[nodiscard]] bool usable() const { return usable_; }
  [[nodiscard]] const FaultInjector& injector() const { return injector_; }

 private:
  void Daemon(const Scenario& scenario) {
    EngineMachine::single_threaded = true;
    Json config = scenario.config(EngineMachine::Get());
    Tell(Mark::kReady);
    for (int round = 0; Tell(Mark::kBegin) != 0; ++round) {
      if (scenario.vary) scenario.vary(config, round);
      Round(config, scenario.exec, told_).Run();
      if (scenario.after) scenario.after();
      Tell(Mark::kEnd);
    }
    exit(0);
  }
  bool Expect(Mark mark) {
    const auto got = injector_.Await(In(25));
    return got && *got == mark;
  }
  bool Whole() {
    injector_.Answer(1);
    return Expect(Mark::kEnd);
  }
  bool Next() {
    injector_.Answer(0);
    return Expect(Mark::kBegin);
  }
  [[nodiscard]] State Look() const {
    State state;
    for (const auto& [pid, whose] : {std::pair(injector_.daemon(), "daemon"), {injector_.zygote(), "zygote"}})
      AddProcess(pid, whose, state);
    // The hierarchies of v1 are one level down.
    AddCgroups("/proc/" + std::to_string(injector_.daemon()) + "/root/sys/fs/cgroup",
               kCgroupView == CgroupView::kV2 ? 0 : 1, "gcs-test-" + std::to_string(injector_.daemon()),
               state);
    // What caches hold: programs of device filters, namespaces of id mappings.
    if (varies_) {
      std::erase_if(state, [](const std::string& line) {
        return line.find("bpf-prog") != std::string::npos || line.find("user:[") != std::string::npos;
      });
    }
    return state;
  }
  [[nodiscard]] std::string Left() const { return Difference(state_, Look()); }

  Told& told_;
  const bool varies_;
  FaultInjector injector_;
  State state_;
  bool usable_ = false;
};

}  // namespace gcs::test
