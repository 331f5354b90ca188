// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "gcs/v1/containers.pb.h"
#include "gcs/v1/events.pb.h"
#include "gcs/v1/guest.pb.h"
#include "gcs/v1/network.pb.h"
#include "gcs/v1/pods.pb.h"
#include "gcs/v1/processes.pb.h"
#include "gcs/v1/storage.pb.h"

// Which response answers which request, and by which RPC: every request message of the contract belongs to
// one. The unary methods only.
namespace gcs::host {

template <typename Request>
struct Method;

#define GCS_METHOD(service, method, request, response)               \
  template <>                                                        \
  struct Method<v1::request> {                                       \
    using Response = v1::response;                                   \
    static constexpr char kPath[] = "/gcs.v1." #service "/" #method; \
  };

GCS_METHOD(ContainerService, Create, CreateContainerRequest, CreateContainerResponse)
GCS_METHOD(ContainerService, Start, StartContainerRequest, StartContainerResponse)
GCS_METHOD(ContainerService, Wait, WaitContainerRequest, WaitContainerResponse)
GCS_METHOD(ContainerService, Signal, SignalContainerRequest, SignalContainerResponse)
GCS_METHOD(ContainerService, Delete, DeleteContainerRequest, DeleteContainerResponse)
GCS_METHOD(ContainerService, List, ListContainersRequest, ListContainersResponse)
GCS_METHOD(ContainerService, State, ContainerStateRequest, ContainerStateResponse)
GCS_METHOD(ContainerService, Pause, PauseContainerRequest, PauseContainerResponse)
GCS_METHOD(ContainerService, Resume, ResumeContainerRequest, ResumeContainerResponse)
GCS_METHOD(ContainerService, Update, UpdateContainerRequest, UpdateContainerResponse)
GCS_METHOD(ContainerService, Stats, ContainerStatsRequest, ContainerStatsResponse)

GCS_METHOD(ProcessService, Exec, ExecRequest, ExecResponse)
GCS_METHOD(ProcessService, Wait, WaitProcessRequest, WaitProcessResponse)
GCS_METHOD(ProcessService, Signal, SignalProcessRequest, SignalProcessResponse)
GCS_METHOD(ProcessService, Resize, ResizeRequest, ResizeResponse)
GCS_METHOD(ProcessService, List, ListProcessesRequest, ListProcessesResponse)
GCS_METHOD(ProcessService, Delete, DeleteProcessRequest, DeleteProcessResponse)
GCS_METHOD(ProcessService, ExecInGuest, ExecInGuestRequest, ExecInGuestResponse)

GCS_METHOD(PodService, Create, CreatePodRequest, CreatePodResponse)
GCS_METHOD(PodService, Delete, DeletePodRequest, DeletePodResponse)
GCS_METHOD(PodService, List, ListPodsRequest, ListPodsResponse)

GCS_METHOD(NetworkService, ConfigureInterface, ConfigureInterfaceRequest, ConfigureInterfaceResponse)
GCS_METHOD(NetworkService, RemoveInterface, RemoveInterfaceRequest, RemoveInterfaceResponse)
GCS_METHOD(NetworkService, ListInterfaces, ListInterfacesRequest, ListInterfacesResponse)
GCS_METHOD(NetworkService, ConfigureDns, ConfigureDnsRequest, ConfigureDnsResponse)

GCS_METHOD(StorageService, MountDisk, MountDiskRequest, MountDiskResponse)
GCS_METHOD(StorageService, MountOverlay, MountOverlayRequest, MountOverlayResponse)
GCS_METHOD(StorageService, MountShare, MountShareRequest, MountShareResponse)
GCS_METHOD(StorageService, MountTmpfs, MountTmpfsRequest, MountTmpfsResponse)
GCS_METHOD(StorageService, Unmount, UnmountRequest, UnmountResponse)
GCS_METHOD(StorageService, ListMounts, ListMountsRequest, ListMountsResponse)
GCS_METHOD(StorageService, WaitDisk, WaitDiskRequest, WaitDiskResponse)
GCS_METHOD(StorageService, RemoveDisk, RemoveDiskRequest, RemoveDiskResponse)
GCS_METHOD(StorageService, ListDisks, ListDisksRequest, ListDisksResponse)

GCS_METHOD(GuestService, Info, InfoRequest, InfoResponse)
GCS_METHOD(GuestService, SetTime, SetTimeRequest, SetTimeResponse)
GCS_METHOD(GuestService, AddEntropy, AddEntropyRequest, AddEntropyResponse)
GCS_METHOD(GuestService, Shutdown, ShutdownRequest, ShutdownResponse)
GCS_METHOD(GuestService, Sysctl, SysctlRequest, SysctlResponse)
GCS_METHOD(GuestService, FlightRecorder, FlightRecorderRequest, FlightRecorderResponse)
GCS_METHOD(GuestService, Apply, ApplyRequest, ApplyResponse)

#undef GCS_METHOD

}  // namespace gcs::host
