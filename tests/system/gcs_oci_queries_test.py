#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What gcs-oci tells and changes: state, list, ps, events, features, pause, update, hooks, messages, and what is left when
something goes wrong. With cgroup v1 and v2, Debian's runc as control (tests/README.md)."""

import json
import os
import signal
import subprocess
import sys
import time

from oci_support import (GCS_OCI, RUNC, Console, Machine, Runtime, Skip, alive, bad, case, command, good, in_views, private_network, read, run_cases,
                         until, write)


def keys(value, depth=9):
    """Every path to a value of a JSON object."""
    if not isinstance(value, dict) or depth == 0:
        return {""}
    return {f"{name}.{rest}".rstrip(".") for name, inner in value.items() for rest in keys(inner, depth - 1)}


@case("state and list tell what runc's tell")
def state_shape(oci, runc):
    def annotated(config):
        config["annotations"] = {"a.b/c": "d [e]"}

    with oci.sleeper(change=annotated) as name, runc.sleeper(change=annotated) as control:
        mine, theirs = oci.state(name), runc.state(control)
        assert keys(theirs) <= keys(mine), (mine, theirs)
        for key in ("status", "annotations", "rootfs"):
            assert mine[key] == theirs[key], (mine, theirs)
        assert mine["id"] == name and mine["bundle"] == oci.machine.path(name)
        mine, theirs = oci("list", "-f", "json").json(), runc("list", "--format", "json").json()
        assert len(mine) == 1 and keys(theirs[0]) <= keys(mine[0]) and mine[0]["owner"] == theirs[0]["owner"], (mine, theirs)
        assert oci("list", "-q").out == name + "\n"
        head, row = oci("list").out.splitlines()
        assert head.split() == runc("list").out.splitlines()[0].split() and row.split()[::2][:2] == [name, "running"], row
        bad(oci("list", "-f", "yaml"), "invalid format")
    assert oci("list", "-f", "json").json() == [] and good(oci("list", "-q"), "").out == ""
    assert command_with_root(oci, "/no/such/root", "list", "-q").code == 0


def command_with_root(oci, root, *words):
    other = Runtime(GCS_OCI, oci.machine)
    other.root = root
    return other(*words)


@case("ps lists every process")
def ps(oci, runc):
    with oci.sleeper("sh", "-c", "sleep 1001 & wait") as name, runc.sleeper() as control:
        pids = until("two processes", lambda: len(found := oci("ps", "-f", "json", name).json()) == 2 and found)
        assert isinstance(runc("ps", "-f", "json", control).json()[0], int) and all(map(alive, pids))
        table = oci("ps", name).out
        assert "PID" in table.splitlines()[0] and "sleep 1001" in table and str(pids[1]) in table, table
        bad(oci("ps", "-f", "xml", name), "invalid format")


