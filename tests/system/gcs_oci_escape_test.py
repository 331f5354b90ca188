#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Escapes as far as they concern gcs-oci itself, by their numbers (escapes.md). Where Debian's runc or crun have the hole they are
the control: the container must be seen to escape there. Elsewhere gcs-oci-weakened is, the same program with one precaution left
out."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys

from oci_support import (BUILD, GCS_OCI, RUNC, Machine, Runtime, bad, case, good, in_views, make_root, read, refuse, run_cases, write)

CRUN = "/usr/bin/crun"
WEAKENED = os.path.join(BUILD, "tests", "system", "gcs-oci-weakened")
AGENT = os.path.join(BUILD, "agent", "gcs", "gcs")


def weakened(machine, *without, program=WEAKENED):
    """gcs-oci without what is named."""
    class Weakened(Runtime):
        def __call__(self, *words, **options):
            return super().__call__(*words, env={**os.environ, "GCS_TEST_WEAK": ",".join(without)}, **options)

    return Weakened(program, machine)


def outside(machine):
    """A file that no container is given."""
    path = machine.path(machine.name("outside"))
    os.mkdir(path)
    return path


def content(path):
    with open(path, "rb") as file:
        return file.read()


def overwritten(runtime):
    """Whether one who has seen a process of the runtime's in its container can write to the program."""
    before = content(runtime.program)
    name = runtime.create("true")
    seen = os.open(f"/proc/{runtime.state(name)['pid']}/exe", os.O_RDONLY)
    try:
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with contextlib.suppress(OSError):  # While it runs.
                os.close(os.open(f"/proc/self/fd/{seen}", flags))
        good(runtime("delete", "--force", name))
        with contextlib.suppress(OSError):
            file = os.open(f"/proc/self/fd/{seen}", os.O_WRONLY | os.O_APPEND)
            try:
                os.write(file, b"overwritten")
            finally:
                os.close(file)
    finally:
        os.close(seen)
    return content(runtime.program) != before


def copy_of(machine, program):
    path = machine.path(machine.name("program"))
    with open(path, "wb") as file:
        file.write(content(program))
    os.chmod(path, 0o755)
    return path


@case("escape 01: the program on disk is out of a container's reach (CVE-2019-5736)")
def sealed(oci, _runc, _crun):
    # Copies, as one of them will be written to.
    assert not overwritten(Runtime(copy_of(oci.machine, GCS_OCI), oci.machine))
    assert overwritten(weakened(oci.machine, "sealed", program=copy_of(oci.machine, WEAKENED)))
    name = oci.create("true")
    program = f"/proc/{oci.state(name)['pid']}/exe"
    assert os.readlink(program) == "/" + os.path.basename(GCS_OCI), "not in an overlay of its own: " + os.readlink(program)
    good(oci("delete", "--force", name))


def copied(runtime, **options):
    """A created container's process is a copy in memory that stays as it is, and the container is as any other."""
    name = runtime.create("sh", "-c", "exec 3>/work/ran; echo $(readlink /proc/$$/exe) >&3", **options)
    pid = runtime.state(name)["pid"]
    program, ran = f"/proc/{pid}/exe", os.path.join(runtime.machine.rootfs, "work", "ran")
    shown = os.readlink(program)
    assert shown == "/memfd:gcs-oci (deleted)", "no copy: " + shown
    seen = os.open(program, os.O_RDONLY)
    try:
        wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        seals = fcntl.fcntl(seen, fcntl.F_GET_SEALS)
        assert seals & wanted == wanted, f"seals {seals:#x}"
        unwritable(f"/proc/self/fd/{seen}", errno.ETXTBSY)
        good(runtime("start", name, **options))
        runtime.stopped(name)
        assert read(ran) == "/bin/busybox\n", read(ran)
        # Nobody executes it any more: it can be opened, but that is all.
        good(runtime("delete", name))
        unwritable(f"/proc/self/fd/{seen}", errno.EPERM)
        copy = b"".join(iter(lambda: os.read(seen, 1 << 20), b""))
        assert copy == content(runtime.program), "not the program"
    finally:
        os.close(seen)
        good(runtime("delete", "--force", name))
    os.unlink(ran)
    # And the same in an exec.
    with runtime.sleeper(**options) as name:
        good(runtime("exec", name, "cat", "/proc/self/comm", **options), "cat\n")
    assert not runtime.left() and not runtime.machine.cgroups()


