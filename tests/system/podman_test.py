#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""podman with gcs-oci as its runtime, and with Debian's runc as control: the same command has the same result. Without a network.
On a machine with cgroup v1; tests/vm/debian runs it where cgroup2 has every controller (tests/README.md)."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time

from oci_support import (CAP_SYS_RESOURCE, CASES, CGROUPS, GCS_OCI, RUNC, Done, Machine, case, command, has_capability, in_views, mount, read,
                         read_terminal, run_cases, until, write)

# podman raises these, if it may.
LIMITS = [] if has_capability(CAP_SYS_RESOURCE) else ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
IMAGE = "localhost/busybox"
SECONDS = 120  # For what may take some of them in a VM.


class Podman:
    """podman with one runtime and a storage of its own."""

    def __init__(self, machine, runtime):
        self.machine = machine
        self.runtime = runtime
        self.said = ""  # by the last run
        self.dir = machine.path("podman-" + os.path.basename(runtime))
        self.parent = f"{machine.parent}/podman"
        for name in ("root", "runroot", "tmp", "home"):
            os.makedirs(os.path.join(self.dir, name))
        config = write(os.path.join(self.dir, "containers.conf"), '[engine]\nevents_logger = "file"\n[containers]\nlog_driver = "k8s-file"\n')
        self.environment = {**os.environ, "CONTAINERS_CONF": config, "HOME": os.path.join(self.dir, "home"), "TMPDIR": os.path.join(self.dir, "tmp")}
        tar = os.path.join(self.dir, "image.tar")
        subprocess.run(["tar", "-C", machine.rootfs, "-cf", tar, "."], check=True)
        done = self("import", tar, IMAGE)
        assert done.code == 0, done
        os.unlink(tar)

    def words(self, *words):
        flags = ["--runtime", self.runtime, "--root", f"{self.dir}/root", "--runroot", f"{self.dir}/runroot", "--tmpdir", f"{self.dir}/tmp",
                 "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--log-level", "error"]
        return ["podman", *flags, *words]

    def __call__(self, *words, **options):
        return command(self.words(*words), env=self.environment, timeout=SECONDS, **options)

    def make(self, act, *words):
        return [act, "--network", "none", *LIMITS, "--cgroup-parent", self.parent, *words]

    def run(self, *words, **options):
        done = self(*self.make("run", "--rm", *words), **options)
        self.said = done.err
        return done

    @contextlib.contextmanager
    def container(self, *words):
        """One that runs in the background, by name."""
        name = self.machine.name("p")
        done = self(*self.make("run", "--detach", "--name", name, *words))
        assert done.code == 0, done
        try:
            yield name
        finally:
            removed = self("rm", "--force", "--time", "0", name)
            assert removed.code == 0, removed


def plain(text):
    """Without what differs from one container to the next."""
    return re.sub(r"[0-9a-f]{12,64}|\b[cp]\d+\b", "ID", text)


def same(oci, runc, act, *arguments):
    """The result of an act with gcs-oci, after comparing it with runc's. Where runc is no Podman, that was done elsewhere."""
    mine = act(oci, *arguments)
    if not isinstance(runc, Podman):
        return mine
    theirs = act(runc, *arguments)
    assert mine == theirs, f"{mine!r}, runc: {theirs!r}; {oci.said}"
    return mine


def result(done):
    return done.code, plain(done.out)


def run(podman, *words):
    return result(podman.run(*words))


@case("run: output, input, exit codes and the wording of failures")
def runs(oci, runc):
    assert same(oci, runc, run, IMAGE, "echo", "hello", "[a,b]", "{}") == (0, "hello [a,b] {}\n")
    assert same(oci, runc, run, IMAGE, "sh", "-c", "exit 7")[0] == 7
    assert same(oci, runc, run, IMAGE, "no-such-program")[0] == 127
    assert same(oci, runc, run, IMAGE, "/etc/passwd")[0] == 126
    assert same(oci, runc, lambda podman: result(podman.run("-i", IMAGE, "cat", stdin=b"in"))) == (0, "in")
    assert same(oci, runc, run, "-u", "user", "-w", "/tmp", "-e", "A=b c", "-h", "host", IMAGE, "sh", "-c", "id -u; pwd; echo $A; hostname")[0] == 0