@case("events have the names that runc's have")
def events(oci, runc):
    with oci.sleeper() as name, runc.sleeper() as control:
        mine, theirs = good(oci("events", "--stats", name)).json(), good(runc("events", "--stats", control)).json()
        assert (mine["type"], mine["id"]) == ("stats", name)
        wanted = ["cpu.usage.total", "cpu.usage.kernel", "cpu.usage.user"]
        if "memory" in oci.machine.controllers():
            wanted += ["memory.usage.limit", "memory.usage.usage", "memory.usage.max", "memory.usage.failcnt", "memory.raw"]
        wanted += ["pids.current"] if "pids" in oci.machine.controllers() else []
        for path in wanted:
            assert any(key.startswith(path) for key in keys(mine["data"])), f"{path}: {mine}"
            assert path == "memory.raw" or any(key.startswith(path) for key in keys(theirs["data"])), f"{path}, runc: {theirs}"
        if "pids" in oci.machine.controllers():
            assert mine["data"]["pids"]["current"] == 1, mine
        with oci.begin("events", "--interval", "50ms", name, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(2):
                assert json.loads(process.stdout.readline())["type"] == "stats"
            good(oci("kill", name, "KILL"))
            assert process.wait(5) == 0, process.returncode


@case("a paused container says so, is not executed in, and is killed")
def paused(oci, _):
    if oci.machine.view == "v1" and "freezer" not in oci.machine.controllers():
        raise Skip("cgroup freezer")
    with oci.sleeper("sh", "-c", "while :; do echo x >>/work/beat; sleep 0.01; done") as name:
        beat = os.path.join(oci.machine.rootfs, "work", "beat")
        until("it beats", lambda: os.path.exists(beat))
        good(oci("pause", name))
        assert oci.status(name) == "paused" and oci("list", "-f", "json").json()[0]["status"] == "paused"
        size = os.path.getsize(beat)
        bad(oci("exec", name, "true"), "paused", code=255)
        bad(oci("pause", name), "container not running")
        bad(oci("delete", name), "not stopped: paused")
        time.sleep(0.1)
        assert os.path.getsize(beat) == size
        good(oci("resume", name))
        assert oci.status(name) == "running"
        until("it beats again", lambda: os.path.getsize(beat) > size)
        good(oci("pause", name))
        good(oci("kill", name, "KILL"))
        oci.stopped(name)
    with oci.sleeper() as name:
        good(oci("pause", name))
    name = oci.create("sleep", "1000")
    good(oci("pause", name))
    # Also often asked, one that can't answer is paused.
    for _ in range(12):
        assert oci.status(name) == "paused"
    bad(oci("start", name), "paused")
    good(oci("resume", name))
    assert oci.status(name) == "created"
    good(oci("start", name))
    good(oci("delete", "--force", name))


@case("update by flags and by an object on standard input")
def update(oci, _):
    machine = oci.machine

    def value(controller, file):
        return read(machine.cgroup_file(name, controller, file)).strip()

    with oci.sleeper() as name:
        bad(oci("update", "-r", "-", name, stdin=b"{"), "resources")
        bad(oci("update", "-r", "-", name, stdin=b'{"memory": {"limit": "1"}}'), "memory.limit")
        bad(oci("update", "-r", "/no/such/file", name), "/no/such/file")
        bad(oci("update", "--memory", "12x", name), "12x")
        bad(oci("update", "--cpu-quota", "0x5", name), "0x5")
        if machine.view == "v2":
            for flags, controller in ((["--memory", "64m"], "memory"), (["--pids-limit", "9"], "pids")):
                if controller not in machine.controllers():
                    assert controller in bad(oci("update", *flags, name)).err
            return
        good(oci("update", "--memory", "64m", "--pids-limit", "77", "--cpu-share", "512", "--cpu-quota", "50000", "--cpu-period", "100000", name))
        assert value("memory", "memory.limit_in_bytes") == str(64 << 20) and value("pids", "pids.max") == "77"
        assert value("cpu", "cpu.shares") == "512" and value("cpu", "cpu.cfs_quota_us") == "50000"
        resources = {"memory": {"limit": 96 << 20}, "pids": {"limit": 55}}
        good(oci("update", "-r", "-", name, stdin=json.dumps(resources).encode()))
        assert value("memory", "memory.limit_in_bytes") == str(96 << 20) and value("pids", "pids.max") == "55"
        assert value("cpu", "cpu.shares") == "512"
        file = write(machine.path("resources.json"), json.dumps({"pids": {"limit": -1}}))
        good(oci("update", "--resources", file, name))
        assert value("pids", "pids.max") == "max"
        good(oci("update", "--cpu-quota", "-1", name))
        assert value("cpu", "cpu.cfs_quota_us") == "-1"
        # What can't be set as a whole is not set in part.
        bad(oci("update", "--pids-limit", "44", "--cpuset-cpus", "4095", name))
        assert value("pids", "pids.max") == "max"


def log_line(oci, *flags):
    log = oci.machine.path(oci.machine.name("log"))
    done = bad(oci("--log", log, *flags, "state", "nobody"), "container does not exist")
    return read(log), done.err


@case("messages go to --log in the format that callers of runc parse")
def messages(oci, runc):
    mine, stderr = log_line(oci, "--log-format", "json")
    theirs, _ = log_line(runc, "--log-format", "json")
    assert mine.count("\n") == 1 and theirs.count("\n") == 1, (mine, theirs)
    mine, theirs = json.loads(mine), json.loads(theirs)
    assert set(mine) == set(theirs) and mine["level"] == theirs["level"] == "error", (mine, theirs)
    assert mine["msg"].endswith("container does not exist") and mine["msg"] in stderr, (mine, stderr)
    assert 'level=error msg="' in log_line(oci)[0] and 'level=error msg="' in log_line(runc)[0]
    assert json.loads(oci("--log-format", "json", "state", "nobody").err)["level"] == "error"
    bad(oci("--log-format", "xml", "list"), "log-format")


HOOK = """#!/bin/sh
cat >{dir}/{kind}.state
echo {kind} >>{dir}/order
{more}
"""


def hooks(machine, **more):
    """A change of a configuration: all hooks write down their state and their turn."""
    def change(config):
        for kind in ("prestart", "createRuntime", "createContainer", "poststart", "poststop"):
            text = HOOK.format(dir=machine.path(), kind=kind, more=more.get(kind, ""))
            config.setdefault("hooks", {})[kind] = [{"path": write(machine.path(f"hook-{kind}"), text, 0o755), "args": [kind, "arg"], "env": ["PATH=/usr/bin:/bin"]}]
        config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/work/startContainer.state"]}]
        write(machine.path("order"), "")

    return change


@case("hooks run in their order with the state of the moment, and may ask for it")
def hook_order(oci, _):
    machine = oci.machine
    ask = f"{' '.join(oci.words('state'))} $(sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/' {machine.path('{}.state')}) >{machine.path('{}.asked')} 2>&1"
    more = {kind: ask.replace("{}", kind) for kind in ("prestart", "createRuntime", "poststart", "poststop")}
    done = lambda kind: json.loads(read(machine.path(kind + ".state")))
    name = oci.create("sleep", "1000", change=hooks(machine, **more))
    assert read(machine.path("order")).split() == ["prestart", "createRuntime", "createContainer"]
    for kind in ("prestart", "createRuntime"):
        state = done(kind)
        assert state["id"] == name and state["bundle"] == machine.path(name) and state["pid"] == oci.state(name)["pid"], state
        assert json.loads(read(machine.path(kind + ".asked")))["status"] == "creating", read(machine.path(kind + ".asked"))
    good(oci("start", name))
    assert done("poststart")["status"] == "running" and read(machine.path("order")).split()[3:] == ["poststart"]
    assert json.loads(read(machine.path("poststart.asked")))["status"] == "running"
    assert json.loads(read(os.path.join(machine.rootfs, "work", "startContainer.state")))["id"] == name
    good(oci("delete", "--force", name))
    assert done("poststop")["status"] == "stopped" and read(machine.path("order")).split()[4:] == ["poststop"]


@case("a hook that fails before the start undoes the create, one after the end does not matter")
def hook_failures(oci, _):
    for kind in ("prestart", "createRuntime", "createContainer"):
        bundle = oci.machine.bundle("true", change=hooks(oci.machine, **{kind: "exit 3"}))
        bad(oci("create", "--bundle", bundle, os.path.basename(bundle)), "exit status 3" if kind != "createContainer" else "hook")
        assert not oci.left() and not oci.machine.cgroups(), kind
    bad(oci.run("sleep", "1000", change=hooks(oci.machine, poststart="exit 3")), "exit status 3")
    assert not oci.left() and not oci.machine.cgroups()
    good(oci.run("true", change=hooks(oci.machine, poststop="exit 3")))
    assert not oci.left() and not oci.machine.cgroups()


@case("features names what is there, each mount option and capability can be used")
def features(oci, _):
    told = good(oci("features")).json()
    assert told["ociVersionMin"] == "1.0.0" and told["hooks"][0] == "prestart" and len(told["hooks"]) == 6
    linux = told["linux"]
    assert linux["cgroup"]["v1"] and linux["cgroup"]["v2"] and not linux["cgroup"]["systemd"]
    assert told["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "false"

    def everything(config):
        config["ociVersion"] = told["ociVersionMax"]
        for number, option in enumerate(told["mountOptions"]):
            kind = {"type": "tmpfs", "source": "tmpfs", "options": [option]}
            if "bind" in option or "idmap" in option:
                kind = {"type": "bind", "source": oci.machine.path("rootfs/etc"), "options": ["bind", option]}
            if "idmap" in option:
                continue  # Takes a file system that this machine's root may not be; tested with the engine.
            place = "/dev/shm" if option == "remount" else f"/work/m{number}"
            config["mounts"].append({"destination": place, **kind})
        for name in ("bounding", "permitted", "effective"):
            config["process"]["capabilities"][name] = linux["capabilities"]

    done = oci.run("grep", "CapBnd", "/proc/self/status", change=everything)
    good(done)
    assert "unknown" not in done.err, done.err
    have = int(done.out.split()[1], 16)
    with open("/proc/self/status", encoding="ascii") as file:
        assert have == int(next(line for line in file if line.startswith("CapBnd")).split()[1], 16), done.out
    seccomp = linux["seccomp"]
    listener = Console(oci.machine.path("seccomp-agent"))
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": listener.path, "architectures": seccomp["archs"], "flags": seccomp["supportedFlags"],
               "syscalls": [{"names": ["tuxcall"], "action": action} for action in seccomp["actions"] if action != "SCMP_ACT_ALLOW"] +
                           [{"names": ["personality"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 77, "valueTwo": 77, "op": operator}]}
                            for operator in seccomp["operators"]]}
    good(oci.run("true", change=lambda config: config["linux"].update(seccomp=profile)))
    os.close(listener.receive())
    os.unlink(listener.path)
    for namespace in linux["namespaces"]:
        assert os.path.exists("/proc/self/ns/" + {"mount": "mnt", "network": "net"}.get(namespace, namespace))


