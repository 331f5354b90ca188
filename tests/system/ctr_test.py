#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""containerd's shim and ctr with gcs-oci as --runc-binary, and with Debian's runc as control: the same command has the same
result. A containerd of our own, with cgroup v1 and without a network (tests/README.md)."""

import contextlib
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile

from oci_support import (CGROUPS, GCS_OCI, RUNC, Machine, alive, case, command, good, in_views, mount, read, read_terminal, run_cases, until, write)

IMAGE = "localhost/busybox:latest"
CONFIG = """version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "{dir}/containerd.sock"
"""


def make_image(machine):
    """The machine's root file system as a tar in Docker's format."""
    layer, path = io.BytesIO(), machine.path("image.tar")
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(machine.rootfs, arcname=".")
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
              "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer.getvalue()).hexdigest()]}}
    files = {"layer.tar": layer.getvalue(), "config.json": json.dumps(config).encode(),
             "manifest.json": json.dumps([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]).encode()}
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Containerd:
    """A daemon with a root, state and socket of its own."""

    def __init__(self, machine):
        self.dir = machine.path("containerd")
        self.space = machine.parent[1:]  # Which is also the cgroup above those of its containers.
        os.mkdir(self.dir)
        config = write(os.path.join(self.dir, "config.toml"), CONFIG.format(dir=self.dir))
        with open(os.path.join(self.dir, "log"), "wb") as log:
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
        self.socket = os.path.join(self.dir, "containerd.sock")
        until("containerd answers", lambda: command(["ctr", "--address", self.socket, "version"]).code == 0, 30)

    def ctr(self, *words, **options):
        return command(["ctr", "--address", self.socket, "--namespace", self.space, *words], **options)

    def log(self):
        return read(os.path.join(self.dir, "log"))[-2000:]

    def close(self):
        # What failed cases have left would keep its shim.
        for name in self.ctr("tasks", "ls", "-q").out.split():
            self.ctr("tasks", "rm", "--force", name)
        self.process.terminate()
        self.process.wait(20)


class Ctr:
    """ctr with one runtime."""

    def __init__(self, machine, containerd, runtime):
        self.machine, self.containerd, self.runtime = machine, containerd, runtime
        self.space = containerd.space
        self.said = ""

    def words(self, *words):
        return ["ctr", "--address", self.containerd.socket, "--namespace", self.space, *words]

    def __call__(self, *words, **options):
        done = command(self.words(*words), **options)
        self.said = done.err
        return done

    def make(self, *flags):
        return ["run", "--runc-binary", self.runtime, "--snapshotter", "overlayfs", *flags]

    def run(self, *args, flags=(), **options):
        return self(*self.make("--rm", *flags), IMAGE, self.machine.name("t"), *args, **options)

    def status(self, name):
        rows = [line.split() for line in self("tasks", "ls").out.splitlines()[1:]]
        return next((row[2] for row in rows if row[0] == name), "none")

    @contextlib.contextmanager
    def task(self, *args, flags=()):
        """One that runs in the background, by name."""
        name = self.machine.name("t")
        good(self(*self.make("--detach", *flags), IMAGE, name, *args))
        try:
            yield name
        finally:
            self("tasks", "kill", "--signal", "SIGKILL", name)
            until("its end", lambda: self.status(name) in ("STOPPED", "none"))
            if self.status(name) != "none":
                self("tasks", "rm", name)
            good(self("containers", "rm", name))


def plain(text):
    """Without names, and what ctr says of a terminal that was gone before it could set its size."""
    return re.sub(r"\bt\d+\b", "ID", re.sub(r"[^\n]*resize pty[^\n]*\n", "", text.replace("\r\n", "\n")))


def same(oci, runc, act, *arguments):
    """The result of an act with gcs-oci, after comparing it with runc's."""
    mine = act(oci, *arguments)
    said = oci.said
    theirs = act(runc, *arguments)
    assert mine == theirs, f"{mine!r}, runc: {theirs!r}; {said}"
    return mine


def run(ctr, *args, **options):
    done = ctr.run(*args, **options)
    return done.code, plain(done.out)