def begun(podman, *words, **options):
    with podman.container(*words) as name:
        results = []
        for act in options["acts"]:
            done = podman(*[name if word == "NAME" else word for word in act])
            results.append((act, *result(done)))
        return results


@case("exec, logs, ps, inspect, kill and wait")
def acts(oci, runc):
    script = "trap 'echo got term; exit 5' TERM; echo started; while :; do sleep 0.05; done"
    seen = same(oci, runc, lambda podman: begun(podman, IMAGE, "sh", "-c", script, acts=[
        ["exec", "NAME", "sh", "-c", "echo out; exit 3"],
        ["exec", "-u", "1000", "-w", "/tmp", "-e", "X=y", "NAME", "sh", "-c", "id -u; pwd; echo $X"],
        ["exec", "NAME", "no-such-program"],
        ["exec", "NAME", "/etc/passwd"],
        ["exec", "--detach", "NAME", "touch", "/tmp/made"],
        ["ps", "--format", "{{.Status}} {{.Names}}", "--filter", "status=exited"],
        ["top", "NAME", "args"],
        ["kill", "--signal", "TERM", "NAME"],
        ["wait", "NAME"],
        ["logs", "NAME"],
        ["exec", "NAME", "true"],
        ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "NAME"]]))
    assert [step[1] for step in seen] == [0 if code is None else code for code in (3, None, 127, 126, None, None, None, None, None, None, 255, None)], seen
    assert seen[9][2] == "started\ngot term\n" and seen[8][2] == "5\n" and seen[11][2] == "exited 5 false\n", seen


@case("stop, start again, pause and unpause")
def life(oci, runc):
    state = ["inspect", "--format", "{{.State.Status}}", "NAME"]
    seen = same(oci, runc, lambda podman: begun(podman, IMAGE, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done", acts=[
        ["pause", "NAME"], state, ["exec", "NAME", "true"], ["unpause", "NAME"], state, ["stop", "--time", "5", "NAME"], state,
        ["start", "NAME"], state, ["restart", "--time", "0", "NAME"], ["kill", "NAME"], ["wait", "NAME"]]))
    assert [step[2].strip() for step in seen if step[0] is state] == ["paused", "running", "exited", "running"], seen
    assert seen[-1][2] == "137\n", seen


def cgroup_of(podman, name, controller=""):
    """The directory of a container's processes."""
    container = podman("inspect", "--format", "{{.ID}}", name).out.strip()
    for path, names, _ in os.walk(os.path.join(CGROUPS, controller) + podman.parent):
        if container in path and not [below for below in names if container in below]:
            return path
    raise AssertionError(f"no cgroup of {name}")


def value(*path):
    return read(os.path.join(*path)).strip()


def stats(podman, name):
    told = podman("stats", "--no-stream", "--format", "json", name)
    assert told.code == 0, told
    return json.loads(told.out)[0]


def limit_files(podman, *words):
    """The limits that a container has got, and what stats tells of it."""
    files = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"}
    with podman.container(*words) as name:
        if podman.machine.view == "v2":
            path = cgroup_of(podman, name)
            done = {file: value(path, file) for file in ("memory.max", "memory.low", "pids.max", "cpu.max", "cpuset.cpus")}
            assert value(path, "cpu.weight") == weight(podman, 512)
        else:
            done = {file: value(cgroup_of(podman, name, controller), file) for controller, file in files.items()}
        # Two for a moment: runc's own process is still at its end.
        row = until("one process", lambda: (now := stats(podman, name))["pids"] == "1" and now, SECONDS)
        return done, sorted(row), row["mem_usage"].split("/")[1].strip()


def weight(podman, shares):
    """cpu.weight for cpu.shares: runc 1.1.5 has a straight line, where the default 1024 became 39 instead of 100."""
    return {GCS_OCI: {512: "59", 2048: "174"}, RUNC: {512: "20", 2048: "79"}}[podman.runtime][shares]


LIMITED = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "33"]


@case("--memory, --cpus, --pids-limit, and stats", views=("v1",))
def limits(oci, runc):
    files, _, memory = same(oci, runc, limit_files, *LIMITED, IMAGE, "sleep", "1000")
    assert files == {"memory.limit_in_bytes": str(64 << 20), "pids.max": "33", "cpu.cfs_quota_us": "50000"} and memory == "67.11MB", (files, memory)


