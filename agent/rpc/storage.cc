// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/fd.h"
#include "gcs/v1/storage.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/services.h"
#include "rpc/unary.h"
#include "storage/storage.h"
#include "transport/dialer.h"

namespace gcs::rpc {

namespace {

namespace v1 = gcs::v1;

base::Result<storage::DiskAddress> FromProto(const v1::DiskAddress& address) {
  switch (address.address_case()) {
    case v1::DiskAddress::kScsi:
      return storage::ScsiAddress{address.scsi().controller(), address.scsi().controller_guid(),
                                  address.scsi().target(), address.scsi().lun()};
    case v1::DiskAddress::kPmem:
      return storage::PmemAddress{address.pmem()};
    case v1::DiskAddress::kVirtioSerial:
      return storage::SerialAddress{address.virtio_serial()};
    case v1::DiskAddress::ADDRESS_NOT_SET:
      break;
  }
  return base::MakeError(EINVAL, "check request", "disk", "no address");
}

void SetDisk(v1::Disk* out, const storage::Disk& disk) {
  out->set_device(disk.device);
  out->set_size_bytes(disk.size_bytes);
  out->set_read_only(disk.read_only);
  out->set_serial(ToUtf8(disk.serial));
  v1::DiskAddress* address = out->mutable_address();
  if (const auto* scsi = std::get_if<storage::ScsiAddress>(&disk.address)) {
    address->mutable_scsi()->set_controller(scsi->controller);
    address->mutable_scsi()->set_controller_guid(scsi->controller_guid);
    address->mutable_scsi()->set_target(scsi->target);
    address->mutable_scsi()->set_lun(scsi->lun);
  } else if (const auto* pmem = std::get_if<storage::PmemAddress>(&disk.address)) {
    address->set_pmem(pmem->index);
  } else if (const auto* serial = std::get_if<storage::SerialAddress>(&disk.address)) {
    address->set_virtio_serial(ToUtf8(serial->serial));
  }
}

base::Result<storage::ShareEngine> FromProto(v1::MountShareRequest::Engine engine) {
  switch (engine) {
    case v1::MountShareRequest::ENGINE_DEFAULT:
      return storage::ShareEngine::kDefault;
    case v1::MountShareRequest::ENGINE_V9FS:
      return storage::ShareEngine::kV9fs;
    case v1::MountShareRequest::ENGINE_COMPLETION:
      return storage::ShareEngine::kCompletion;
    default:
      return base::MakeError(EINVAL, "check request", "engine", std::to_string(engine));
  }
}

void SetMount(v1::Mount* out, const storage::MountInfo& mount) {
  out->set_mount_id(mount.mount_id);
  out->set_kind(std::string(storage::MountKindName(mount.kind)));
  out->set_path(mount.path);
  out->set_source(ToUtf8(mount.source));
  out->set_fs_type(mount.fs_type);
  out->set_read_only(mount.read_only);
  for (const std::string& id : mount.uses) out->add_uses(id);
  out->set_owner(mount.owner);
}

class StorageService final : public v1::StorageService::CallbackService {
 public:
  StorageService(Core* core, storage::Storage* storage, transport::Dialer* dialer)
      : core_(*core), storage_(*storage), dialer_(*dialer) {}

  grpc::ServerUnaryReactor* MountDisk(grpc::CallbackServerContext* context,
                                      const v1::MountDiskRequest* request,
                                      v1::MountDiskResponse* response) override {
    using Response = v1::MountDiskResponse;
    return Waiting<v1::MountDiskRequest, Response>(
        "StorageService.MountDisk", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<Response> {
          storage::DiskMount mount;
          mount.mount_id = r.mount_id();
          GCS_ASSIGN(mount.disk, FromProto(r.disk()));
          mount.partition = r.partition();
          mount.fs_type = r.fs_type();
          mount.read_only = r.read_only();
          mount.format_if_empty = r.format_if_empty();
          mount.options = {r.options().begin(), r.options().end()};
          mount.target = r.target();
          GCS_ASSIGN(const storage::Mounted mounted, storage_.MountDisk(mount, wait));
          Response out;
          out.set_path(mounted.path);
          out.set_device(mounted.device);
          out.set_formatted(mounted.formatted);
          SetTimings(out.mutable_timings(), mounted.timings);
          return out;
        });
  }