def unwritable(path, err):
    """Opening, changing or shortening it fails with that."""
    acts = {"pwrite": lambda file: os.pwrite(file, b"overwritten", 0), "append": lambda file: os.pwrite(file, b"x", os.fstat(file).st_size),
            "shorten": lambda file: os.ftruncate(file, 1)}
    for act, change in acts.items():
        try:
            file = os.open(path, os.O_RDWR)
            try:
                change(file)
            finally:
                os.close(file)
        except OSError as error:
            assert error.errno == err, (act, error)
            continue
        raise AssertionError(f"{act} worked on {path}")


@case("escape 01: without an overlay the program is a sealed copy in memory (CVE-2019-5736)")
def sealed_copy(oci, _runc, _crun):
    nr_fsmount, nr_memfd_create, mount_attr_rdonly, mfd_of_6_3 = 432, 319, 1, 0x13
    # A kernel without overlayfs, or a sandbox around us. Only what sealed.cc mounts is read-only and nothing else.
    for err in (errno.EPERM, errno.ENOSYS):
        copied(oci, preexec_fn=refuse(err, nr_fsmount, 2, mount_attr_rdonly))
    # A place that no option of overlayfs can name.
    folder = oci.machine.path("a:b")
    os.mkdir(folder)
    shutil.copy(GCS_OCI, folder)
    elsewhere = Runtime(os.path.join(folder, os.path.basename(GCS_OCI)), oci.machine)
    copied(elsewhere)
    # And a kernel before 6.3.
    copied(elsewhere, preexec_fn=refuse(errno.EINVAL, nr_memfd_create, 1, mfd_of_6_3))


@case("escape 01: an image that makes the runtime execute itself gets nothing to write to")
def executes_itself(oci, _runc, _crun):
    before = content(GCS_OCI)
    evil = write(os.path.join(oci.machine.rootfs, "work", "evil"), "#!/proc/self/exe\n", 0o755)
    oci.run("/work/evil")
    oci.run("sh", "-c", "/work/evil & for i in 1 2 3 4 5 6 7 8 9; do for e in /proc/[0-9]*/exe; do echo x > $e; done; done 2>/dev/null")
    os.unlink(evil)
    assert content(GCS_OCI) == before


def dev_link(runtime, name):
    """What is made outside when the image has a link at that place."""
    machine = runtime.machine
    root, target = make_root(machine.path(machine.name("root"))), outside(machine)
    if name != "/dev":
        os.makedirs(os.path.join(root, "dev"), exist_ok=True)
    else:
        os.rmdir(root + name)
    os.symlink(target, root + name)

    def change(config):
        config["root"]["path"] = root
        config["mounts"] = [item for item in config["mounts"] if not item["destination"].startswith("/dev")]
        config["linux"]["devices"] = [{"path": name + "/node", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}]

    return runtime.run("true", change=change), sorted(os.listdir(target))


@case("escape 10: a link as /dev, /dev/pts or /dev/shm leads nowhere outside (CVE-2026-41579, CVE-2026-47766)", views=("v1",))
def links(oci, runc, crun):
    for name in ("/dev", "/dev/pts", "/dev/shm"):
        done, made = dev_link(oci, name)
        assert done.code == 0 and made == [], (done, made)
    for control in (runc, crun):
        _, made = dev_link(control, "/dev")
        assert {"fd", "stdin", "ptmx"} <= set(made), f"{control.program} does not escape any more: {made}"


@case("escape 08: what the image has as /dev/null does not cover a masked path (CVE-2025-31133)", views=("v1",))
def null_link(oci, runc, _crun):
    def attack(runtime):
        machine = runtime.machine
        root, victim = make_root(machine.path(machine.name("root"))), write(machine.path(machine.name("victim")), "untouched", 0o666)
        os.symlink("/volume", os.path.join(root, "dev", "null"))
        write(os.path.join(root, "etc", "secret"), "secret")

        def change(config):
            config["root"]["path"] = root
            config["mounts"] = [item for item in config["mounts"] if not item["destination"].startswith("/dev")]
            config["mounts"].append({"destination": "/volume", "type": "bind", "source": victim, "options": ["bind"]})
            config["linux"]["maskedPaths"] = ["/etc/secret"]

        return runtime.run("sh", "-c", "cat /etc/secret; echo hit >/etc/secret", change=change), read(victim)

    done, victim = attack(oci)
    assert done.code == 1 and "/dev/null" in done.err and victim == "untouched", (done, victim)
    done, victim = attack(runc)
    assert victim == "hit\n", f"{runc.program} does not escape any more: {done}"


