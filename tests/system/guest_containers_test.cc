// SPDX-License-Identifier: Apache-2.0
// The model without a front end: many callers at once, which is what the sanitizers look at.
#include <atomic>
#include <csignal>
#include <functional>
#include <future>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/loop.h"
#include "guest/containers.h"
#include "guest/journal.h"
#include "storage/storage.h"
#include "system/engine_support.h"
#include "transport/dialer.h"

namespace gcs::test {
namespace {

using guest::Containers;
using guest::ExitStatus;

// The agent without its API. The zygote is there before the first thread is.
class Model {
 public:
  Model() : machine_(EngineMachine::Get()), root_(machine_.root()) {
    auto loop = base::Loop::Create();
    REQUIRE(loop);
    loop_ = std::move(*loop);
    storage_ = std::make_unique<storage::Storage>(
        storage::StorageOptions{.default_dir = dir_ / "mounts", .target_roots = {dir_.path()}});
    dialer_ = transport::UnixDialer(dir_ / "host");
    containers_ = std::make_unique<Containers>(
        Containers::Backends{loop_.get(), &machine_.engine(), storage_.get(), &journal_, dialer_.get()});
    thread_ = std::thread([this] { loop_->Run(); });
  }
  ~Model() {
    loop_->Stop();
    thread_.join();
    containers_.reset();
  }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  Containers& containers() { return *containers_; }
  guest::Journal& journal() { return journal_; }
  storage::Storage& storage() { return *storage_; }
  [[nodiscard]] const std::string& root() const { return root_; }

  [[nodiscard]] guest::CreateContainer Request(const std::string& id, const std::string& script) const {
    guest::CreateContainer request;
    request.container_id = id;
    request.config_json = DefaultConfig(root_, {"sh", "-c", script}).dump();
    request.stdio.in.mode = request.stdio.out.mode = stdio::Mode::kStream;
    return request;
  }

  // Waits for the end of a process.
  base::Result<ExitStatus> Wait(const std::string& id, const std::string& process = {}) {
    auto promise = std::make_shared<std::promise<base::Result<ExitStatus>>>();
    auto future = promise->get_future();
    const uint64_t wait = containers_->Wait(
        id, process, [promise](base::Result<ExitStatus> exit) { promise->set_value(std::move(exit)); });
    if (future.wait_for(std::chrono::seconds(60)) != std::future_status::ready) {
      containers_->CancelWait(wait);
      return base::MakeError(ETIMEDOUT, "wait", id);
    }
    return future.get();
  }

 private:
  EngineMachine& machine_;
  const std::string root_;
  TempDir dir_;
  guest::Journal journal_;
  std::unique_ptr<base::Loop> loop_;
  std::unique_ptr<storage::Storage> storage_;
  std::unique_ptr<transport::Dialer> dialer_;
  std::unique_ptr<Containers> containers_;
  std::thread thread_;
};

// doctest's assertions are for one thread: others count what went wrong and say the first of it.
class Failures {
 public:
  template <typename T>
  bool Check(const base::Result<T>& result, const char* what) {
    if (!result) Add(std::string(what) + ": " + result.error().ToString());
    return result.has_value();
  }
  void Check(bool right, const std::string& what) {
    if (!right) Add(what);
  }
  ~Failures() { CHECK_MESSAGE(count_ == 0, count_ << " failures, the first: " << first_); }