  grpc::ServerUnaryReactor* MountOverlay(grpc::CallbackServerContext* context,
                                         const v1::MountOverlayRequest* request,
                                         v1::MountOverlayResponse* response) override {
    using Response = v1::MountOverlayResponse;
    return Waiting<v1::MountOverlayRequest, Response>(
        "StorageService.MountOverlay", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<Response> {
          storage::OverlayMount mount;
          mount.mount_id = r.mount_id();
          mount.layers = {r.layers().begin(), r.layers().end()};
          mount.scratch = r.scratch();
          mount.scratch_dir = r.scratch_dir();
          mount.target = r.target();
          GCS_ASSIGN(const storage::Mounted mounted, storage_.MountOverlay(mount, wait));
          Response out;
          out.set_path(mounted.path);
          SetTimings(out.mutable_timings(), mounted.timings);
          return out;
        });
  }

  grpc::ServerUnaryReactor* MountShare(grpc::CallbackServerContext* context,
                                       const v1::MountShareRequest* request,
                                       v1::MountShareResponse* response) override {
    using Response = v1::MountShareResponse;
    return Waiting<v1::MountShareRequest, Response>(
        "StorageService.MountShare", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<Response> {
          storage::ShareMount mount;
          mount.mount_id = r.mount_id();
          mount.port = r.port();
          mount.share_name = r.share_name();
          mount.read_only = r.read_only();
          mount.msize = r.msize();
          mount.user_name = r.user_name();
          mount.target = r.target();
          GCS_ASSIGN(mount.engine, FromProto(r.engine()));
          mount.allowed_names = {r.allowed_names().begin(), r.allowed_names().end()};
          GCS_ASSIGN(base::Fd connection, dialer_.Dial(r.port(), wait.deadline_ns, wait.cancel_fd));
          GCS_ASSIGN(const storage::Mounted mounted, storage_.MountShare(mount, std::move(connection), wait));
          Response out;
          out.set_path(mounted.path);
          SetTimings(out.mutable_timings(), mounted.timings);
          return out;
        });
  }

  grpc::ServerUnaryReactor* MountTmpfs(grpc::CallbackServerContext* context,
                                       const v1::MountTmpfsRequest* request,
                                       v1::MountTmpfsResponse* response) override {
    using Response = v1::MountTmpfsResponse;
    return Waiting<v1::MountTmpfsRequest, Response>(
        "StorageService.MountTmpfs", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<Response> {
          storage::TmpfsMount mount;
          mount.mount_id = r.mount_id();
          mount.size_bytes = r.size_bytes();
          if (r.mode() != 0) mount.mode = r.mode();
          mount.target = r.target();
          GCS_ASSIGN(const storage::Mounted mounted, storage_.MountTmpfs(mount, wait));
          Response out;
          out.set_path(mounted.path);
          return out;
        });
  }

  grpc::ServerUnaryReactor* Unmount(grpc::CallbackServerContext* context, const v1::UnmountRequest* request,
                                    v1::UnmountResponse* response) override {
    return Waiting<v1::UnmountRequest, v1::UnmountResponse>(
        "StorageService.Unmount", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<v1::UnmountResponse> {
          GCS_TRY(storage_.Unmount(r.mount_id(), wait));
          return v1::UnmountResponse();
        });
  }