@case("network devices become the container's, and come back if the create fails", views=("v2",))
def net_devices(oci, _):
    assert good(oci("features")).json()["linux"]["netDevices"] == {"enabled": True}

    def ip(*words):
        return good(command(["/bin/busybox", "ip", *words])).out

    def devices(**wanted):
        return lambda config: config["linux"].update(netDevices=wanted)

    with private_network():
        ip("link", "add", "dev0", "type", "veth")
        ip("addr", "add", "10.1.0.1/24", "dev", "dev0")
        before = ip("addr")
        bad(oci.run("true", change=devices(nosuch0={})), "linux.netDevices.nosuch0")
        bad(oci.run("true", change=devices(dev0={"name": "lo"})), "linux.netDevices.dev0")
        # What gcs-oci itself does after the engine.
        bad(oci.run("true", change=devices(dev0={"name": "eth0"}), flags=("--pid-file", "/no/such/directory/pid")), "/no/such/directory")
        assert ip("addr") == before and not oci.left(), ip("addr")
        done = good(oci.run("ip", "addr", change=devices(dev0={"name": "eth0"})))
        assert "inet 10.1.0.1/24 scope global eth0" in done.out, done
        assert "dev0" not in ip("addr")


@case("intelRdt without resctrl is an error, with nothing left", views=("v2",))
def intel_rdt(oci, _):
    assert good(oci("features")).json()["linux"]["intelRdt"]["enabled"] is True
    if " - resctrl " in read("/proc/self/mountinfo"):
        raise Skip("a machine without resctrl")
    for rdt in ({}, {"closID": "/"}, {"closID": "x", "l3CacheSchema": "L3:0=f"}):
        bad(oci.run("true", change=lambda config, rdt=rdt: config["linux"].update(intelRdt=rdt)), "no resctrl file system is mounted")
        assert not oci.left() and not oci.machine.cgroups()