@case("--memory, --memory-reservation, --cpus, --cpu-shares, --cpuset-cpus, --pids-limit, and stats", views=("v2",))
def limits_v2(oci, runc):
    files, _, memory = same(oci, runc, limit_files, *LIMITED, "--memory-reservation", "32m", "--cpu-shares", "512", "--cpuset-cpus", "0", IMAGE, "sleep", "1000")
    assert files == {"memory.max": str(64 << 20), "memory.low": str(32 << 20), "pids.max": "33", "cpu.max": "50000 100000",
                     "cpuset.cpus": "0"} and memory == "67.11MB", (files, memory)


@case("a container over its memory is killed; one whose child is killed runs on", views=("v2",))
def out_of_memory(oci, runc):
    def whole(podman):
        name = podman.machine.name("p")
        done = podman(*podman.make("run", "--name", name, "--memory", "32m", "--memory-swap", "32m", IMAGE, "tail", "/dev/zero"))
        state = podman("inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", name)
        assert podman("rm", name).code == 0
        return done.code, state.out

    # conmon 2.1.6 stops looking at memory.events before the kill: OOMKilled is false, with either runtime.
    code, _ = same(oci, runc, whole)
    assert code == 137
    assert same(oci, runc, run, "--memory", "32m", "--memory-swap", "32m", IMAGE, "sh", "-c",
                "tail /dev/zero; echo $?; grep oom_kill' ' /sys/fs/cgroup/memory.events; exit 3") == (3, "137\noom_kill 1\n")
    # The same has room in the machine.
    assert same(oci, runc, run, IMAGE, "sh", "-c", "head -c 48m /dev/zero | tail >/dev/null; echo $?") == (0, "0\n")


@case("--pids-limit ends forks", views=("v2",))
def forks(oci, runc):
    script = "trap 'jobs -p | wc -l' EXIT; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"

    def refused(podman, *words):
        done = podman.run(*words, IMAGE, "sh", "-c", script)
        return done.code, "can't fork: Resource temporarily unavailable" in done.err, "all" in done.out

    assert same(oci, runc, refused, "--pids-limit", "5") == (2, True, False)
    assert same(oci, runc, refused) == (0, False, True)


SPIN = "while :; do :; done"


@case("--cpus slows a busy container down, --cpuset-cpus keeps it where it may be", views=("v2",))
def throttled(oci, runc):
    used = "sed -n 's/usage_usec //p' /sys/fs/cgroup/cpu.stat"
    show = f"a=$({used}); timeout 3 sh -c '{SPIN}'; b=$({used}); echo $((b - a)); grep nr_throttled /sys/fs/cgroup/cpu.stat"
    for podman in (oci, runc):
        done = podman.run("--cpus", "0.2", IMAGE, "sh", "-c", show)
        microseconds, _, throttles = done.out.split()
        # A fifth of 3 s, and what a period may go over.
        assert 100_000 < int(microseconds) < 1_000_000 and int(throttles) > 5, done
    assert same(oci, runc, run, "--cpuset-cpus", "1", IMAGE, "grep", "Cpus_allowed_list", "/proc/self/status") == (0, "Cpus_allowed_list:\t1\n")


@case("stats of a busy container has its numbers, update changes its limits", views=("v2",))
def update(oci, runc):
    def whole(podman):
        with podman.container("--memory", "64m", "--cpus", "0.5", "--pids-limit", "33", IMAGE, "sh", "-c", f"x=$(head -c 8m /dev/zero | tr '\\0' x); echo has it; {SPIN}") as name:
            until("memory is used", lambda: "has it" in podman("logs", name).out, SECONDS)
            row = until("one process", lambda: (now := stats(podman, name))["pids"] == "1" and now, SECONDS)
            assert float(row["cpu_percent"].rstrip("%")) > 0, row
            assert 8 <= float(row["mem_usage"].split("MB")[0]) < 64 and 12 < float(row["mem_percent"].rstrip("%")) < 100, row
            changed = podman("update", "--memory", "96m", "--cpus", "0.7", "--cpu-shares", "2048", "--cpuset-cpus", "0", name)
            path = cgroup_of(podman, name)
            assert value(path, "cpu.weight") == weight(podman, 2048)
            return changed.code, [value(path, file) for file in ("memory.max", "cpu.max", "cpuset.cpus", "pids.max")]

    assert same(oci, runc, whole) == (0, [str(96 << 20), "70000 100000", "0", "33"])


