#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gcs-oci's flags, messages, cgroup parents and id-mapped mounts; a delete that meets a create. With cgroup v1 and v2, Debian's
runc as control (tests/README.md)."""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time

from oci_support import (CGROUPS, GCS_OCI, RUNC, Machine, Runtime, Skip, alive, bad, case, good, in_views, mount, read, run_cases, until, write)

# What runc has and we refuse, by command ("": before it), with a part of what is said.
REFUSED = {
    "": {"--systemd-cgroup": "systemd cgroups are not supported", "--criu": "not supported"},
    "spec": {"--rootless": "not supported"},
    "update": {"--l3-cache-schema": "not supported", "--mem-bw-schema": "not supported"},
}
# Values for flags that take one, where "1" will not do.
VALUES = {"--log-format": "json", "--root": "ROOT", "--log": "FILE", "--rootless": "auto", "--format": "json", "--bundle": "BUNDLE", "--pid-file": "FILE", "--cwd": "/tmp",
          "--env": "A=b", "--cap": "CAP_KILL", "--resources": "RESOURCES", "--interval": "1s", "--cpu-quota": "50000", "--cpu-period": "100000", "--blkio-weight": "100",
          "--cpuset-cpus": "0", "--cpuset-mems": "0", "--memory": "64m", "--memory-reservation": "32m", "--memory-swap": "128m", "--cpu-rt-period": "1000000",
          "--cpu-rt-runtime": "0", "--preserve-fds": "0", "--apparmor": "", "--process-label": "", "--cgroup": "/", "--cpu-share": "512", "--pids-limit": "50"}
# Those that can't be given alone are in tests of their own: a terminal, a file.
ELSEWHERE = {("create", "--console-socket"), ("run", "--console-socket"), ("exec", "--console-socket"), ("exec", "--tty"), ("exec", "--process")}


def flags_of(runc, *command):
    """Those that runc's help lists: [(all names, takes a value)]."""
    found = []
    for line in runc(*command, "--help").out.split("OPTIONS:")[-1].splitlines():
        match = re.match(r"   (-[^ ]+( value)?(, -[^ ]+( value)?)*)  ", line)
        if match:
            found.append(([part.removesuffix(" value") for part in match[1].split(", ")], " value" in match[1]))
    return found


@case("every flag of runc is taken as runc takes it, or refused in words")
def all_flags(oci, runc):
    try:
        try_all(oci, runc)
    finally:
        Shared.end(oci)
    bad(oci("restore", "--bundle", "x", "--lsm-profile", "y", "--detach", "z"), "not supported")
    bad(oci("checkpoint", "--image-path", "x", "--leave-running", "z"), "not supported")


def try_all(oci, runc):
    seen = 0
    for command in ("", "create", "run", "exec", "delete", "kill", "list", "ps", "update", "events", "spec", "start", "state", "pause", "resume"):
        for names, has_value in flags_of(runc, *([command] if command else [])):
            if names[0] in ("--help", "--version") or (command, names[0]) in ELSEWHERE:
                continue
            for name in names:
                try_flag(oci, command, name, names[0], has_value)
                seen += 1
    assert seen > 60, seen


def try_flag(oci, command, name, key, has_value):
    machine = oci.machine
    places = {"ROOT": oci.root, "FILE": machine.path("flag-file"), "RESOURCES": write(machine.path("flag-resources"), "{}"), "BUNDLE": machine.bundle("true")}
    value = VALUES.get(key, "1")
    value = places.get(value, value)
    forms = [[name, value], [f"{name}={value}"]] if has_value else [[name]]
    why = REFUSED.get(command, {}).get(key)
    for form in forms:
        for words in (form, [form[0].removeprefix("-"), *form[1:]] if len(name) > 2 else form):
            if why is None:
                use_flag(oci, command, words, key)
            elif command:
                bad(oci(command, *words, *([] if command == "spec" else ["x"])), why)
            else:
                bad(oci(*words, "list"), why)