@case("run: output, input, exit codes, environment, directory, mounts")
def runs(oci, runc):
    assert same(oci, runc, run, "echo", "hello", "[a,b]", "{}") == (0, "hello [a,b] {}\n")
    assert same(oci, runc, run, "sh", "-c", "exit 7")[0] == 7
    for missing in ("no-such-program", "/etc/passwd"):
        assert same(oci, runc, run, missing)[0] != 0 and missing in oci.run(missing).err, oci.said
    # Not up to the end of the input: when that comes before the process, ctr does not always pass it on.
    assert same(oci, runc, lambda ctr: run(ctr, "head", "-c", "2", stdin=b"in")) == (0, "in")
    data = oci.machine.path("data")
    os.makedirs(data, exist_ok=True)
    write(os.path.join(data, "file"), "data\n")
    flags = ("--env", "A=b c", "--cwd", "/tmp", "--mount", f"type=bind,src={data},dst=/data,options=rbind:ro", "--read-only", "--cap-drop", "CAP_CHOWN")
    script = "echo $A; pwd; cat /data/file; touch /data/x /x; grep CapEff /proc/self/status"
    code, out = same(oci, runc, lambda ctr: run(ctr, "sh", "-c", script, flags=flags))
    assert code == 0 and out.startswith("b c\n/tmp\ndata\n") or out.startswith("b\n"), out


@case("a detached task: exec with its exit code, kill by signal, and the task's exit code")
def acts(oci, runc):
    def act(ctr):
        results = []
        with ctr.task("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done") as name:
            assert ctr.status(name) == "RUNNING"
            for words in (["sh", "-c", "echo out; exit 3"], ["id", "-u"], ["no-such-program"], ["head", "-c", "5"]):
                done = ctr("tasks", "exec", "--exec-id", "e1", name, *words, stdin=b"typed")
                results.append((words, done.code, plain(done.out)))
            done = ctr("tasks", "exec", "--exec-id", "e2", "--user", "1000", "--cwd", "/tmp", name, "sh", "-c", "id -u; pwd")
            results.append((done.code, done.out))
            processes = ctr("tasks", "ps", name)
            results.append((processes.code, processes.out.split()[:2]))
            good(ctr("tasks", "kill", "--signal", "SIGTERM", name))
            until("its end", lambda: ctr.status(name) == "STOPPED")
            done = ctr("tasks", "rm", name)
            results.append(done.code or "exit code 5" in done.err)
            assert ctr.status(name) == "none"
        return results

    seen = same(oci, runc, act)
    assert seen[0][1:] == (3, "out\n") and seen[1][1:] == (0, "0\n") and seen[2][1] != 0 and seen[3][1:] == (0, "typed"), seen
    assert seen[4] == (0, "1000\n/tmp\n") and seen[-1] is True, seen


@case("kill --all reaches every process of a task")
def kill_all(oci, runc):
    def act(ctr):
        with ctr.task("sh", "-c", "trap '' TERM; sleep 1000 & wait") as name:
            def pids():
                return [int(line.split()[0]) for line in ctr("tasks", "ps", name).out.splitlines()[1:]]

            found = until("two processes", lambda: len(now := pids()) == 2 and now)
            good(ctr("tasks", "kill", "--all", "--signal", "SIGKILL", name))
            until("nobody is left", lambda: not any(map(alive, found)))
            return ctr.status(name) in ("STOPPED", "RUNNING")

    assert same(oci, runc, act)


@case("pause and resume")
def paused(oci, runc):
    def act(ctr):
        states = []
        with ctr.task("sh", "-c", "while :; do sleep 0.05; done") as name:
            good(ctr("tasks", "pause", name))
            states.append(ctr.status(name))
            done = ctr("tasks", "exec", "--exec-id", "e", name, "true")
            states.append(done.code != 0)
            good(ctr("tasks", "resume", name))
            states.append(ctr.status(name))
            good(ctr("tasks", "exec", "--exec-id", "e", name, "true"))
        return states

    assert same(oci, runc, act) == ["PAUSED", True, "RUNNING"]