@case("pause stops a busy container at once, unpause lets it go on, rm ends it paused", views=("v2",))
def paused(oci, runc):
    def used(path):
        return int(re.search(r"usage_usec (\d+)", value(path, "cpu.stat"))[1])

    def whole(podman):
        with podman.container(IMAGE, "sh", "-c", f"for i in 1 2 3 4; do ({SPIN}) & done; {SPIN}") as name:
            path = cgroup_of(podman, name)
            until("all are busy", lambda: len(value(path, "cgroup.procs").split()) == 5)
            seen = [podman("pause", name).code, value(path, "cgroup.freeze"), "frozen 1" in value(path, "cgroup.events")]
            before = used(path)
            time.sleep(0.5)
            assert used(path) == before, used(path) - before
            seen += [podman("unpause", name).code, value(path, "cgroup.freeze")]
            until("they go on", lambda: used(path) > before + 100_000)
            return [*seen, podman("pause", name).code]

    assert same(oci, runc, whole) == [0, "1", True, 0, "0", 0]


@case("resource limits are raised, by default and by --ulimit", views=("v2",))
def rlimits(oci, runc):
    show = "ulimit -Hn; ulimit -Hu; ulimit -Hl; ulimit -Hc"
    same(oci, runc, run, IMAGE, "sh", "-c", show)
    words = ["--ulimit", "nofile=1048576:1048576", "--ulimit", "nproc=1000000:1000000", "--ulimit", "memlock=-1:-1", "--ulimit", "core=0:0"]
    assert same(oci, runc, run, *words, IMAGE, "sh", "-c", show) == (0, "1048576\n1000000\nunlimited\n0\n")


@case("a disk's rate by --device-write-bps", views=("v2",))
def rates(oci, runc):
    def whole(podman):
        with podman.container("--device-write-bps", "/dev/vda:1mb", "--device-read-iops", "/dev/vda:77", IMAGE, "sleep", "1000") as name:
            return value(cgroup_of(podman, name), "io.max").split(" ", 1)[1]

    assert same(oci, runc, whole) == "rbps=max wbps=1048576 riops=77 wiops=max"


@case("--userns=auto", views=("v2",))
def automatic_user_namespace(oci, runc):
    code, out = same(oci, runc, run, "--userns", "auto:size=4096", IMAGE, "sh", "-c", "cat /proc/self/uid_map; id -u; touch /tmp/x && stat -c %u /tmp/x")
    first, _, size, *rest = out.split()
    assert (code, first, size, rest) == (0, "0", "4096", ["0", "0"]), out


@case("--device, --tmpfs, --read-only, --volume, --cap-drop, --sysctl")
def file_systems(oci, runc):
    show = "ls -l /dev/xnull | cut -c1; echo x >/dev/xnull && echo written; grep ' /scratch ' /proc/mounts | cut -d' ' -f3; touch /file; cat /data/file"
    data = oci.machine.path("data")
    os.makedirs(data)
    write(os.path.join(data, "file"), "data\n")
    assert same(oci, runc, run, "--device", "/dev/null:/dev/xnull:rw", "--tmpfs", "/scratch:size=1m", "--read-only", "--volume", f"{data}:/data:ro",
                IMAGE, "sh", "-c", show) == (0, "c\nwritten\ntmpfs\ndata\n")
    assert same(oci, runc, run, "--cap-drop", "all", "--cap-add", "kill", IMAGE, "grep", "Cap", "/proc/self/status")[0] == 0
    assert same(oci, runc, run, "--sysctl", "net.ipv4.ip_forward=1", IMAGE, "cat", "/proc/sys/net/ipv4/ip_forward") == (0, "1\n")
    assert same(oci, runc, run, "--security-opt", "no-new-privileges", IMAGE, "grep", "NoNewPrivs", "/proc/self/status") == (0, "NoNewPrivs:\t1\n")
    assert same(oci, runc, run, "--privileged", IMAGE, "sh", "-c", "mount -t tmpfs x /mnt 2>/dev/null || mkdir /m && mount -t tmpfs x /m && echo y") == (0, "y\n")


