// SPDX-License-Identifier: Apache-2.0
// The probe that decides whether KVM is used, with programs in QEMU's place.
#include <doctest/doctest.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/clock.h"
#include "base/paths.h"
#include "host/vm/accel.h"
#include "support/temp.h"

namespace gcs::host {

namespace {

// A cache, a device and a QEMU of a test's own. The QEMU counts its runs; `script` sees the console's file as
// $console and the command line as "$@".
class Rig {
 public:
  explicit Rig(const std::string& script) : qemu_(dir_ / "qemu"), device_(dir_ / "kvm") {
    if (const char* cache = getenv("GCS_CACHE"); cache != nullptr) old_cache_ = cache;
    setenv("GCS_CACHE", (dir_ / "cache").c_str(), 1);
    REQUIRE(base::ReplaceFile(qemu_,
                              "#!/bin/sh\necho run >>" + (dir_ / "runs") +
                                  "\nfor word; do console=${word#file:}; done\n" + script + "\n",
                              0755));
    REQUIRE(base::ReplaceFile(device_, "", 0600));
  }
  ~Rig() {
    if (old_cache_.empty()) {
      unsetenv("GCS_CACHE");
    } else {
      setenv("GCS_CACHE", old_cache_.c_str(), 1);
    }
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  [[nodiscard]] Accel Ask(Accel wanted = Accel::kAuto) const {
    const auto accel = ResolveAccel(wanted, qemu_, "/the/kernel", device_);
    REQUIRE_MESSAGE(accel, (accel ? "" : accel.error().ToString()));
    return *accel;
  }
  [[nodiscard]] size_t runs() const { return base::ReadFile(dir_ / "runs").value_or("").size() / 4; }
  void RemoveDevice() const { std::filesystem::remove(device_); }
  // What is kept of the answer.
  [[nodiscard]] std::string Kept() const {
    std::string kept;
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(dir_ / "cache", error))
      kept += base::ReadFile(entry.path()).value_or("");
    return kept;
  }

 private:
  test::TempDir dir_;
  std::string qemu_, device_, old_cache_;
};

constexpr const char* kPanics = "echo 'Kernel panic - not syncing' >$console";

}  // namespace

TEST_CASE("KVM that boots the kernel to its panic is used, and asked only once") {
  const Rig rig(std::string(R"(case "$*" in *"-accel kvm"*"-kernel /the/kernel"*) ;; *) exit 1 ;; esac; )") +
                kPanics);
  CHECK(rig.Ask() == Accel::kKvm);
  CHECK(rig.Kept() == "works\n");
  CHECK(rig.Ask() == Accel::kKvm);
  CHECK(rig.runs() == 1);
}

TEST_CASE("KVM whose QEMU aborts is not used; what QEMU said is kept") {
  const Rig rig("echo 'failed to set MSR' >&2; kill -ABRT $$");
  CHECK(rig.Ask() == Accel::kTcg);
  CHECK(rig.Kept() == "fails: QEMU ended early: failed to set MSR \n");
  CHECK(rig.Ask() == Accel::kTcg);
  CHECK(rig.runs() == 1);
}

TEST_CASE("KVM whose QEMU ends well without a word of the kernel, or badly after it, is not used") {
  CHECK(Rig("exit 0").Ask() == Accel::kTcg);
  CHECK(Rig(std::string(kPanics) + "; exit 1").Ask() == Accel::kTcg);
}

TEST_CASE("KVM that hangs is not used, and its QEMU is killed after 3 s") {
  const Rig rig(std::string(kPanics) + "; exec sleep 1000");
  const int64_t begin = base::MonotonicNs();
  CHECK(rig.Ask() == Accel::kTcg);
  CHECK(base::MonotonicNs() - begin >= 3 * base::kNsPerSec);
  CHECK(rig.Kept() == "fails: did not boot within 3 s\n");
}

TEST_CASE("without the device, or with another wish, nothing is booted") {
  const Rig rig(kPanics);
  CHECK(rig.Ask(Accel::kTcg) == Accel::kTcg);
  CHECK(rig.Ask(Accel::kKvm) == Accel::kKvm);
  rig.RemoveDevice();
  CHECK(rig.Ask() == Accel::kTcg);
  CHECK(rig.runs() == 0);
  CHECK(rig.Kept().empty());
}

TEST_CASE("a QEMU that is not there is an error, which is not kept") {
  const Rig rig(kPanics);
  const test::TempDir dir;
  REQUIRE(base::ReplaceFile(dir / "kvm", "", 0600));
  CHECK_FALSE(ResolveAccel(Accel::kAuto, dir / "no-qemu", "/the/kernel", dir / "kvm"));
  CHECK(rig.Kept().empty());
}

}  // namespace gcs::host