@case("what is not supported is refused in words")
def refused(oci, _):
    bundle = oci.machine.bundle("true")
    name = os.path.basename(bundle)
    bad(oci("checkpoint", "--image-path", "/x", name), "not supported")
    bad(oci("restore", "--image-path", "/x", "--bundle", bundle, name), "not supported")
    bad(oci("--systemd-cgroup", "run", "--bundle", bundle, name), "systemd cgroups are not supported")
    bad(oci("--cgroup-manager", "systemd", "list"), "cgroup-manager")
    good(oci("--cgroup-manager", "cgroupfs", "--rootless", "false", "--debug", "run", "--no-pivot", "--no-new-keyring", "--bundle", bundle, name))
    bad(oci("no-such-command"))
    bad(oci("run", "--no-such-flag", name), "no-such-flag")
    bad(oci())
    assert "gcs-oci" in good(oci("--version")).out and "update" in good(oci("--help")).out
    assert not oci.left()


@case("edits of the bundle after the create do not matter")
def edits(oci, _):
    name = oci.create("sh", "-c", "echo first >/work/edits; sleep 1000")
    config = oci.machine.path(name, "config.json")
    write(config, "{")
    assert oci.status(name) == "created"
    good(oci("start", name))
    until("it runs", lambda: os.path.exists(oci.machine.path("rootfs/work/edits")))
    os.unlink(config)
    os.rmdir(os.path.dirname(config))
    good(oci("exec", name, "cat", "/work/edits"), "first\n")
    good(oci("delete", "--force", name))


