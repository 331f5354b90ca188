// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/utsname.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gcs/v1/common.pb.h"
#include "gcs/v1/containers.grpc.pb.h"
#include "gcs/v1/events.grpc.pb.h"
#include "gcs/v1/guest.grpc.pb.h"
#include "gcs/v1/network.pb.h"
#include "gcs/v1/pods.pb.h"
#include "gcs/v1/processes.pb.h"
#include "gcs/v1/stdio.pb.h"
#include "gcs/v1/storage.pb.h"
#include "unit/rpc_agent.h"

namespace {

using gcs::test::Agent;
using namespace std::chrono_literals;

// A context whose call can't hang the test.
struct Context : grpc::ClientContext {
  explicit Context(std::chrono::milliseconds limit = 20s) {
    set_deadline(std::chrono::system_clock::now() + limit);
  }
};

gcs::v1::ErrorDetail DetailOf(const grpc::Status& status) {
  gcs::v1::StatusDetails details;
  gcs::v1::ErrorDetail detail;
  REQUIRE(details.ParseFromString(status.error_details()));
  REQUIRE(details.details_size() == 1);
  CHECK(details.code() == status.error_code());
  CHECK(details.details(0).type_url() == "type.googleapis.com/gcs.v1.ErrorDetail");
  REQUIRE(detail.ParseFromString(details.details(0).value()));
  return detail;
}

gcs::v1::InfoResponse GetInfo(const std::shared_ptr<grpc::Channel>& channel) {
  Context context;
  gcs::v1::InfoResponse info;
  const grpc::Status status = gcs::v1::GuestService::NewStub(channel)->Info(&context, {}, &info);
  REQUIRE_MESSAGE(status.ok(), status.error_message());
  return info;
}

TEST_CASE("Info describes agent, kernel and machine") {
  const Agent agent;
  const auto channel = agent.Channel();
  const auto info = GetInfo(channel);
  utsname name{};
  REQUIRE(uname(&name) == 0);
  CHECK(info.kernel_release() == name.release);
  CHECK(info.api_version() == "v1");
  CHECK(info.version() == GCS_VERSION);
  CHECK(info.transport() == "unix");
  CHECK(info.cpus() == static_cast<uint32_t>(sysconf(_SC_NPROCESSORS_ONLN)));
  CHECK(info.memory_total_bytes() > info.memory_available_bytes());
  CHECK(info.uptime_ns() > 0);
  CHECK(info.boot_phases_size() == 0);
  CHECK(std::ranges::find(info.features(), "GuestService.Info") != info.features().end());
}

TEST_CASE("Info shows the boot phases that init has written") {
  const Agent agent;
  std::ofstream(agent.directory() + "/state/boot") << "kernel 1000\ninit 2500\n";
  const auto info = GetInfo(agent.Channel());
  REQUIRE(info.boot_phases_size() == 2);
  CHECK(info.boot_phases(1).name() == "init");
  CHECK(info.boot_phases(1).boottime_ns() == 2500);
}

TEST_CASE("a damaged boot file is an error that names the line") {
  const Agent agent;
  std::ofstream(agent.directory() + "/state/boot") << "kernel 1000\nnonsense\n";
  Context context;
  gcs::v1::InfoResponse info;
  const auto status = gcs::v1::GuestService::NewStub(agent.Channel())->Info(&context, {}, &info);
  CHECK(status.error_code() == grpc::StatusCode::INTERNAL);
  const auto detail = DetailOf(status);
  CHECK(detail.step() == "parse boot phases");
  CHECK(detail.object() == "nonsense");
  CHECK(detail.errno_name() == "EBADMSG");
}

TEST_CASE("errors carry code, step, errno and object") {
  const Agent agent;
  const auto stub = gcs::v1::GuestService::NewStub(agent.Channel());
  {
    Context context;
    gcs::v1::AddEntropyRequest request;
    request.set_data(std::string(4097, 'x'));
    gcs::v1::AddEntropyResponse response;
    const auto status = stub->AddEntropy(&context, request, &response);
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(DetailOf(status).object() == "data");
  }
  {
    Context context;
    gcs::v1::SetTimeRequest request;
    request.set_time_ns(-5);
    gcs::v1::SetTimeResponse response;
    const auto status = stub->SetTime(&context, request, &response);
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(DetailOf(status).errno_number() == EINVAL);
  }
  {
    Context context;
    gcs::v1::AddEntropyRequest request;
    request.set_request_id(std::string(257, 'i'));
    request.set_data("x");
    gcs::v1::AddEntropyResponse response;
    const auto status = stub->AddEntropy(&context, request, &response);
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(DetailOf(status).object() == "request_id");
  }
  {
    Context context;
    gcs::v1::SysctlRequest request;
    (*request.mutable_set())["kernel.hostname"] = "never-set";
    request.add_get("kernel/../version");
    gcs::v1::SysctlResponse response;
    const auto status = stub->Sysctl(&context, request, &response);
    CHECK(status.error_code() == grpc::StatusCode::INVALID_ARGUMENT);
    CHECK(DetailOf(status).object() == "kernel/../version");
    char name[256] = "";
    REQUIRE(gethostname(name, sizeof name) == 0);
    CHECK(std::string(name) != "never-set");
  }
}

TEST_CASE("without init Shutdown fails and does nothing") {
  const Agent agent;
  Context context;
  gcs::v1::ShutdownResponse response;
  const auto status = gcs::v1::GuestService::NewStub(agent.Channel())->Shutdown(&context, {}, &response);
  CHECK(status.error_code() == grpc::StatusCode::FAILED_PRECONDITION);
  CHECK(DetailOf(status).step() == "call init");
}

TEST_CASE("Shutdown with the same request id reaches init once, whoever repeats it") {
  const Agent agent(Agent::Setup{.with_init = true});
  CHECK(GetInfo(agent.Channel()).agent_restarts() == 3);
  gcs::v1::ShutdownRequest request;
  request.set_request_id("7d0c2f5e");
  std::vector<std::thread> clients;
  std::atomic<int> succeeded = 0;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      Context context;
      gcs::v1::ShutdownResponse response;
      if (gcs::v1::GuestService::NewStub(agent.Channel())->Shutdown(&context, request, &response).ok())
        ++succeeded;
    });
  }
  for (auto& client : clients) client.join();
  CHECK(succeeded == 8);
  CHECK(agent.ends() == 1);
  Context context;
  gcs::v1::ShutdownResponse response;
  request.set_request_id("another");
  CHECK(gcs::v1::GuestService::NewStub(agent.Channel())->Shutdown(&context, request, &response).ok());
  CHECK(agent.ends() == 2);
}