  grpc::ServerUnaryReactor* ListMounts(grpc::CallbackServerContext* context,
                                       const v1::ListMountsRequest* request,
                                       v1::ListMountsResponse* response) override {
    using Response = v1::ListMountsResponse;
    return Serve(core_, "StorageService.ListMounts", Access::kRead, context, request, response,
                 On<v1::ListMountsRequest, Response>(
                     core_.quick, [this](const Call&, const auto&) -> base::Result<Response> {
                       Response out;
                       for (const storage::MountInfo& mount : storage_.List())
                         SetMount(out.add_mounts(), mount);
                       return out;
                     }));
  }

  grpc::ServerUnaryReactor* WaitDisk(grpc::CallbackServerContext* context, const v1::WaitDiskRequest* request,
                                     v1::WaitDiskResponse* response) override {
    using Response = v1::WaitDiskResponse;
    return Waiting<v1::WaitDiskRequest, Response>(
        "StorageService.WaitDisk", Access::kRead, context, request, response,
        [this](const Call&, const auto& r, const storage::Wait& wait) -> base::Result<Response> {
          GCS_ASSIGN(const storage::DiskAddress address, FromProto(r.disk()));
          GCS_ASSIGN(const storage::Disk disk, storage_.WaitDisk(address, wait));
          Response out;
          SetDisk(out.mutable_disk(), disk);
          return out;
        });
  }

  grpc::ServerUnaryReactor* RemoveDisk(grpc::CallbackServerContext* context,
                                       const v1::RemoveDiskRequest* request,
                                       v1::RemoveDiskResponse* response) override {
    return Waiting<v1::RemoveDiskRequest, v1::RemoveDiskResponse>(
        "StorageService.RemoveDisk", Access::kWrite, context, request, response,
        [this](const Call&, const auto& r,
               const storage::Wait& wait) -> base::Result<v1::RemoveDiskResponse> {
          GCS_ASSIGN(const storage::DiskAddress address, FromProto(r.disk()));
          GCS_TRY(storage_.RemoveDisk(address, wait));
          return v1::RemoveDiskResponse();
        });
  }

  grpc::ServerUnaryReactor* ListDisks(grpc::CallbackServerContext* context,
                                      const v1::ListDisksRequest* request,
                                      v1::ListDisksResponse* response) override {
    using Response = v1::ListDisksResponse;
    return Serve(core_, "StorageService.ListDisks", Access::kRead, context, request, response,
                 On<v1::ListDisksRequest, Response>(
                     core_.storage, [this](const Call&, const auto&) -> base::Result<Response> {
                       GCS_ASSIGN(const auto disks, storage_.ListDisks());
                       Response out;
                       for (const storage::Disk& disk : disks) SetDisk(out.add_disks(), disk);
                       return out;
                     }));
  }

 private:
  // A call that may wait for devices or servers: with its deadline and its cancellation as storage takes
  // them.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Waiting(
      std::string_view method, Access access, grpc::CallbackServerContext* context, const Request* request,
      Response* response,
      std::function<base::Result<Response>(const Call&, const Request&, const storage::Wait&)> work) {
    return Serve(
        core_, method, access, context, request, response,
        OnCancellable<Request, Response>(
            core_.storage, [work = std::move(work)](const Call& call, const Request& r, int cancel_fd) {
              return work(call, r, storage::Wait{call.work_deadline_ns(), cancel_fd});
            }));
  }

  Core& core_;
  storage::Storage& storage_;
  transport::Dialer& dialer_;
};

}  // namespace

BuiltService MakeStorageService(Core* core, storage::Storage* storage, transport::Dialer* dialer) {
  return {std::make_unique<StorageService>(core, storage, dialer),
          {"StorageService.MountDisk", "StorageService.MountOverlay", "StorageService.MountShare",
           "StorageService.MountTmpfs", "StorageService.Unmount", "StorageService.ListMounts",
           "StorageService.WaitDisk", "StorageService.RemoveDisk", "StorageService.ListDisks"}};
}

}  // namespace gcs::rpc
