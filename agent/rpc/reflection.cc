// SPDX-License-Identifier: Apache-2.0
#include <grpcpp/support/server_callback.h>

#include <string>
#include <utility>

#include "base/log.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "rpc/descriptors.h"
#include "rpc/services.h"

// The FileDescriptorSet that protoc wrote, as it is. GCS_DESCRIPTOR_SET is the file's path.
asm(".pushsection .rodata.gcs_descriptors,\"a\",@progbits\n"
    ".global gcs_descriptors_begin\n"
    ".global gcs_descriptors_end\n"
    "gcs_descriptors_begin:\n"
    ".incbin \"" GCS_DESCRIPTOR_SET
    "\"\n"
    "gcs_descriptors_end:\n"
    ".popsection\n");
extern "C" const char gcs_descriptors_begin[];
extern "C" const char gcs_descriptors_end[];

namespace gcs::rpc {

namespace {

namespace api = grpc::reflection::v1alpha;

void SetError(api::ServerReflectionResponse* response, grpc::StatusCode code, std::string message) {
  response->mutable_error_response()->set_error_code(code);
  response->mutable_error_response()->set_error_message(std::move(message));
}

api::ServerReflectionResponse Answer(const Descriptors& descriptors,
                                     const api::ServerReflectionRequest& request) {
  api::ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  const auto files = [&response](const std::vector<std::string>& found, const std::string& name) {
    if (found.empty()) SetError(&response, grpc::StatusCode::NOT_FOUND, name + " not found");
    for (const std::string& file : found)
      response.mutable_file_descriptor_response()->add_file_descriptor_proto(file);
  };
  using Request = api::ServerReflectionRequest;
  switch (request.message_request_case()) {
    case Request::kListServices:
      response.mutable_list_services_response();
      for (const std::string& name : descriptors.services()) {
        response.mutable_list_services_response()->add_service()->set_name(name);
      }
      break;
    case Request::kFileByFilename:
      files(descriptors.File(request.file_by_filename()), request.file_by_filename());
      break;
    case Request::kFileContainingSymbol:
      files(descriptors.FileOf(request.file_containing_symbol()), request.file_containing_symbol());
      break;
    case Request::kFileContainingExtension:  // proto3 has no extensions, and the contract has no proto2 file
      SetError(&response, grpc::StatusCode::NOT_FOUND,
               request.file_containing_extension().containing_type() + " has no extensions");
      break;
    case Request::kAllExtensionNumbersOfType:
      if (descriptors.HasSymbol(request.all_extension_numbers_of_type())) {
        response.mutable_all_extension_numbers_response()->set_base_type_name(
            request.all_extension_numbers_of_type());
      } else {
        SetError(&response, grpc::StatusCode::NOT_FOUND,
                 request.all_extension_numbers_of_type() + " not found");
      }
      break;
    case Request::MESSAGE_REQUEST_NOT_SET:
      SetError(&response, grpc::StatusCode::INVALID_ARGUMENT, "the request asks for nothing known");
      break;
  }
  return response;
}

// Answers one request at a time, in order.
class Conversation final
    : public grpc::ServerBidiReactor<api::ServerReflectionRequest, api::ServerReflectionResponse> {
 public:
  explicit Conversation(const Descriptors& descriptors) : descriptors_(descriptors) { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status::OK);
      return;
    }
    response_ = Answer(descriptors_, request_);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      StartRead(&request_);
    } else {
      Finish(grpc::Status::CANCELLED);
    }
  }
  void OnDone() override { delete this; }

 private:
  const Descriptors& descriptors_;
  api::ServerReflectionRequest request_;
  api::ServerReflectionResponse response_;
};

class ReflectionService final : public api::ServerReflection::CallbackService {
 public:
  explicit ReflectionService(Descriptors descriptors) : descriptors_(std::move(descriptors)) {}

  grpc::ServerBidiReactor<api::ServerReflectionRequest, api::ServerReflectionResponse>* ServerReflectionInfo(
      grpc::CallbackServerContext* /*context*/) override {
    return new Conversation(descriptors_);
  }

 private:
  const Descriptors descriptors_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeReflectionService() {
  auto descriptors = Descriptors::Parse(
      {gcs_descriptors_begin, static_cast<size_t>(gcs_descriptors_end - gcs_descriptors_begin)});
  if (!descriptors) {
    base::LogError("reflection is off", descriptors.error());
    return nullptr;
  }
  return std::make_unique<ReflectionService>(*std::move(descriptors));
}

}  // namespace gcs::rpc