def use_flag(oci, command, words, key):
    """The command succeeds with the flag, on a container of its own if it takes one."""
    if command == "":
        good(oci(*words, "list"))
    elif command == "list":
        good(oci(command, *words))
    elif command == "spec":
        place = oci.machine.path(oci.machine.name("spec"))
        os.mkdir(place)
        if key == "--bundle":
            words = [word.replace(os.path.dirname(os.path.join(word.split("=")[-1], "")), place) if "/" in word else word for word in words]
        good(oci(command, *words, cwd=place))
        assert os.path.exists(os.path.join(place, "config.json")), words
    elif command in ("create", "run"):
        bundle = oci.machine.bundle("true")
        name = os.path.basename(bundle)
        if key == "--bundle":
            words = [word.replace(word.split("=")[-1], bundle) if "/" in word else word for word in words]
        good(oci(command, *words, name, cwd=bundle))
        good(oci("delete", "--force", name))
    else:
        controller = {"memory": "memory", "cpu": "cpu", "pids": "pids", "blkio": "blkio", "cpuset": "cpuset"}.get(key.removeprefix("--").split("-")[0])
        if command == "update" and controller and (oci.machine.view == "v2" or controller not in oci.machine.controllers()):
            return  # The flag would be taken, the limit not be had: in tests of update.
        shared = Shared.of(oci)
        if command in ("update", "exec", "ps", "events"):
            done = oci(command, *words, *(["--stats"] if command == "events" and key != "--stats" else []), shared, *(["true"] if command == "exec" else []))
            absent = key in ("--cpu-rt-period", "--cpu-rt-runtime", "--blkio-weight", "--memory-swap") and done.code == 1 and "not available" in done.err
            assert done.code == 0 or absent, (command, words, done)
            return
        name = oci.started("sleep", "1000")
        good(oci(command, *words, name))
        good(oci("delete", "--force", name))


class Shared:
    """A container that flags are tried on which leave it running."""

    names = {}

    @classmethod
    def of(cls, oci):
        if oci.machine not in cls.names:
            cls.names[oci.machine] = oci.started("sleep", "1000")
        return cls.names[oci.machine]

    @classmethod
    def end(cls, oci):
        if oci.machine in cls.names:
            good(oci("delete", "--force", cls.names.pop(oci.machine)))


@case("-- ends the flags, and what is behind exec's and ps's id is not ours, as with runc")
def ends_of_flags(oci, runc):
    with oci.sleeper() as name, runc.sleeper() as control:
        for words, out in ((["exec", "--", "ID", "echo", "a"], "a\n"), (["exec", "ID", "--", "echo", "a"], None), (["exec", "--", "--", "ID", "true"], None),
                           (["exec", "-e", "A=b", "--", "ID", "sh", "-c", "echo $A"], "b\n"), (["exec", "ID", "echo", "--", "-t"], "-- -t\n"), (["exec", "--"], None),
                           (["exec", "-env", "A=c", "ID", "sh", "-c", "echo $A"], "c\n"), (["kill", "--", "ID", "0"], ""), (["state", "--", "nobody"], None)):
            mine, theirs = [runtime(*(who if word == "ID" else word for word in words)) for runtime, who in ((oci, name), (runc, control))]
            assert (mine.code == 0, mine.code) == (theirs.code == 0, theirs.code), f"{words}: {mine!r}, runc: {theirs!r}"
            assert out is None or mine.out == theirs.out == out, f"{words}: {mine!r}, runc: {theirs!r}"
        for options in (["-o", "pid,comm"], ["aux"], ["-ef"], ["-o", "comm"], ["--nonsense"], ["--", "-o", "pid"]):
            mine, theirs = oci("ps", name, *options), runc("ps", control, *options)
            assert mine.code == theirs.code, f"{options}: {mine!r}, runc: {theirs!r}"
            if mine.code == 0:
                assert mine.out.splitlines()[0] == theirs.out.splitlines()[0] and len(mine.out.splitlines()) == 2, f"{options}: {mine!r}, runc: {theirs!r}"
                assert str(oci.state(name)["pid"]) in mine.out, mine
            else:
                assert any(text in mine.err and text in theirs.err for text in ("PID field", "error:")), f"{options}: {mine!r}, runc: {theirs!r}"
        assert good(oci("ps", "-f", "json", name, "-o", "pid")).json() == [oci.state(name)["pid"]]


@case("--log gets a line of JSON as runc's, and standard error the bare message")
def logged(oci, runc):
    for words in (["state", "nobody"], ["delete", "nobody"], ["state", "--nonsense", "x"], ["state"], ["exec", "nobody", "true"], ["run", "--bundle", "/no/such", "x"]):
        lines = []
        for runtime in (oci, runc):
            log = runtime.machine.path("log")
            with contextlib.suppress(OSError):
                os.unlink(log)
            done = runtime("--log", log, "--log-format", "json", *words)
            line = json.loads(read(log).splitlines()[-1])
            assert sorted(line) == ["level", "msg", "time"] and line["level"] == "error" and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["time"]), line
            assert done.code != 0 and line["msg"] in done.err and "level=" not in done.err, (words, done)
            assert done.out == "" or runtime is runc, done
            lines.append((done.code, line["msg"]))
            plain = runtime(*words)
            assert re.search(r'^time="[^"]+" level=error msg="', plain.err, re.MULTILINE) and plain.code == done.code, plain
            as_json = runtime("--log-format", "json", *words)
            assert json.loads(as_json.err.splitlines()[-1])["level"] == "error", as_json
            os.unlink(log)
        assert lines[0][0] == lines[1][0], lines
        if "nobody" in words:
            assert "container does not exist" in lines[0][1] and "container does not exist" in lines[1][1], lines


