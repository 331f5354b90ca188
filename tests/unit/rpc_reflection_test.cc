// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/descriptor_database.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <set>
#include <string>

#include "gcs/v1/containers.pb.h"
#include "gcs/v1/events.pb.h"
#include "gcs/v1/guest.pb.h"
#include "gcs/v1/network.pb.h"
#include "gcs/v1/pods.pb.h"
#include "gcs/v1/processes.pb.h"
#include "gcs/v1/stdio.pb.h"
#include "gcs/v1/storage.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "unit/rpc_agent.h"

namespace {

namespace api = grpc::reflection::v1alpha;
using gcs::test::Agent;

// One conversation with the agent's reflection service.
class Reflection {
 public:
  explicit Reflection(const Agent& agent) : stub_(api::ServerReflection::NewStub(agent.Channel())) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    stream_ = stub_->ServerReflectionInfo(&context_);
  }
  api::ServerReflectionResponse Ask(const api::ServerReflectionRequest& request) {
    api::ServerReflectionResponse response;
    REQUIRE(stream_->Write(request));
    REQUIRE(stream_->Read(&response));
    return response;
  }
  grpc::Status End() {
    stream_->WritesDone();
    return stream_->Finish();
  }

 private:
  const std::unique_ptr<api::ServerReflection::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<api::ServerReflectionRequest, api::ServerReflectionResponse>>
      stream_;
};

TEST_CASE("reflection describes every service exactly as the contract does") {
  const Agent agent;
  Reflection reflection(agent);
  api::ServerReflectionRequest request;
  request.set_list_services("*");
  std::set<std::string> services;
  const auto list = reflection.Ask(request);
  for (const auto& service : list.list_services_response().service()) services.insert(service.name());
  CHECK(services.contains("grpc.health.v1.Health"));
  CHECK(services.contains("grpc.reflection.v1alpha.ServerReflection"));
  size_t ours = 0;
  for (const std::string& name : services) {
    request.set_file_containing_symbol(name);
    const auto answer = reflection.Ask(request);
    REQUIRE(answer.file_descriptor_response().file_descriptor_proto_size() > 0);
    google::protobuf::SimpleDescriptorDatabase database;
    for (const std::string& bytes : answer.file_descriptor_response().file_descriptor_proto()) {
      REQUIRE(database.AddAndOwn([&] {
        auto* file = new google::protobuf::FileDescriptorProto;
        CHECK(file->ParseFromString(bytes));
        return file;
      }()));
    }
    google::protobuf::DescriptorPool pool(&database);
    const auto* told = pool.FindServiceByName(name);
    REQUIRE_MESSAGE(told != nullptr, name);
    if (!name.starts_with("gcs.v1.")) continue;
    ++ours;
    const auto* real = google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
    REQUIRE_MESSAGE(real != nullptr, name);
    google::protobuf::FileDescriptorProto told_file;
    google::protobuf::FileDescriptorProto real_file;
    told->file()->CopyTo(&told_file);
    real->file()->CopyTo(&real_file);
    told->file()->CopyJsonNameTo(&told_file);  // protoc writes the default names too
    real->file()->CopyJsonNameTo(&real_file);
    const bool same = told_file.SerializeAsString() == real_file.SerializeAsString();
    CHECK_MESSAGE(same, name);
  }
  CHECK(ours == 8);
  CHECK(reflection.End().ok());
}

TEST_CASE("reflection finds methods, messages, nested types and files, and says what it does not find") {
  const Agent agent;
  Reflection reflection(agent);
  api::ServerReflectionRequest request;
  for (const char* symbol :
       {"gcs.v1.GuestService.Info", "gcs.v1.InfoResponse", "gcs.v1.ShutdownRequest.Mode", "gcs.v1.Stream"}) {
    request.set_file_containing_symbol(symbol);
    CHECK_MESSAGE(reflection.Ask(request).has_file_descriptor_response(), symbol);
  }
  request.set_file_by_filename("gcs/v1/containers.proto");
  CHECK(reflection.Ask(request).file_descriptor_response().file_descriptor_proto_size() ==
        2);  // itself and common.proto
  request.set_file_containing_symbol("gcs.v1.Nothing");
  CHECK(reflection.Ask(request).error_response().error_code() == grpc::StatusCode::NOT_FOUND);
  request.set_file_by_filename("no.proto");
  CHECK(reflection.Ask(request).error_response().error_code() == grpc::StatusCode::NOT_FOUND);
  request.set_all_extension_numbers_of_type("gcs.v1.InfoResponse");
  CHECK(reflection.Ask(request).all_extension_numbers_response().base_type_name() == "gcs.v1.InfoResponse");
  request.Clear();
  CHECK(reflection.Ask(request).error_response().error_code() == grpc::StatusCode::INVALID_ARGUMENT);
  CHECK(reflection.End().ok());
}

}  // namespace
