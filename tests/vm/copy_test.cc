// SPDX-License-Identifier: Apache-2.0
// Tar streams into and out of containers over the API; what they may reach is in
// tests/system/guest_copy_test.cc.
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "gcs/v1/guest.grpc.pb.h"
#include "vm/vm_support.h"

namespace gcs::test {
namespace {

std::string Shell(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string out;
  char buffer[65536];
  for (size_t n = 0; (n = fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  REQUIRE_MESSAGE(pclose(pipe) == 0, command);
  return out;
}

host::CallResult<v1::CopyInResponse> CopyIn(const std::string& id, const std::string& path,
                                            std::string stream) {
  return TestVm::Get().client().CopyIn(
      id, path, [&]() -> base::Result<std::string> { return std::exchange(stream, std::string()); });
}

host::CallResult<std::string> CopyOut(const std::string& id, const std::string& path) {
  std::string stream;
  GCS_TRY(TestVm::Get().client().CopyOut(id, path, [&](const std::string& piece) -> base::Result<> {
    stream += piece;
    return {};
  }));
  return stream;
}

std::string In(const TestContainer& container, const std::string& command) {
  static int next = 0;
  v1::ExecRequest exec;
  exec.set_container_id(container.id());
  exec.set_process_id("copy" + std::to_string(++next));
  exec.set_process_json(R"({"args": ["sh", "-c", ")" + command + R"("]})");
  exec.mutable_stdio()->mutable_stdout()->set_mode(v1::StreamSpec::MODE_STREAM);
  const auto started = TestVm::Get().client().Call(exec);
  REQUIRE_MESSAGE(started, Why(started));
  Output output(container.id(), exec.process_id(), false, false);
  output.Finish();
  return output.out();
}

TEST_CASE("a tree is copied into a container and comes out as it went in, whatever its state") {
  const TempDir dir;
  Shell("mkdir -p " + (dir / "tree/sub") + " && cd " + (dir / "tree") +
        " && head -c 3000000 /dev/urandom > large && echo text > sub/file && "
        "chown 12:34 sub/file && chmod 4755 sub/file && ln -s /etc/passwd link && ln sub/file hard && touch "
        "-d @1000000000 sub");
  const std::string stream = Shell("tar -C " + dir.path() + " -c tree");
  TestContainer container(TestContainer::Make({"sleep", "1000"}));
  const auto copied = CopyIn(container.id(), "/opt", stream);  // created, not started
  REQUIRE_MESSAGE(copied, Why(copied));
  CHECK(copied->entries() == 6);
  CHECK(copied->bytes() == 3'000'005);
  container.Start();
  CHECK(
      In(container, "cd /opt/tree && stat -c '%n %a %u %g %h' sub/file && readlink link && stat -c %Y sub") ==
      "sub/file 4755 12 34 2\n/etc/passwd\n1000000000\n");
  CHECK(In(container, "sha256sum < /opt/tree/large") == Shell("sha256sum < " + (dir / "tree/large")));
  REQUIRE(container.Signal(SIGKILL));
  container.Wait();
  const auto back = CopyOut(container.id(), "/opt/tree");  // stopped
  REQUIRE_MESSAGE(back, Why(back));
  Shell("mkdir " + (dir / "back"));
  FILE* tar = popen(("tar -C " + (dir / "back") + " -xp").c_str(), "w");
  REQUIRE(tar != nullptr);
  CHECK(fwrite(back->data(), 1, back->size(), tar) == back->size());
  REQUIRE(pclose(tar) == 0);
  const std::string list = " && find . -printf '%p %y %m %U %G %n %l\\n' | sort";
  CHECK(Shell("cd " + (dir / "back/tree") + list) == Shell("cd " + (dir / "tree") + list));
  CHECK(Shell("diff -r --no-dereference " + (dir / "back/tree") + " " + (dir / "tree")).empty());
}

TEST_CASE("a client that leaves amid a stream leaves no part of a file, and the container can be deleted") {
  TestContainer container(TestContainer::Make({"sleep", "1000"}));
  container.Start();
  const std::string stream = Shell(
      "cd / && head -c 2000000 /dev/zero > /tmp/gcs-copy-test && tar -c tmp/gcs-copy-test; "
      "rm /tmp/gcs-copy-test");
  bool sent = false;
  const auto copied =
      TestVm::Get().client().CopyIn(container.id(), "/opt", [&]() -> base::Result<std::string> {
        if (std::exchange(sent, true)) {
          std::string count;
          for (int i = 0; i < 50 && count != "1\n"; ++i) {
            count = In(container, "ls -A /opt/tmp | grep -c gcs-copy");
          }
          CHECK(count == "1\n");
          return base::MakeError(EPIPE, "test");
        }
        return stream.substr(0, 1'000'000);
      });
  CHECK_FALSE(copied);
  std::string left;
  for (int i = 0; i < 50 && (i == 0 || !left.empty()); ++i) left = In(container, "ls -A /opt/tmp");
  CHECK(left.empty());
  // A stream that ends too early is an error of the copy.
  const auto cut = CopyIn(container.id(), "/opt", stream.substr(0, 1'000'000));
  CHECK(cut.error().code == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(In(container, "ls -A /opt/tmp").empty());
  // One that has gone on for a while, and goes on, keeps nobody from deleting the container.
  int pieces = 0;
  const auto out =
      TestVm::Get().client().CopyOut(container.id(), "/", [&](const std::string&) -> base::Result<> {
        if (++pieces == 2) {
          const auto deleted = container.Delete();
          CHECK_MESSAGE(deleted, Why(deleted));
        }
        return {};
      });
  CHECK(pieces >= 2);
  CHECK_MESSAGE(out, Why(out));
}

TEST_CASE("a copy says what is wrong with it") {
  TestContainer container(TestContainer::Make({"true"}));
  CHECK(CopyIn("nobody", "/", "x").error().code == grpc::StatusCode::NOT_FOUND);
  CHECK(CopyIn(container.id(), "/none", std::string(1024, '\0')).error().code == grpc::StatusCode::NOT_FOUND);
  CHECK(CopyIn(container.id(), "/opt", std::string(1024, 'x')).error().code ==
        grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(CopyOut(container.id(), "/none").error().code == grpc::StatusCode::NOT_FOUND);
  CHECK(CopyOut("", "/etc").error().code == grpc::StatusCode::INVALID_ARGUMENT);
  const auto boot = CopyOut("", "/run/gcs/boot");
  REQUIRE_MESSAGE(boot, Why(boot));
  CHECK(boot->find("mounts ") != std::string::npos);
  auto options = TestContainer::Make({"true"});
  options.settings.read_only = true;
  TestContainer sealed(std::move(options));
  CHECK_FALSE(CopyIn(sealed.id(), "/opt", std::string(1024, '\0')));
  CHECK(CopyOut(sealed.id(), "/opt"));
}

TEST_CASE("SHA-256 of both directions and the repetition of a copy by its id") {
  TestContainer container(TestContainer::Make({"true"}));
  auto fd = TestVm::Get().vm().Connect(1024);
  REQUIRE_MESSAGE(fd, Why(fd));
  const auto stub = v1::GuestService::NewStub(grpc::CreateInsecureChannelFromFd("copy", fd->Release()));

  std::string stream, sha256;
  {
    grpc::ClientContext context;
    v1::CopyOutRequest request;
    request.set_container_id(container.id());
    request.set_path("/opt/dir/new");
    const auto reader = stub->CopyOut(&context, request);
    v1::CopyOutResponse piece;
    while (reader->Read(&piece)) {
      CHECK(sha256.empty());  // in the last message only
      stream += piece.data();
      sha256 = piece.sha256();
    }
    REQUIRE(reader->Finish().ok());
  }
  const TempDir dir;
  FILE* file = fopen((dir / "stream").c_str(), "w");
  REQUIRE(file != nullptr);
  CHECK(fwrite(stream.data(), 1, stream.size(), file) == stream.size());
  fclose(file);
  std::string hex;
  for (const char c : sha256) {
    char digits[4];
    snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(c));
    hex += digits;
  }
  CHECK(Shell("sha256sum < " + (dir / "stream")).starts_with(hex + " "));

  const auto copy_in = [&](const std::string& id, const std::string& wanted, const std::string& data,
                           v1::CopyInResponse& response) {
    grpc::ClientContext context;
    const auto writer = stub->CopyIn(&context, &response);
    v1::CopyInRequest message;
    message.mutable_open()->set_container_id(container.id());
    message.mutable_open()->set_path("/tmp");
    message.mutable_open()->set_request_id(id);
    message.mutable_open()->set_sha256(wanted);
    bool going = writer->Write(message);
    message.set_data(data);
    if (going) going = writer->Write(message);
    writer->WritesDone();
    return writer->Finish();
  };
  v1::CopyInResponse response;
  CHECK(copy_in("a", sha256, stream, response).ok());
  CHECK(response.entries() == 1);
  response.Clear();
  CHECK(copy_in("a", "", "no tar at all", response).ok());  // the first call's answer
  CHECK(response.entries() == 1);
  CHECK(copy_in("b", std::string(32, 'x'), stream, response).error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(copy_in("b", sha256, stream, response).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(copy_in("", "short", stream, response).error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(copy_in("", "", std::string((1 << 20) + 1, '\0'), response).error_code() ==
        grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace gcs::test