@case("a create that fails leaves nothing in --root and no cgroup")
def failed_creates(oci, _):
    def broken(**parts):
        def change(config):
            for path, value in parts.items():
                *parents, last = path.split("__")
                inner = config
                for parent in parents:
                    inner = inner[parent]
                inner[last] = value
        return change

    for change, text in (({"process__args": []}, "args"), ({"root__path": "/no/such/root"}, "/no/such/root"), ({"ociVersion": "2.0.0"}, "ociVersion"),
                         ({"process__cwd": "x"}, "cwd"), ({"mounts": [{"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["bind"]}]}, "/no/such/source"),
                         ({"linux__namespaces": [{"type": "nonsense"}]}, "namespaces"), ({"linux__resources": {"pids": {"limit": "x"}}}, "pids.limit"),
                         ({"linux__cgroupsPath": "/"}, "cgroup"), ({"linux__sysctl": {"no.such.sysctl": "1"}}, "sysctl")):
        bundle = oci.machine.bundle("true", change=broken(**change))
        for command in ("create", "run"):
            bad(oci(command, "--bundle", bundle, os.path.basename(bundle)), text)
            assert not oci.left() and not oci.machine.cgroups(), change
    bundle = oci.machine.bundle("true")
    for text in ("", "{", "[]", "null", '{"ociVersion": 1}', "\0" * 100, "[" * 100000):
        write(os.path.join(bundle, "config.json"), text)
        bad(oci("create", "--bundle", bundle, "x"))
    bad(oci("create", "--bundle", "/no/such/bundle", "x"), "/no/such/bundle")
    bad(oci("create", "--bundle", oci.machine.rootfs, "x"), "config.json")
    assert not oci.left() and not oci.machine.cgroups()
    # A cgroup that somebody is in is not taken over, and not emptied.
    with oci.sleeper() as name:
        def same_cgroup(config):
            config["linux"]["cgroupsPath"] = f"{oci.machine.parent}/{name}"

        bad(oci.run("true", change=same_cgroup), "in use")
        assert oci.status(name) == "running" and oci.left() == [name]


@case("what a killed create leaves, delete --force removes")
def killed_create(oci, _):
    machine = oci.machine
    # In a hook: everything is there but the answer.
    for kind in ("prestart", "createRuntime"):
        bundle = machine.bundle("sleep", "1000", change=hooks(machine, **{kind: f"touch {machine.path('in-hook')}; exec sleep 5"}))
        name = os.path.basename(bundle)
        with oci.begin("create", "--bundle", bundle, name) as process:
            until("the hook", lambda: os.path.exists(machine.path("in-hook")))
            assert oci.status(name) == "creating" and oci("list", "-f", "json").json()[0]["status"] == "creating"
            bad(oci("create", "--bundle", bundle, name), "already exists")
            bad(oci("exec", name, "true"), "creating", code=255)
            bad(oci("kill", name), "not running")
            process.kill()
        os.unlink(machine.path("in-hook"))
        assert oci.status(name) == "stopped"
        good(oci("delete", "--force", name))
        assert oci.status(name) == "none" and not oci.left() and not machine.cgroups()
    # At any moment.
    began = time.monotonic()
    bundle = machine.bundle("sleep", "1000")
    name = os.path.basename(bundle)
    with oci.begin("create", "--bundle", bundle, name) as process:
        process.wait()
    whole = time.monotonic() - began
    good(oci("delete", "--force", name))
    for part in range(25):
        with oci.begin("create", "--bundle", bundle, name) as process:
            time.sleep(whole * part / 20)
            process.send_signal(signal.SIGKILL)
        good(oci("delete", "--force", name))
        assert not oci.left() and not machine.cgroups(), (part, oci.left(), machine.cgroups())
    children = [int(pid) for pid in read(f"/proc/self/task/{os.getpid()}/children").split()]
    until("no process is left", lambda: not [pid for pid in children if alive(pid) and b"hook" not in cmdline(pid) and b"sleep\x005" not in cmdline(pid)])


def cmdline(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


@case("containers made, asked for and deleted at the same time don't get in each other's way")
def together(oci, _):
    bundles = [oci.machine.bundle("sh", "-c", "exit 4") for _ in range(8)]
    running = [subprocess.Popen(oci.words("run", "--bundle", bundle, os.path.basename(bundle))) for bundle in bundles]
    while any(process.poll() is None for process in running):
        assert isinstance(good(oci("list", "-f", "json")).json(), list)
    assert [process.returncode for process in running] == [4] * 8
    bundle = oci.machine.bundle("sleep", "1000")
    creating = [subprocess.Popen(oci.words("create", "--bundle", bundle, "one"), stderr=subprocess.DEVNULL) for _ in range(4)]
    assert sorted(process.wait(20) for process in creating) == [0, 1, 1, 1]
    deleting = [subprocess.Popen(oci.words("delete", "--force", "one"), stderr=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(20) for process in deleting] == [0, 0, 0, 0]
    assert not oci.left() and not oci.machine.cgroups()


def main(view):
    machine = Machine(view)
    try:
        failed = run_cases(view, (Runtime(GCS_OCI, machine), Runtime(RUNC, machine)), only=sys.argv[1] if len(sys.argv) > 1 else "")
        left = machine.cgroups()
        if left:
            print(f"FAIL {view}, nothing is left: {left}", flush=True)
        return 1 if failed or left else 0
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(in_views(["v1", "v2"], main))