@case("escape 12: exec's --user takes decimal ids and nothing else (CVE-2026-30892)", views=("v1",))
def exec_user(oci, runc, crun):
    wrong = ("", "1000:", ":5", "-1", "4294967295", "4294967296", " 0", "0 ", "0x0", "1:2:3", "+1", "1:-1", "1:4294967295", "user", "1,2",
             "[0]", "1e1", "0\n")
    with oci.sleeper(change=lambda config: config["process"].update(user={"uid": 3, "gid": 4})) as name:
        ids = ["sh", "-c", "echo $(id -u) $(id -g)"]
        for text in wrong:
            bad(oci("exec", "--user", text, name, *ids), "user", code=255)
        good(oci("exec", name, *ids), "3 4\n")
        good(oci("exec", "-u", "7", name, *ids), "7 4\n")
        good(oci("exec", "-u", "7:8", "-g", "9", "-g", "10", name, "id", "-G"), "8 9 10\n")
        good(oci("exec", "--user", "4294967294:4294967294", name, *ids), "4294967294 4294967294\n")
        weak = weakened(oci.machine, "user")
        weak.root = oci.root
        good(weak("exec", "--user", " 0", name, *ids), "0 4\n")
    with oci.sleeper() as name:
        ids = ["sh", "-c", "echo $(id -u) $(id -g) $(grep CapEff /proc/self/status)"]
        good(oci("exec", "--user", "1000:1001", name, *ids), "1000 1001 CapEff: 0000000000000000\n")
    for control, texts in ((runc, ("4294967296",)), (crun, ("-1", "4294967295", " 0", ":5"))):
        with control.sleeper() as name:
            for text in texts:
                done = control("exec", "--user", text, name, "id", "-u")
                assert done.code == 0 and done.out == "0\n", f"{control.program} is not fooled by {text!r} any more: {done}"


def symbols(program, *flags):
    done = subprocess.run(["nm", *flags, program], capture_output=True, text=True, check=False)
    return {line.split()[-1].split("@")[0] for line in done.stdout.splitlines()}


def loads_code(names):
    """What could load code, or ask the machine's name services, by files that the container of the moment has."""
    return sorted(name for name in names if re.fullmatch(r"(__)?(libc_)?dl(m?open|v?sym)(_mode)?|(__)?get(pw|gr|sp)(nam|uid|gid|ent)(_r)?|"
                                                         r"(__)?getaddrinfo|(__)?gethostbyname(2)?(_r)?|__nss_.*|(__)?initgroups|_dl_open", name))


@case("escape 20: gcs-oci can't load code and knows no name service (CVE-2019-14271)", views=("v1",))
def loads_nothing(*_):
    names = symbols(GCS_OCI)
    assert "main" in names and any(name.startswith("_ZN3gcs6engine8RunChild") for name in names), "no symbols to judge by"
    # Those that glibc calls for character sets are ours and load nothing.
    found = set(loads_code(names)) - {"__libc_dlopen_mode", "__libc_dlsym", "__libc_dlvsym"}
    assert not found, found
    assert not re.search(r"INTERP|NEEDED", subprocess.run(["readelf", "-ld", GCS_OCI], capture_output=True, text=True, check=True).stdout)
    # Others do.
    assert "dlopen" in loads_code(symbols(CRUN, "-D"))
    assert "getpwuid" in loads_code(symbols("/usr/bin/id", "-D")) or "getpwnam" in loads_code(symbols("/usr/bin/id", "-D"))


# Not every "__wrap_": agent/net has stand-ins for what it does not want of libnl.
DOUBLES = ("__wrap__ZN", "__wrap_syscall", "__wrap_prctl", "_ZN3gcs4test")


def has_doubles(program):
    return b"GCS_TEST_WEAK" in content(program) or any("WeakSealed" in name or name.startswith(DOUBLES) for name in symbols(program))


@case("escape 01-26: nothing that is shipped contains the doubles", views=("v1",))
def no_doubles(*_):
    assert has_doubles(WEAKENED) and has_doubles(os.path.join(BUILD, "tests", "system", "engine_weakened"))
    shipped = [path for folder, _, files in os.walk(os.path.join(BUILD, "agent")) for path in (os.path.join(folder, file) for file in files)
               if stat.S_IMODE(os.stat(path).st_mode) & 0o111 and content(path)[:4] == b"\x7fELF"]
    assert GCS_OCI in shipped and (AGENT in shipped or not os.path.exists(AGENT)), shipped
    for program in shipped:
        assert not has_doubles(program), program