@case("exec --cgroup puts the process below the container's cgroup, and nowhere else")
def exec_cgroup(oci, _):
    with oci.sleeper() as name:
        tops = [CGROUPS] if oci.machine.view == "v2" else [os.path.join(CGROUPS, top) for top in os.listdir(CGROUPS)]
        for top in tops:
            os.mkdir(f"{top}{oci.machine.parent}/{name}/sub")
            if top.endswith("cpuset"):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    write_value(f"{top}{oci.machine.parent}/{name}/sub/{file}", read(f"{top}{oci.machine.parent}/{name}/{file}"))
        for path, wanted in (("/sub", "/sub"), ("sub", "/sub"), ("../sub", "/sub"), ("/", ""), ("", "")):
            good(oci("exec", "--detach", "--pid-file", oci.machine.path("pid"), "--cgroup", path, name, "sleep", "999"))
            pid = int(read(oci.machine.path("pid")))
            mine = [line.split(":", 2)[2] for line in read(f"/proc/{pid}/cgroup").splitlines() if oci.machine.parent in line]
            assert mine and all(found == f"{oci.machine.parent}/{name}{wanted}" for found in mine), (path, mine)
        bad(oci("exec", "--cgroup", "/none", name, "true"), "none", code=255)
        bad(oci("exec", "--cgroup", "cpu:/sub", name, "true"), "not supported", code=255)