@case("--memory-limit and --cpus, and the metrics of a task")
def limits(oci, runc):
    def act(ctr):
        with ctr.task("sleep", "1000", flags=("--memory-limit", str(64 << 20), "--cpus", "0.5")) as name:
            def value(controller, file):
                return read(os.path.join(CGROUPS, controller) + f"{ctr.machine.parent}/{name}/{file}").strip()

            metrics = good(ctr("tasks", "metrics", "--format", "json", name)).json()
            told = sorted(key for key, part in metrics.items() if part)
            pids = metrics["pids"]["current"]
            return (value("memory", "memory.limit_in_bytes"), value("cpu", "cpu.cfs_quota_us"), value("cpu", "cpu.cfs_period_us"), told,
                    metrics["memory"]["usage"]["limit"], pids, metrics["cpu"]["usage"]["total"] > 0)

    seen = same(oci, runc, act)
    assert seen[:3] == (str(64 << 20), "50000", "100000") and seen[4] == 64 << 20 and seen[5] == 1 and seen[6], seen


@case("a task beyond its memory is killed, and says so by its exit code")
def out_of_memory(oci, runc):
    script = "head -c 200m /dev/zero | tail >/dev/null & wait $!; exit $?"
    assert same(oci, runc, lambda ctr: run(ctr, "sh", "-c", script, flags=("--memory-limit", str(32 << 20)))[0]) == 137


def typed(ctr, words, text, wait):
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("ctr", ctr.words(*words))
    try:
        read_terminal(master, wait, 20)
        os.write(master, text)
        out = read_terminal(master, seconds=20)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(master)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, plain(out)


@case("a terminal, of run and of exec")
def terminal(oci, runc):
    script = "stty -echo; echo ready; read a; test -t 1 && echo tty got $a; exit 4"
    assert same(oci, runc, lambda ctr: typed(ctr, [*ctr.make("--rm", "--tty"), IMAGE, ctr.machine.name("t"), "sh", "-c", script], b"x\n", "ready")) == (4, "tty got x\n")

    def executed(ctr):
        with ctr.task("sleep", "1000") as name:
            return typed(ctr, ["tasks", "exec", "--tty", "--exec-id", "e", name, "sh", "-c", script], b"y\n", "ready")

    assert same(oci, runc, executed) == (4, "tty got y\n")


# Not --uidmap: ctr 1.6 forgets --runc-binary then.
@case("--seccomp with its default profile")
def seccomp(oci, runc):
    show = "grep Seccomp: /proc/self/status; mount -t tmpfs x /mnt 2>/dev/null; echo $?"
    code, out = same(oci, runc, lambda ctr: run(ctr, "sh", "-c", show, flags=("--seccomp",)))
    assert code == 0 and out.startswith("Seccomp:\t2\n"), out


@case("nothing is left: no task, no container, no state of the runtime, no cgroup")
def leftovers(oci, runc):
    assert oci is not runc
    left = [oci("tasks", "ls", "-q").out, oci("containers", "ls", "-q").out]
    state = f"/run/containerd/runc/{oci.space}"
    left += os.listdir(state) if os.path.exists(state) else []
    assert not any(left), left
    until("the cgroups are gone", lambda: not oci.machine.cgroups(), 5)


def mount_hierarchies():
    """The rest of the machine's cgroup v1: containerd's library looks for each one that its process is in."""
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, _ = line.split(":", 2)
        path = os.path.join(CGROUPS, controllers.removeprefix("name="))
        if controllers and not os.path.exists(path):
            os.mkdir(path)
            if not mount("cgroup", path, ("none," if "=" in controllers else "") + controllers):
                os.rmdir(path)


def main(view):
    # Where shims have their sockets and runtimes their state, whatever they are told.
    assert mount("tmpfs", "/run")
    mount_hierarchies()
    machine = Machine(view)
    containerd = None
    try:
        containerd = Containerd(machine)
        ctrs = [Ctr(machine, containerd, runtime) for runtime in (GCS_OCI, RUNC)]
        good(ctrs[0]("images", "import", "--snapshotter", "overlayfs", make_image(machine)))
        failed = run_cases(view, ctrs, only=sys.argv[1] if len(sys.argv) > 1 else "")
        if failed:
            print(containerd.log(), file=sys.stderr)
        return 1 if failed else 0
    finally:
        if containerd:
            containerd.close()
        machine.close()


if __name__ == "__main__":
    sys.exit(in_views(["v1"], main))