 private:
  void Add(std::string what) {
    const std::lock_guard lock(mutex_);
    if (count_++ == 0) first_ = std::move(what);
  }
  std::mutex mutex_;
  int count_ = 0;
  std::string first_;
};

// Gives input to a process that sends it back, sets `back` when all of it is back, and reads on to the end.
std::string ReadOut(Containers& containers, const std::string& id, const std::string& input,
                    Failures& failures, std::promise<void>& back) {
  struct Bell {
    std::mutex mutex;
    std::condition_variable rung;
    uint64_t count = 0;
  };
  const auto bell = std::make_shared<Bell>();
  stdio::AttachOptions options;
  options.outputs = {{stdio::Stream::kStdout, 0}};
  options.want_stdin = true;
  options.wake = [bell] {
    const std::lock_guard lock(bell->mutex);
    ++bell->count;
    bell->rung.notify_all();
  };
  auto session = containers.Attach(id, "", std::move(options));
  if (!failures.Check(session, "attach")) return {};
  failures.Check((*session)->WriteStdin(0, input, true), "stdin");
  std::string out;
  for (uint64_t seen = 0;;) {
    const auto chunk = (*session)->Read(stdio::Stream::kStdout, 4096);
    if (!failures.Check(chunk, "read") || chunk->end) return chunk ? out + chunk->data : out;
    out += chunk->data;
    if (!chunk->data.empty() && out.size() == input.size()) back.set_value();
    if (!chunk->data.empty()) continue;
    std::unique_lock lock(bell->mutex);
    if (!bell->rung.wait_for(lock, std::chrono::seconds(60), [&] { return bell->count > seen; })) {
      failures.Check(false, "no output for a minute");
      return out;
    }
    seen = bell->count;
  }
}

TEST_CASE("containers live side by side, each by its own thread, while others look on") {
  constexpr int kThreads = 4;
  constexpr int kRounds = 5;
  Model model;
  Containers& all = model.containers();
  {
    Failures failures;
    std::atomic<bool> stop = false;
    std::vector<std::jthread> lookers;
    lookers.emplace_back([&] {
      while (!stop) {
        for (const guest::ContainerInfo& info : all.List()) {
          // It may be anywhere in its life by now, or over it.
          const auto look = [](const auto& result) { return result.has_value(); };
          look(all.State(info.container_id));
          look(all.OciState(info.container_id));
          look(all.ListProcesses(info.container_id));
          look(all.SignalAll(info.container_id, SIGURG));
        }
        failures.Check(all.Stats({}), "stats of all");
      }
    });
    lookers.emplace_back([&] {
      uint64_t cursor = 0;
      while (!stop) {
        const auto events = model.journal().Read(cursor, 64);
        if (!failures.Check(events, "events")) return;
        if (!events->empty()) cursor = events->back().sequence;
        std::this_thread::yield();
      }
    });
    std::vector<std::jthread> owners;
    for (int owner = 0; owner < kThreads; ++owner) {
      owners.emplace_back([&, owner] {
        for (int round = 0; round < kRounds; ++round) {
          const std::string id = "o" + std::to_string(owner) + "-" + std::to_string(round);
          if (!failures.Check(all.Create(model.Request(id, "cat; exec sleep 1000"), In(60)), "create"))
            return;
          failures.Check(all.Start(id, In(60)), "start");
          guest::ExecProcess exec{.container_id = id, .process_id = "x", .process_json = {}, .stdio = {}};
          exec.process_json = R"({"args": ["sh", "-c", "exit 5"]})";
          failures.Check(all.Exec(exec, In(60)), "exec");
          std::promise<void> back;
          auto returned = back.get_future();
          std::jthread reader([&] {
            failures.Check(ReadOut(all, id, "in and out " + id, failures, back) == "in and out " + id,
                           "output of " + id);
          });
          const auto ended = model.Wait(id, "x");
          if (failures.Check(ended, "wait for exec"))
            failures.Check(ended->exit_code == 5, "exit code of exec");
          failures.Check(all.DeleteProcess(id, "x"), "delete process");
          failures.Check(all.Pause(id, In(60)), "pause");
          failures.Check(all.Resume(id, In(60)), "resume");
          failures.Check(returned.wait_for(std::chrono::seconds(60)) == std::future_status::ready,
                         "no output");
          // Two wait while a third ends it.
          std::jthread waiter([&] {
            const auto exit = model.Wait(id);
            if (failures.Check(exit, "wait")) failures.Check(exit->signal == SIGKILL, "signal of " + id);
          });
          failures.Check(all.Signal(id, "", SIGKILL), "signal");
          const auto exit = model.Wait(id);
          if (failures.Check(exit, "wait")) failures.Check(exit->exit_code == 128 + SIGKILL, "exit code");
          reader.join();
          waiter.join();
          failures.Check(all.Delete(id, false, In(60)), "delete");
        }
      });
    }
    owners.clear();
    stop = true;
  }
  CHECK(all.count() == 0);
  const std::string parent = "/sys/fs/cgroup" + EngineMachine::Get().cgroup_parent();
  if (std::filesystem::exists(parent)) {
    for (const auto& left : std::filesystem::directory_iterator(parent)) CHECK_FALSE(left.is_directory());
  }

  // What happened to each, in the order of a life.
  std::map<std::string, std::string> lives;
  for (uint64_t cursor = 0;;) {
    const auto events = model.journal().Read(cursor, 1000);
    REQUIRE(events);
    if (events->empty()) break;
    for (const guest::Event& event : *events) {
      lives[event.container_id] += std::to_string(event.body.index()) + event.process_id + " ";
      cursor = event.sequence;
    }
  }
  CHECK(lives.size() == kThreads * kRounds);
  for (const auto& [id, life] : lives) {
    CAPTURE(id);
    CHECK(life.starts_with("0 1 "));  // created, started
    CHECK(life.ends_with("2 7 "));    // exited, deleted
  }
}

TEST_CASE("of many who want one id, one has it at a time, and what they do to it meanwhile is safe") {
  Model model;
  Containers& all = model.containers();
  std::atomic<int> created = 0;
  std::atomic<int> deleted = 0;
  {
    Failures failures;
    const auto allowed = [&failures](const auto& result, const char* what,
                                     std::initializer_list<int> errors) {
      if (result || std::ranges::find(errors, result.error().err) != errors.end()) return result.has_value();
      return failures.Check(result, what);
    };
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        for (int round = 0; round < 8; ++round) {
          if (allowed(all.Create(model.Request("one", "exec sleep 1000"), In(60)), "create", {EEXIST}))
            ++created;
          allowed(all.Start("one", In(60)), "start", {ENOENT, EBUSY});
          const std::string process = "p" + std::to_string(i);
          const guest::ExecProcess exec{.container_id = "one",
                                        .process_id = process,
                                        .process_json = R"({"args": ["true"]})",
                                        .stdio = {}};
          // Its container may be killed in the middle of it, in ways that only the engine can tell.
          if (all.Exec(exec, In(60))) {
            allowed(model.Wait("one", process), "wait for exec", {ENOENT});
            allowed(all.DeleteProcess("one", process), "delete process", {ENOENT, EBUSY});
          }
          allowed(all.Signal("one", "", SIGCONT), "signal", {ENOENT, ESRCH});
          allowed(all.Resize("one", "", 80, 25), "resize", {ENOENT, ENOTTY});
          if (allowed(all.Delete("one", true, In(60)), "delete", {ENOENT})) ++deleted;
        }
      });
    }
  }
  CHECK(created == deleted);
  CHECK(created >= 8);
  CHECK(all.count() == 0);
}