def write_value(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def parents(machine, *below):
    """Which of these directories are there, in any hierarchy."""
    tops = [CGROUPS] if machine.view == "v2" else [os.path.join(CGROUPS, top) for top in os.listdir(CGROUPS)]
    return {path for path in below if any(os.path.exists(f"{top}{machine.parent}/{path}") for top in tops)}


@case("the cgroups above a container's that were made for it go with the last one, others stay")
def cgroup_parents(oci, _):
    machine = oci.machine
    tops = [CGROUPS] if machine.view == "v2" else [os.path.join(CGROUPS, top) for top in os.listdir(CGROUPS)]
    for top in tops:
        os.makedirs(f"{top}{machine.parent}/theirs", exist_ok=True)

    def at(path):
        return lambda config: config["linux"].update(cgroupsPath=f"{machine.parent}/{path}")

    for container in ("a/b/one", "theirs/c/one"):
        good(oci.run("true", change=at(container)))
        assert parents(machine, "a", "a/b", "theirs", "theirs/c") == {"theirs"}, container
        first, second = oci.create("sleep", "1000", change=at(container)), oci.create("sleep", "1000", change=at(os.path.dirname(container) + "/two"))
        above = os.path.dirname(container)
        good(oci("delete", "--force", first))
        assert parents(machine, above, container) == {above}
        # Whoever comes last removes it, made for somebody else as it was.
        good(oci("delete", "--force", second))
        assert parents(machine, "a", "a/b", "theirs", "theirs/c") == {"theirs"}, container
    # A failed create, and one that is killed.
    bad(oci.run("true", change=lambda config: (at("a/b/one")(config), config["linux"].update(sysctl={"no.such.sysctl": "1"}))), "sysctl")
    assert not parents(machine, "a")
    hook = {"path": write(machine.path("slow-hook"), f"#!/bin/sh\ntouch {machine.path('hooked')}\nexec sleep 5\n", 0o755)}
    bundle = machine.bundle("true", change=lambda config: (at("a/b/one")(config), config.update(hooks={"prestart": [hook]})))
    with oci.begin("create", "--bundle", bundle, os.path.basename(bundle)) as process:
        until("the hook", lambda: os.path.exists(machine.path("hooked")))
        process.kill()
    os.unlink(machine.path("hooked"))
    good(oci("delete", "--force", os.path.basename(bundle)))
    assert not parents(machine, "a")
    for top in tops:
        os.rmdir(f"{top}{machine.parent}/theirs")


@case("delete --force ends a create that is still at it, with its hooks; without --force it says so at once")
def delete_while_creating(oci, _):
    machine = oci.machine
    for kind in ("prestart", "createRuntime", "createContainer"):
        mark = machine.path("hooked")
        # The hook of the container's namespaces runs in the container's cgroup and sees the machine's files.
        hook = {"path": write(machine.path("slow-hook"), f"#!/bin/sh\ntouch {mark}\nsleep 997 &\nsleep 998\n", 0o755), "env": ["PATH=/usr/bin:/bin"]}
        bundle = machine.bundle("sleep", "1000", change=lambda config, kind=kind, hook=hook: config.update(hooks={kind: [hook]}))
        name = os.path.basename(bundle)
        with oci.begin("create", "--bundle", bundle, name, stderr=subprocess.DEVNULL) as process:
            until("the hook", lambda: os.path.exists(mark))
            began = time.monotonic()
            bad(oci("delete", name), "cannot delete container that is not stopped: creating")
            good(oci("delete", "--force", name))
            assert time.monotonic() - began < 8, time.monotonic() - began
            assert process.wait(5) != 0
        os.unlink(mark)
        assert oci.status(name) == "none" and not oci.left() and not machine.cgroups(), (kind, oci.left(), machine.cgroups())
        until("no hook is left", lambda: not running("sleep\x00997\x00") and not running("sleep\x00998\x00"))
        # The name can be had again.
        good(oci.run("true"))


def running(text):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if text in read(f"/proc/{pid}/cmdline") and alive(int(pid)):
                found.append(int(pid))
    return found


@case("delete does not wait for ever for another call", views=("v1",))
def delete_while_locked(oci, _):
    with oci.sleeper() as name:
        with open(os.path.join(oci.root, name, "lock"), "r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            began = time.monotonic()
            bad(oci("delete", "--force", name), "another call has been changing it for 10 s")
            assert 9 < time.monotonic() - began < 20
            assert oci.status(name) == "running"


@case("an id-mapped bind mount shows the ids of its mappings, or of the container's user namespace")
def id_mapped(oci, _):
    source = oci.machine.path("mapped")
    os.makedirs(os.path.join(source, "below"), exist_ok=True)
    if not os.path.ismount(source):
        assert mount("tmpfs", source)
    # Mount ids are mapped on a tmpfs since Linux 6.3.
    if tuple(int(part) for part in os.uname().release.split(".")[:2]) < (6, 3):
        raise Skip("id-mapped tmpfs, Linux 6.3")
    write(os.path.join(source, "file"), "x")
    os.chown(os.path.join(source, "file"), 1000, 2000)
    os.makedirs(os.path.join(source, "below"), exist_ok=True)
    assert mount("tmpfs", os.path.join(source, "below"))
    write(os.path.join(source, "below", "file"), "x")
    os.chown(os.path.join(source, "below", "file"), 1000, 2000)
    show = "stat -c '%u %g' /work/mapped/file /work/mapped/below/file; touch /work/mapped/new && stat -c '%u %g' /work/mapped/new"

    def change(option, **mappings):
        def apply(config):
            config["ociVersion"] = "1.2.0"
            config["mounts"].append({"destination": "/work/mapped", "type": "bind", "source": source, "options": ["rbind", option], **mappings})
        return apply

    maps = {"uidMappings": [{"containerID": 0, "hostID": 5000, "size": 3000}], "gidMappings": [{"containerID": 0, "hostID": 7000, "size": 3000}]}
    try:
        # What lies on the disk as 1000 is shown as the host id that 1000 is mapped to; root has no id there, so makes nothing.
        done = oci.run("sh", "-c", show, change=change("idmap", **maps))
        assert done.out.splitlines()[:2] == ["6000 9000", "1000 2000"] and "new" in done.err, done
        done = oci.run("sh", "-c", show, change=change("ridmap", **maps))
        assert done.out.splitlines()[:2] == ["6000 9000", "6000 9000"], done
        good(oci.run("sh", "-c", "stat -c '%u %g' /work/mapped/file", change=change("ro")), "1000 2000\n")
        # As root of a user namespace one sees and makes what root has on the disk.
        in_namespace = [{"containerID": 0, "hostID": 100000, "size": 5000}]

        def user_namespace(config):
            change("idmap")(config)
            config["linux"]["namespaces"].append({"type": "user"})
            config["linux"].update(uidMappings=in_namespace, gidMappings=in_namespace)

        done = oci.run("sh", "-c", show, change=user_namespace)
        assert done.out.splitlines()[0] == "1000 2000" and done.out.splitlines()[-1] == "0 0", done
        assert os.stat(os.path.join(source, "new")).st_uid == 0
        bad(oci.run("true", change=change("idmap", uidMappings=maps["uidMappings"])), "gidMappings")
        bad(oci.run("true", change=change("idmap")), "idmap")
        assert "idmap" in good(oci("features")).json()["mountOptions"] and oci("features").json()["linux"]["mountExtensions"]["idmap"]["enabled"]
    finally:
        while oci.machine.dir in read("/proc/self/mountinfo") and subprocess.run(["umount", "-R", source], check=False).returncode == 0:
            pass


def main(view):
    machine = Machine(view)
    oci = Runtime(GCS_OCI, machine)
    try:
        failed = run_cases(view, (oci, Runtime(RUNC, machine)), only=sys.argv[1] if len(sys.argv) > 1 else "")
        left = machine.cgroups()
        if left:
            print(f"FAIL {view}, nothing is left: {left}", flush=True)
        return 1 if failed or left else 0
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(in_views(["v1", "v2"], main))
