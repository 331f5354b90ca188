#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""podman with gcs-oci as its runtime, and with Debian's runc as control: the same command has the same result. With cgroup v1
and without a network (tests/README.md)."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

from oci_support import CGROUPS, GCS_OCI, RUNC, Done, Machine, case, command, in_views, mount, read_terminal, run_cases, until, write

# No CAP_SYS_RESOURCE may be had here: podman would raise these.
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
IMAGE = "localhost/busybox"


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
        return command(self.words(*words), env=self.environment, **options)

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
    """The result of an act with gcs-oci, after comparing it with runc's."""
    mine, theirs = act(oci, *arguments), act(runc, *arguments)
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


def cgroup_files(podman, *words):
    """The limits that a container has got."""
    files = {"memory": "memory.limit_in_bytes", "pids": "pids.max", "cpu": "cpu.cfs_quota_us"}
    with podman.container(*words) as name:
        container = podman("inspect", "--format", "{{.ID}}", name).out.strip()
        done = {}
        for controller, file in files.items():
            for path, names, _ in os.walk(CGROUPS + "/" + controller + podman.parent):
                if container in path and not [below for below in names if container in below]:
                    with open(os.path.join(path, file), encoding="ascii") as text:
                        done[controller] = text.read().strip()

        def stats():
            told = podman("stats", "--no-stream", "--format", "json", name)
            assert told.code == 0, told
            return json.loads(told.out)[0]

        # Two for a moment: runc's own process is still at its end.
        row = until("one process", lambda: (now := stats())["pids"] == "1" and now)
        return done, sorted(row), row["mem_usage"].split("/")[1].strip()


@case("--memory, --cpus, --pids-limit, and stats")
def limits(oci, runc):
    files, _, memory = same(oci, runc, cgroup_files, "--memory", "64m", "--cpus", "0.5", "--pids-limit", "33", IMAGE, "sleep", "1000")
    assert files == {"memory": str(64 << 20), "pids": "33", "cpu": "50000"} and memory == "67.11MB", (files, memory)


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
        read_terminal(master, wait, 20)
        os.write(master, text)
        out = read_terminal(master, seconds=20)
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
    for podman in (oci, runc):
        assert podman("ps", "--all", "--quiet").out == ""
    done = command([GCS_OCI, "--root", "/run/gcs-oci", "list", "-q"])
    assert isinstance(done, Done) and not [name for name in done.out.split() if re.fullmatch("[0-9a-f]{64}", name)], done


def main(view):
    # Where podman keeps files whatever it is told: locks, caches, the runtimes' state.
    for path in ("/dev/shm", "/run", "/var/lib"):
        assert mount("tmpfs", path), path
    machine = Machine(view)
    try:
        podmans = [Podman(machine, GCS_OCI), Podman(machine, RUNC)]
        failed = run_cases(view, podmans, only=sys.argv[1] if len(sys.argv) > 1 else "")
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