TEST_CASE("the model's end kills what runs and leaves no cgroup") {
  std::string cgroup;
  {
    Model model;
    REQUIRE(model.containers().Create(model.Request("left", "sleep 1000 & exec sleep 1000"), In(60)));
    REQUIRE(model.containers().Start("left", In(60)));
    const auto state = model.containers().State("left");
    REQUIRE(state);
    cgroup = "/sys/fs/cgroup" + state->cgroup_path;
    REQUIRE(std::filesystem::exists(cgroup));
  }
  CHECK_FALSE(std::filesystem::exists(cgroup));
}

TEST_CASE("an owned mount goes with its container, and a failed create leaves none") {
  Model model;
  storage::TmpfsMount tmpfs;
  tmpfs.mount_id = "owned";
  const auto mounted = model.storage().MountTmpfs(tmpfs, {.deadline_ns = In(60), .cancel_fd = -1});
  REQUIRE_MESSAGE(mounted, mounted.error().ToString());
  auto request = model.Request("owner", "true");
  request.owned_mounts = {"owned"};
  auto broken = request;
  broken.config_json = "{";
  CHECK_FALSE(model.containers().Create(broken, In(60)));
  REQUIRE(model.containers().Create(request, In(60)));
  CHECK(model.storage().List().at(0).owner == "owner");
  REQUIRE(model.containers().Delete("owner", true, In(60)));
  CHECK(model.storage().List().empty());
}

}  // namespace
}  // namespace gcs::test