@case("escape 22: an id is no path")
def ids(oci, runc, _crun):
    wrong = ("", ".", "..", "../x", ".x", "a/b", "/x", "a b", "a\nb", "ä", "x" * 1025, "a\\b", "~")
    bundle = oci.machine.bundle("true")
    before = sorted(os.listdir(oci.machine.dir))
    for name in wrong:
        for words in (["create", "--bundle", bundle], ["run", "--bundle", bundle], ["state"], ["delete", "--force"], ["exec"]):
            done = oci(*words, "--", name, *(["true"] if words == ["exec"] else []))
            assert done.code != 0, (words, name, done)
    assert not oci.left() and not oci.machine.cgroups() and sorted(os.listdir(oci.machine.dir)) == before
    for name in ("a.b", "A_b+c-d", "_x", "0"):
        good(oci("run", "--bundle", bundle, name))
    # Without the check, the state is somewhere else.
    weak = weakened(oci.machine, "ids")
    weak("create", "--bundle", bundle, "../elsewhere")
    assert os.path.exists(oci.machine.path("elsewhere"))
    weak("delete", "--force", "../elsewhere")


@case("escape 23: no annotation changes what is done, and features says so", views=("v1",))
def annotations(oci, _runc, crun):
    told = good(oci("features")).json()
    assert told["potentiallyUnsafeConfigAnnotations"] == [], told

    def attack(runtime):
        path = os.path.join(outside(runtime.machine), "made")

        def change(config):
            config["annotations"] = {"run.oci.hooks.stdout": path, "run.oci.hooks.stderr": path, "run.oci.handler": "krun", "run.oci.systemd.force_cgroup_v1": "/x",
                                     "module.wasm.image/variant": "compat", "org.systemd.property.CPUWeight": "5", "gcs.vsock": "allow"}
            if runtime is crun:
                config["annotations"] = {"run.oci.hooks.stdout": path}
            config["hooks"] = {"prestart": [{"path": "/bin/echo", "args": ["echo", "hit"]}]}

        return runtime.run("cat", "/proc/self/status", change=change), os.path.exists(path)

    done, made = attack(oci)
    plain = good(oci.run("cat", "/proc/self/status"))
    same = [line for line in done.out.splitlines() if line.startswith(("Cap", "Seccomp", "NoNewPrivs", "Groups", "Uid"))]
    assert not made and len(same) >= 8 and all(line in plain.out for line in same), (done, plain)
    done, made = attack(crun)
    assert made, f"{crun.program} does not do what the annotation says any more: {done}"


@case("escape 26: a configuration of 100 MB, or without an end, is refused soon and in words", views=("v1",))
def bombs(oci, *_):
    bundle = oci.machine.bundle("true")
    file = os.path.join(bundle, "config.json")
    template = json.loads(read(file))
    texts = {"File too large": json.dumps({**template, "annotations": {"x": "y" * (100 << 20)}}),
             "levels": json.dumps(template)[:-1] + ',"x":' + "[" * 10000 + "]" * 10000 + "}",
             "1000 mounts": json.dumps({**template, "mounts": [{"destination": "/x", "type": "tmpfs"}] * 100000})}
    for message, text in texts.items():
        write(file, text)
        done = oci("create", "--bundle", bundle, "bomb", timeout=20)
        assert done.code == 1 and message in done.err and len(done.err) < 2000, (message, done)
    os.unlink(file)
    os.symlink("/dev/zero", file)
    bad(oci("create", "--bundle", bundle, "bomb", timeout=20), "File too large")
    assert not oci.left() and not oci.machine.cgroups()


def main(view):
    machine = Machine(view)
    machine.template["ociVersion"] = "1.0.2"  # The newest that this crun knows.
    try:
        runtimes = tuple(Runtime(program, machine) for program in (GCS_OCI, RUNC, CRUN))
        failed = run_cases(view, runtimes, only=sys.argv[1] if len(sys.argv) > 1 else "")
        left = machine.cgroups()
        if left:
            print(f"FAIL {view}, nothing is left: {left}", flush=True)
        return 1 if failed or left else 0
    finally:
        machine.close()


if __name__ == "__main__":
    sys.exit(in_views(["v1", "v2"], main))