@case("--security-opt seccomp= and its default profile")
def seccomp(oci, runc):
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
               "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}
    file = write(oci.machine.path("seccomp.json"), json.dumps(profile))
    show = "mkdir /made; echo $?; grep Seccomp: /proc/self/status"
    assert same(oci, runc, run, "--security-opt", f"seccomp={file}", IMAGE, "sh", "-c", show) == (0, "1\nSeccomp:\t2\n")
    assert same(oci, runc, run, IMAGE, "sh", "-c", show) == (0, "0\nSeccomp:\t2\n")
    assert same(oci, runc, run, "--security-opt", "seccomp=unconfined", IMAGE, "sh", "-c", show) == (0, "0\nSeccomp:\t0\n")


@case("a user namespace by --uidmap and --gidmap")
def user_namespace(oci, runc):
    code, out = same(oci, runc, run, "--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000", IMAGE, "sh", "-c",
                     "cat /proc/self/uid_map; id -u; touch /tmp/x && stat -c %u /tmp/x")
    assert code == 0 and out.split() == ["0", "100000", "5000", "0", "0"], out


def typed(podman, words, text, wait):
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe("podman", podman.words(*words), podman.environment)
    try:
        read_terminal(master, wait, SECONDS)
        os.write(master, text)
        out = read_terminal(master, seconds=SECONDS)
    finally:
        os.close(master)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, plain(out)


@case("a terminal, of run and of exec")
def terminal(oci, runc):
    script = "stty -echo; echo ready; read a; test -t 1 && echo tty got $a; exit 4"
    assert same(oci, runc, lambda podman: typed(podman, podman.make("run", "--rm", "-ti", IMAGE, "sh", "-c", script), b"x\n", "ready")) == (4, "tty got x\n")

    def executed(podman):
        with podman.container(IMAGE, "sleep", "1000") as name:
            return typed(podman, ["exec", "-ti", name, "sh", "-c", script], b"y\n", "ready")

    assert same(oci, runc, executed) == (4, "tty got y\n")


@case("healthcheck run")
def healthcheck(oci, runc):
    def check(podman, test):
        with podman.container("--health-cmd", test, "--health-interval", "disable", IMAGE, "sleep", "1000") as name:
            return podman("healthcheck", "run", name).code

    assert same(oci, runc, check, "test -e /etc/passwd") == 0
    assert same(oci, runc, check, "exit 9") == 1


@case("create, start, attach, cp and rm leave nothing")
def leftovers(oci, runc):
    def whole(podman):
        name = podman.machine.name("p")
        made = podman(*podman.make("create", "--name", name, IMAGE, "sh", "-c", "echo attached; exit 2"))
        started = podman("start", "--attach", name)
        removed = podman("rm", name)
        return made.code, started.code, started.out, removed.code

    assert same(oci, runc, whole) == (0, 2, "attached\n", 0)
    for podman in filter(None, (oci, runc)):
        assert podman("ps", "--all", "--quiet").out == ""
    done = command([GCS_OCI, "--root", "/run/gcs-oci", "list", "-q"])
    assert isinstance(done, Done) and not [name for name in done.out.split() if re.fullmatch("[0-9a-f]{64}", name)], done


def run_all(view, machine, only):
    """The cases of every view need no control in a VM, where a command takes seconds: on the machine they have it."""
    oci, runc = Podman(machine, GCS_OCI), Podman(machine, RUNC)
    if view == "v1":
        return run_cases(view, (oci, runc), only)
    every = [case for case in CASES if case[2] != ("v2",)]
    return any([run_cases(view, (oci, None), only, every), run_cases(view, (oci, runc), only, [case for case in CASES if case not in every])])


def main(view):
    # Where podman keeps files whatever it is told: locks, caches, the runtimes' state.
    for path in ("/dev/shm", "/run", "/var/lib"):
        assert mount("tmpfs", path), path
    machine = Machine(view)
    try:
        failed = run_all(view, machine, only=sys.argv[1] if len(sys.argv) > 1 else "")
        # podman makes these two itself and leaves them.
        inside = lambda: [path for path in machine.cgroups() if os.path.basename(path) not in ("podman", "conmon")]
        with contextlib.suppress(AssertionError):
            until("the cgroups are gone", lambda: not inside(), 3)
        if inside():
            print(f"FAIL {view}, nothing is left: {inside()}", flush=True)
        return 1 if failed or inside() else 0
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(in_views(["v1"], main))