TEST_CASE("health answers for the server and for a service") {
  const Agent agent;
  const auto channel = agent.Channel();
  // health.proto: Check's request has the service's name in field 1, the answer the state in field 1 (1 =
  // SERVING).
  grpc::GenericStub stub(channel);
  for (const std::string name : {"", "gcs.v1.GuestService"}) {
    const std::string bytes =
        name.empty() ? "" : "\x0a" + std::string(1, static_cast<char>(name.size())) + name;
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    Context context;
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    REQUIRE(queue.Next(&tag, &ok));
    REQUIRE_MESSAGE(status.ok(), status.error_message());
    grpc::Slice answer;
    REQUIRE(response.DumpToSingleSlice(&answer).ok());
    CHECK(std::string(answer.begin(), answer.end()) == "\x08\x01");
  }
}

// Makes the linker take all of the contract, which puts it into the generated pool.
void LinkContract() {
  for (const auto* message :
       {gcs::v1::ListContainersRequest::descriptor(), gcs::v1::ListProcessesRequest::descriptor(),
        gcs::v1::Attached::descriptor(), gcs::v1::ListMountsRequest::descriptor(),
        gcs::v1::ListInterfacesRequest::descriptor(), gcs::v1::ListPodsRequest::descriptor()}) {
    REQUIRE(message != nullptr);
  }
}

// Calls a unary method with an empty request.
grpc::Status CallEmpty(const std::shared_ptr<grpc::Channel>& channel, const std::string& path) {
  grpc::GenericStub stub(channel);
  const grpc::Slice slice("");
  const grpc::ByteBuffer request(&slice, 1);
  Context context(5s);
  grpc::CompletionQueue queue;
  const auto call = stub.PrepareUnaryCall(&context, path, request, &queue);
  call->StartCall();
  grpc::ByteBuffer response;
  grpc::Status status;
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  REQUIRE(queue.Next(&tag, &ok));
  return status;
}

