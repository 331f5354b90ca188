#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Boots the image with a stand-in (tests/system/init/standin.cc) in the agent's place, and looks at what init does on a real
kernel: roots, cgroups, modules, the end of the machine. GCS_KERNEL_DIR names the kernel, built if it is not set."""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
MICROVM = ["-M", "microvm,acpi=off", "-append", "console=ttyS0 reboot=t panic=-1 gcs.poweroff=reboot"]
Q35 = ["-M", "q35", "-append", "console=ttyS0 reboot=t panic=-1"]
TIME_LIMIT = 120
CASES = []


def case(name):
    def register(function):
        CASES.append((name, function))
        return function
    return register


def last_line(command):
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode().splitlines()[-1]


class Machine:
    """One run of QEMU, to its end."""

    def __init__(self, image, machine, words, extra=(), kernel="vmlinux"):
        machine = list(machine)
        machine[-1] += f" {words}"
        command = ["qemu-system-x86_64", *machine, "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-nodefaults",
                   "-no-reboot", "-display", "none", "-serial", "stdio", "-kernel", os.path.join(image, kernel), *extra]
        if not any("root=" in word for word in machine):
            command += ["-initrd", os.path.join(image, "initrd.img")]
        # The serial console is the log; an exit in time is what most cases are about.
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=TIME_LIMIT, check=False)
        self.output = done.stdout.decode(errors="replace").replace("\r", "")
        self.status = done.returncode

    def said(self, key):
        match = re.search(rf"gcs: standin {re.escape(key)} (.*)", self.output)
        return match[1] if match else None

    def has(self, text):
        return text in self.output


def expect(machine, condition, what):
    if not condition:
        sys.stderr.write(machine.output)
        raise AssertionError(what)


def expect_equal(machine, key, value):
    expect(machine, machine.said(key) == value, f"{key} is {machine.said(key)}, not {value}")


def check_surroundings(machine):
    for key, value in (("hello", "1 0"), ("fds", "0,1,2,3"), ("cgroup", "0::/gcs"), ("init-cgroup", "0::/init"), ("oom", "-1000"),
                       ("hostname", "tester"), ("memory-min", str(32 << 20)), ("root-write", "EROFS"), ("exe-write", "EROFS"),
                       ("run-write", "done"), ("pivot", "0"), ("nofile", "1024 1048576"), ("zombies", "0"),
                       ("end", "accepted")):
        expect_equal(machine, key, value)
    controllers = set((machine.said("controllers") or "").split())
    expect(machine, {"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} <= controllers, f"controllers: {controllers}")
    expect(machine, not machine.has("set-up goes on"), "a part of the set-up failed")
    expect(machine, not machine.has("Kernel panic"), "the kernel panicked")
    targets = re.findall(r"gcs: standin mount \d+ \d+ \S+ \S+ (\S+) ", machine.output)
    expect(machine, sorted(targets) == sorted(set(targets)), f"mounted twice: {targets}")


@case("microvm: the initramfs becomes a sealed root that pivot_root takes, with cgroups, virtio-vsock and boot times; power-off resets")
def microvm(image, _):
    machine = Machine(image, MICROVM, "gcs.hostname=tester gcs.look gcs.garbage gcs.orphans=200 gcs.grace=200 gcs.end=poweroff")
    check_surroundings(machine)
    expect_equal(machine, "vsock-module", "live")
    boot = dict(part.split(" ") for part in machine.said("boot").rstrip(";").split(";"))
    expect(machine, list(boot) == ["mounts", "settings", "modules", "agent"], f"phases {boot}")
    times = [int(value) for value in boot.values()]
    expect(machine, times == sorted(times) and times[0] > 0 and times[-1] <= int(machine.said("now")), f"times {times}")
    expect(machine, machine.has("reboot: Restarting system"), "no reset")


@case("q35: power-off switches the machine off")
def q35(image, _):
    machine = Machine(image, Q35, "gcs.hostname=tester gcs.look gcs.orphans=20 gcs.grace=200 gcs.end=poweroff", kernel="kernel")
    check_surroundings(machine)
    expect(machine, machine.has("reboot: Power down"), "not powered off")


@case("a restart request restarts a machine that could be switched off")
def restart(image, _):
    machine = Machine(image, Q35, "gcs.end=reboot")
    expect(machine, machine.has("reboot: Restarting system"), "no restart")


@case("a container process that ignores SIGTERM is killed after its grace, through its cgroup")
def linger(image, _):
    machine = Machine(image, MICROVM, "gcs.linger=60000 gcs.grace=300 gcs.end=poweroff")
    expect(machine, machine.has("processes outlived their grace"), "nobody lingered")
    down = re.search(r"init: down after (\d+) ms", machine.output)
    expect(machine, down and 300 <= int(down[1]) < 20000, "the end took its own time")


@case("a crashed agent is started again; the machine goes on")
def crash(image, _):
    machine = Machine(image, MICROVM, "gcs.crash-until=3 gcs.end=poweroff")
    expect(machine, len(re.findall(r"killed by signal 6 \(SIGABRT\); next start in", machine.output)) == 2, "not two restarts")
    expect(machine, machine.has("standin hello 3 134") or machine.has("standin hello 3 6"), "no third start")


@case("the Windows shim's form of the command line starts its own command, with the agent's flags left out")
def shim(image, _):
    machine = Machine(image, MICROVM, "gcs.port=7 -- -e 1 /bin/gcs --crash-until=0 --end=poweroff")
    flags = re.findall(r"standin flag (\S+)", machine.output)
    expect(machine, flags == ["--crash-until=0", "--end=poweroff"], f"flags {flags}")
    # No host answers on that port here: told, and no reason to stop.
    expect(machine, machine.has("host vsock port 1"), "entropy was not asked for")


@case("an ext4 disk as the root: stays read-only, is not covered, and nothing is mounted twice")
def disk(image, temporary):
    tree = os.path.join(temporary, "tree")
    os.makedirs(tree)
    unpacked = subprocess.run(["zstd", "-dcq", os.path.join(image, "initrd.img")], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["cpio", "-id", "--quiet"], input=unpacked, cwd=tree, check=True)
    path = os.path.join(temporary, "root.ext4")
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, path, "32M"], check=True)
    before = open(path, "rb").read()
    machine = Machine(image, MICROVM[:-1] + [MICROVM[-1] + " root=/dev/vda ro rootwait init=/init"],
                      "gcs.hostname=tester gcs.look gcs.orphans=5 gcs.grace=200 gcs.end=poweroff",
                      ["-drive", f"file={path},format=raw,if=none,id=root", "-device", "virtio-blk-device,drive=root"])
    check_surroundings(machine)
    expect(machine, re.search(r"standin mount \d+ \d+ \S+ / / ro\S* - ext4 ", machine.output), "the root is not the disk")
    expect(machine, open(path, "rb").read() == before, "the disk was written to")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--standin", required=True)
    parser.add_argument("filter", nargs="?", default="")
    arguments = parser.parse_args()
    kernel = os.environ.get("GCS_KERNEL_DIR") or last_line(["scripts/build-kernel"])
    image = last_line(["scripts/build-image", "--kernel", kernel, "--agent", arguments.standin])
    failed = False
    for name, function in CASES:
        if arguments.filter not in name:
            continue
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="init_vm.") as temporary:
            try:
                function(image, temporary)
                print(f"PASS {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed = True
                print(f"FAIL {name}: {type(error).__name__} {error}"[:500].replace("\n", " "), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
