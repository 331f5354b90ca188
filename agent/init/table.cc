// SPDX-License-Identifier: Apache-2.0
#include "init/table.h"

#include <sys/mount.h>

#include "base/clock.h"

namespace gcs::init {

namespace {

constexpr unsigned long kData = MS_NOSUID | MS_NODEV | MS_NOEXEC;

constexpr MountRow kMounts[] = {
    {"proc", "/proc", "proc", kData, nullptr, 0, OnFailure::kFatal},
    {"sysfs", "/sys", "sysfs", kData, nullptr, 0, OnFailure::kFatal},
    {"devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755", 0, OnFailure::kFatal},
    // Everybody may open a terminal; gid 5 is what images know as tty.
    {"devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,gid=5,ptmxmode=0666", 0755,
     OnFailure::kFatal},
    {"shm", "/dev/shm", "tmpfs", kData, "mode=1777", 0755, OnFailure::kLog},
    {"mqueue", "/dev/mqueue", "mqueue", kData, nullptr, 0755, OnFailure::kLog},
    // Without noexec: container roots and driver directories of the Windows shim are below /run.
    {"run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755", 0, OnFailure::kFatal},
    {"tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=25%", 0, OnFailure::kFatal},
    // nsdelegate: a container with a cgroup namespace cannot touch its own limits. memory_recursiveprot: the
    // agent's memory.min holds for groups it makes below its own.
    {"cgroup2", "/sys/fs/cgroup", "cgroup2", kData, "nsdelegate,memory_recursiveprot", 0, OnFailure::kFatal},
    {"bpf", "/sys/fs/bpf", "bpf", kData, "mode=0700", 0, OnFailure::kIgnore},
    {"securityfs", "/sys/kernel/security", "securityfs", kData, nullptr, 0, OnFailure::kIgnore},
};

constexpr DirectoryRow kDirectories[] = {
    {"/run/gcs", 0700},
    {"/run/resolvconf", 0755},  // where /etc/resolv.conf of the image points
    {"/run/lock", 0755},
};

constexpr LinkRow kLinks[] = {
    {"/dev/fd", "/proc/self/fd", OnFailure::kLog},
    {"/dev/stdin", "/proc/self/fd/0", OnFailure::kLog},
    {"/dev/stdout", "/proc/self/fd/1", OnFailure::kLog},
    {"/dev/stderr", "/proc/self/fd/2", OnFailure::kLog},
};

// The agent's, and a container's whose config names none. The soft limit of descriptors is what programs
// expect that use select(2) or close every number up to it; a program that needs more raises its own.
constexpr LimitRow kLimits[] = {
    {RLIMIT_NOFILE, "nofile", 1024, 1048576},
    // Counted by user id over all containers, which know nothing of each other; pids.max is their limit.
    {RLIMIT_NPROC, "nproc", RLIM_INFINITY, RLIM_INFINITY},
    {RLIMIT_SIGPENDING, "sigpending", RLIM_INFINITY, RLIM_INFINITY},
    // Core files are for who asks for them.
    {RLIMIT_CORE, "core", 0, RLIM_INFINITY},
};

constexpr SettingRow kSettings[] = {
    // Grace periods of some µs instead of some ticks, for an interrupt on each of the VM's few processors:
    // what a container's
    // start and end wait for most (mounts, namespaces, cgroups), and 10 ms of the boot.
    {"/sys/kernel/rcu_expedited", "1", OnFailure::kLog},
    // A dead kernel must not look like a slow one: restart at once, which the host sees as the end of the VM.
    {"/proc/sys/kernel/panic", "-1", OnFailure::kLog},
    // The lines of init and the agent are the only ones written to /dev/kmsg, none of them may be dropped.
    // The newline is part
    // of what the kernel takes; after printk.devkmsg= on the command line it takes nothing.
    {"/proc/sys/kernel/printk_devkmsg", "on\n", OnFailure::kLog},
    // Default 32768 for a small machine: 500 containers of thread-happy programs come near.
    {"/proc/sys/kernel/pid_max", "4194304", OnFailure::kLog},
    // Every container start makes a session keyring; containers that use the same user id share its quota of
    // 200.
    {"/proc/sys/kernel/keys/maxkeys", "20000", OnFailure::kLog},
    {"/proc/sys/kernel/keys/maxbytes", "2000000", OnFailure::kLog},
    // Links and files in world-writable directories: the kernel's defaults are off, every distribution turns
    // them on.
    {"/proc/sys/fs/protected_symlinks", "1", OnFailure::kLog},
    {"/proc/sys/fs/protected_hardlinks", "1", OnFailure::kLog},
    {"/proc/sys/fs/protected_fifos", "1", OnFailure::kLog},
    {"/proc/sys/fs/protected_regular", "1", OnFailure::kLog},
    // No core or write access for what has changed its identity.
    {"/proc/sys/fs/suid_dumpable", "0", OnFailure::kLog},
    // Not namespaced and too small for databases and search engines, which refuse to start: a container
    // cannot raise them.
    {"/proc/sys/vm/max_map_count", "1048576", OnFailure::kLog},
    {"/proc/sys/fs/aio-max-nr", "1048576", OnFailure::kIgnore},
    // By user id over all containers (default 128).
    {"/proc/sys/fs/inotify/max_user_instances", "8192", OnFailure::kIgnore},
};

}  // namespace

constexpr Table kUtilityVm{
    .kernel_log = "/dev/kmsg",
    .mounts = kMounts,
    .directories = kDirectories,
    .links = kLinks,
    .limits = kLimits,
    .settings = kSettings,
    .cgroup_root = "/sys/fs/cgroup",
    .agent_memory_min = 32ULL << 20,
    .modules = "/lib/modules",
    .boot_record = "/run/gcs/boot",
    .agent = "/bin/gcs",
    .teardown_ns = 15 * base::kNsPerSec,
    .detach_devices = true,
};

}  // namespace gcs::init