TEST_CASE("a unary method is UNIMPLEMENTED exactly when Info does not list it") {
  LinkContract();
  const Agent agent;
  const auto channel = agent.Channel();
  const auto info = GetInfo(channel);
  const std::set<std::string> features(info.features().begin(), info.features().end());
  size_t checked = 0;
  for (const std::string name : {"ContainerService", "ProcessService", "StdioService", "StorageService",
                                 "NetworkService", "PodService", "GuestService", "EventService"}) {
    const auto* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName("gcs.v1." + name);
    REQUIRE(service != nullptr);
    for (int i = 0; i < service->method_count(); ++i) {
      const auto* method = service->method(i);
      if (method->client_streaming() || method->server_streaming()) continue;
      const auto status = CallEmpty(channel, "/gcs.v1." + name + "/" + method->name());
      const bool built = features.contains(name + "." + method->name());
      INFO(name, ".", method->name(), ": ", status.error_code(), " ", status.error_message());
      // A built method may itself answer UNIMPLEMENTED for what a request asks, but not for an empty one.
      CHECK((status.error_code() != grpc::StatusCode::UNIMPLEMENTED) == built);
      ++checked;
    }
  }
  CHECK(checked > 35);
}

TEST_CASE("Logs sends what is kept, then follows, and a cancelled stream leaves nothing") {
  const Agent agent;
  const auto channel = agent.Channel();
  const auto stub = gcs::v1::GuestService::NewStub(channel);
  gcs::v1::LogRecord record;
  uint64_t last = 0;
  {
    Context context;
    const auto reader = stub->Logs(&context, {});
    bool starts = false;
    while (reader->Read(&record)) {
      CHECK(record.sequence() > last);
      last = record.sequence();
      starts = starts || record.json().find("gcs starts") != std::string::npos;
    }
    CHECK(starts);
    CHECK(reader->Finish().ok());
  }
  Context context;
  gcs::v1::LogsRequest request;
  request.set_after_sequence(last);
  request.set_follow(true);
  const auto reader = stub->Logs(&context, request);
  Context other;
  gcs::v1::AddEntropyResponse response;
  stub->AddEntropy(&other, {}, &response);
  bool seen = false;
  while (!seen && reader->Read(&record)) {
    seen = record.json().find("GuestService.AddEntropy") != std::string::npos;
    CHECK(record.sequence() > last);
  }
  CHECK(seen);
  context.TryCancel();
  while (reader->Read(&record)) {
  }
  CHECK(reader->Finish().error_code() == grpc::StatusCode::CANCELLED);
}

TEST_CASE("cursors beyond the newest entry are refused") {
  const Agent agent;
  const auto channel = agent.Channel();
  {
    Context context;
    gcs::v1::LogsRequest request;
    request.set_after_sequence(1'000'000);
    request.set_follow(true);
    gcs::v1::LogRecord record;
    const auto reader = gcs::v1::GuestService::NewStub(channel)->Logs(&context, request);
    CHECK(!reader->Read(&record));
    CHECK(reader->Finish().error_code() == grpc::StatusCode::OUT_OF_RANGE);
  }
  Context context;
  gcs::v1::WatchEventsRequest request;
  request.set_after_sequence(1'000'000);
  gcs::v1::Event event;
  const auto reader = gcs::v1::EventService::NewStub(channel)->Watch(&context, request);
  CHECK(!reader->Read(&event));
  CHECK(reader->Finish().error_code() == grpc::StatusCode::OUT_OF_RANGE);
}

TEST_CASE("Watch begins with the agent's start and ends when asked not to follow") {
  const Agent agent(Agent::Setup{.with_init = true});
  Context context;
  gcs::v1::WatchEventsRequest request;
  request.set_no_follow(true);
  const auto reader = gcs::v1::EventService::NewStub(agent.Channel())->Watch(&context, request);
  gcs::v1::Event event;
  REQUIRE(reader->Read(&event));
  CHECK(event.sequence() == 1);
  CHECK(event.agent_started().restarts() == 3);
  CHECK(!reader->Read(&event));
  CHECK(reader->Finish().ok());
}

TEST_CASE("a log reader that does not read costs the agent a bounded amount of memory") {
  const Agent agent;
  const auto stub = gcs::v1::GuestService::NewStub(agent.Channel());
  const size_t before = agent.AnonKib();
  Context slow(60s);
  gcs::v1::LogsRequest follow;
  follow.set_follow(true);
  const auto reader = stub->Logs(&slow, follow);
  const auto busy = gcs::v1::GuestService::NewStub(agent.Channel());
  for (int i = 0; i < 3000; ++i) {
    Context context;
    gcs::v1::AddEntropyRequest request;
    request.set_request_id("line-" + std::to_string(i) + std::string(200, 'x'));
    gcs::v1::AddEntropyResponse response;
    busy->AddEntropy(&context, request, &response);
  }
  // About 2 MB of lines were logged; the ring keeps 256 KiB and the request cache its answers.
  CHECK(agent.AnonKib() < before + 16 * 1024);
  // The reader still gets the newest line, with a jump where lines were lost.
  gcs::v1::LogRecord record;
  bool newest = false;
  while (!newest && reader->Read(&record)) newest = record.json().find("\"line-2999x") != std::string::npos;
  CHECK(newest);
  slow.TryCancel();
  while (reader->Read(&record)) {
  }
}

TEST_CASE("a thousand connections one after another leave no descriptor and no thread") {
  const Agent agent;
  for (int i = 0; i < 20; ++i) GetInfo(agent.Channel());
  std::this_thread::sleep_for(300ms);
  const size_t descriptors = agent.Descriptors();
  const size_t threads = agent.Threads();
  for (int i = 0; i < 1000; ++i) {
    if (i % 4 == 0) {
      CHECK(agent.Connect());  // says nothing
    } else {
      GetInfo(agent.Channel());
    }
  }
  for (int i = 0; i < 100 && agent.Descriptors() > descriptors; ++i) std::this_thread::sleep_for(50ms);
  CHECK(agent.Descriptors() <= descriptors);
  CHECK(agent.Threads() <= threads + 1);
}

TEST_CASE("malformed HTTP/2 ends its connection and nothing else") {
  const Agent agent;
  const auto channel = agent.Channel();
  GetInfo(channel);
  const size_t descriptors = agent.Descriptors();
  std::mt19937 random(4711);
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  for (int i = 0; i < 100; ++i) {
    gcs::base::Fd fd = agent.Connect();
    REQUIRE(fd);
    std::string bytes = i % 2 == 0 ? preface + std::string("\0\0\0\4\0\0\0\0\0", 9) : "";
    const size_t length = 9 + random() % 4096;
    for (size_t k = 0; k < length; ++k) bytes += static_cast<char>(random());
    if (i % 3 == 0) bytes[bytes.size() - length] = 0;  // a frame that claims to be small
    send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    shutdown(fd.get(), SHUT_WR);
    // The agent closes: it answers with frames, perhaps, and then the end.
    char buffer[4096];
    pollfd wait{.fd = fd.get(), .events = POLLIN, .revents = 0};
    bool ended = false;
    while (!ended && poll(&wait, 1, 5000) == 1) ended = recv(fd.get(), buffer, sizeof buffer, 0) <= 0;
    CHECK(ended);
  }
  GetInfo(channel);
  for (int i = 0; i < 60 && agent.Descriptors() > descriptors; ++i) std::this_thread::sleep_for(50ms);
  CHECK(agent.Descriptors() <= descriptors);
}

TEST_CASE("a peer that goes silent is noticed by keepalive") {
  const Agent agent(Agent::Setup{.arguments = {"--keepalive-time-ms=200", "--keepalive-timeout-ms=300"}});
  // One that never said a word, and one that is a proper HTTP/2 client up to its SETTINGS.
  gcs::base::Fd mute = agent.Connect();
  gcs::base::Fd stopped = agent.Connect();
  const std::string hello =
      std::string("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") + std::string("\0\0\0\4\0\0\0\0\0", 9);
  REQUIRE(send(stopped.get(), hello.data(), hello.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(hello.size()));
  for (const gcs::base::Fd* fd : {&mute, &stopped}) {
    char buffer[4096];
    bool ended = false;
    bool pinged = false;
    pollfd wait{.fd = fd->get(), .events = POLLIN, .revents = 0};
    while (!ended && poll(&wait, 1, 8000) == 1) {
      const ssize_t n = recv(fd->get(), buffer, sizeof buffer, 0);
      ended = n <= 0;
      // PING: length 8, type 6.
      pinged = pinged || (!ended && std::string_view(buffer, n).find(std::string("\0\0\x08\x06", 4)) !=
                                        std::string::npos);
    }
    CHECK(pinged);
    CHECK(ended);
  }
  // A client that answers is left alone. gRPC's does so only while a call is in progress.
  const auto channel = agent.Channel();
  Context context;
  const auto reader = gcs::v1::EventService::NewStub(channel)->Watch(&context, {});
  std::thread watcher([&] {
    gcs::v1::Event event;
    while (reader->Read(&event)) {
    }
  });
  std::this_thread::sleep_for(1500ms);
  GetInfo(channel);
  context.TryCancel();
  watcher.join();
}

TEST_CASE("a message past the limit is refused, one at the limit is read") {
  const Agent agent;
  const auto stub = gcs::v1::GuestService::NewStub(agent.Channel());
  for (const bool over : {false, true}) {
    Context context;
    gcs::v1::AddEntropyRequest request;
    request.set_data(std::string((16 << 20) + (over ? 128 << 10 : 0), 'x'));
    gcs::v1::AddEntropyResponse response;
    const auto status = stub->AddEntropy(&context, request, &response);
    CHECK(status.error_code() ==
          (over ? grpc::StatusCode::RESOURCE_EXHAUSTED : grpc::StatusCode::INVALID_ARGUMENT));
  }
}

TEST_CASE("the ready port gets one line when the API is up") {
  // The agent's directory is not known before it starts, so the listener has one of its own.
  char pattern[] = "/tmp/gcs-ready-XXXXXX";
  REQUIRE(mkdtemp(pattern) != nullptr);
  const std::string prefix = std::string(pattern) + "/h";
  gcs::base::Fd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, (prefix + "_77").c_str(), sizeof address.sun_path - 1);
  REQUIRE(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(listen(listener.get(), 1) == 0);
  {
    const Agent agent(Agent::Setup{.arguments = {"--ready-port=77"}, .dial_prefix = prefix});
    pollfd wait{.fd = listener.get(), .events = POLLIN, .revents = 0};
    REQUIRE(poll(&wait, 1, 10'000) == 1);
    gcs::base::Fd connection(accept(listener.get(), nullptr, nullptr));
    std::string line;
    char c = 0;
    while (read(connection.get(), &c, 1) == 1) line += c;
    CHECK(line == "ready " GCS_VERSION "\n");
  }
  std::filesystem::remove_all(pattern);
}

TEST_CASE("SIGTERM ends the agent in order, open streams included") {
  Agent agent;
  const auto stub = gcs::v1::EventService::NewStub(agent.Channel());
  Context context;
  const auto reader = stub->Watch(&context, {});
  gcs::v1::Event event;
  REQUIRE(reader->Read(&event));
  const auto begin = std::chrono::steady_clock::now();
  const int status = agent.Stop(SIGTERM);
  // init kills it after a second.
  CHECK(std::chrono::steady_clock::now() - begin < 900ms);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(!reader->Read(&event));
  CHECK(!std::filesystem::exists(agent.socket_path()));
}

int RunProgram(const std::string& arguments, std::string* output) {
  FILE* pipe = popen((std::string(GCS_PROGRAM) + " " + arguments + " 2>&1").c_str(), "re");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output->append(buffer, n);
  return WEXITSTATUS(pclose(pipe));
}

TEST_CASE("the command line names what it does not know") {
  std::string output;
  CHECK(RunProgram("--no-such-flag", &output) == 2);
  CHECK(output.find("--no-such-flag") != std::string::npos);
  output.clear();
  CHECK(RunProgram("--port=0", &output) == 2);
  CHECK(output.find("--listen-unix") != std::string::npos);
  output.clear();
  CHECK(RunProgram("--version", &output) == 0);
  CHECK(output.find("gcs " GCS_VERSION "\ncommit ") == 0);
}

}  // namespace
