# SPDX-License-Identifier: Apache-2.0
"""What the tests of gcs-oci share: a private view of the cgroups, bundles, runtimes, cases and their report."""

import array
import contextlib
import copy
import ctypes
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("GCS_BUILD_DIR", os.path.join(ROOT, "build", "release"))
GCS_OCI = os.path.join(BUILD, "agent", "engine", "cli", "gcs-oci")
RUNC = "/usr/sbin/runc"
CGROUPS = "/sys/fs/cgroup"
V1_CONTROLLERS = ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"]
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH, PR_SET_CHILD_SUBREAPER = 0x20000, 0x4000, 1 << 18, 2, 36
CLONE_NEWNET = 0x40000000
CAP_SYS_RESOURCE = 24

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind, path, options=None, flags=0):
    """False if the kernel refuses it."""
    data = options.encode() if options else None
    return libc.mount(kind.encode(), path.encode(), kind.encode(), flags, data) == 0


def enter_view(view):
    """A mount namespace of our own in which /sys/fs/cgroup is cgroup v1 or cgroup2 alone."""
    assert libc.unshare(CLONE_NEWNS) == 0 and libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0, "needs root"
    while libc.umount2(CGROUPS.encode(), MNT_DETACH) == 0:
        pass
    if view == "v2":
        assert mount("cgroup2", CGROUPS)
        return
    assert mount("tmpfs", CGROUPS)
    for name in V1_CONTROLLERS:
        path = os.path.join(CGROUPS, name)
        os.mkdir(path)
        if not mount("cgroup", path, name):  # The machine has it in a hierarchy of another shape, or not at all.
            os.rmdir(path)


def refuse(err, number, index, value):
    """From here on the kernel says `err` to this process and what it makes, when they make system call `number` with `value` (32
    bits) as argument `index`. A function for subprocess's preexec_fn."""
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    seccomp_ret_errno, seccomp_ret_allow, seccomp_set_mode_filter = 0x00050000, 0x7FFF0000, 1
    rows = ((load, 0, 0, 0), (equal, 0, 3, number), (load, 0, 0, 16 + 8 * index), (equal, 0, 1, value),
            (answer, 0, 0, seccomp_ret_errno | err), (answer, 0, 0, seccomp_ret_allow))
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("HP", len(rows), ctypes.addressof(filters)))
    nr_seccomp = 317

    def enter(_kept=filters):  # `program` points to it.
        if libc.syscall(nr_seccomp, seccomp_set_mode_filter, 0, program) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")

    return enter


@contextlib.contextmanager
def private_network():
    """This thread in a network namespace of its own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0, "needs root"
    try:
        yield
    finally:
        assert libc.setns(home, CLONE_NEWNET) == 0
        os.close(home)


def has_capability(number):
    """Whether we have it (capabilities(7))."""
    (effective,) = [line.split()[1] for line in read("/proc/self/status").splitlines() if line.startswith("CapEff:")]
    return bool(int(effective, 16) >> number & 1)


class Done:
    """How a command ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out.decode(errors="replace"), err.decode(errors="replace")

    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"exit code {self.code}, stdout {self.out!r}, stderr {self.err[-600:]!r}"


def command(words, stdin=b"", timeout=30, **options):
    if isinstance(stdin, bytes):
        options["input"] = stdin
    else:
        options["stdin"] = stdin
    # A file, as a detached container keeps what it gets for as long as it lives.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        done = subprocess.run(words, stdout=out, stderr=err, timeout=timeout, check=False, **options)
        out.seek(0)
        err.seek(0)
        return Done(done.returncode, out.read(), err.read())


def good(done, out=None, code=0):
    assert done.code == code and (out is None or done.out == out), f"{done!r}; expected {code}, {out!r}"
    return done


def bad(done, text="", code=1):
    assert done.code == code and text in done.err, f"{done!r}; expected {code}, {text!r}"
    return done


def until(what, condition, seconds=10):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write(path, text, mode=0o644):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


def make_root(path):
    """A root file system of busybox and its links."""
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "work"):
        os.makedirs(os.path.join(path, name))
    shutil.copy("/bin/busybox", os.path.join(path, "bin", "busybox"))
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            os.symlink("busybox", os.path.join(path, "bin", applet))
    write(os.path.join(path, "etc", "passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n")
    write(os.path.join(path, "etc", "group"), "root:x:0:\nuser:x:1000:\n")
    return path


class Console:
    """A unix socket at which a runtime hands over the master of a terminal."""

    def __init__(self, path):
        self.path = path
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(path)
        self.server.listen()
        self.server.settimeout(10)

    def receive(self):
        connection, _ = self.server.accept()
        with connection:
            fds = array.array("i")
            _, control, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize))
            fds.frombytes(control[0][2])
        return fds[0]


def read_terminal(master, text=None, seconds=10):
    """Output up to `text`, or until nobody has the terminal any more."""
    out = ""
    end = time.monotonic() + seconds
    while text is None or text not in out:
        assert select.select([master], [], [], max(0, end - time.monotonic()))[0], f"no {text!r} within {seconds} s: {out[-300:]!r}"
        try:
            part = os.read(master, 4096)
        except OSError:  # As Linux says that the other side is closed.
            assert text is None, f"ended without {text!r}: {out[-300:]!r}"
            break
        out += part.decode(errors="replace")
    return out.replace("\r\n", "\n")


class Machine:
    """The files, cgroups and names of one view's tests."""

    def __init__(self, view):
        self.view = view
        self.dir = tempfile.mkdtemp(prefix="gcs-oci-test.", dir="/tmp")
        self.rootfs = make_root(os.path.join(self.dir, "rootfs"))
        self.parent = f"/gcs-oci-test-{os.getpid()}"
        self.count = 0
        done = command([GCS_OCI, "spec", "--bundle", self.dir])
        assert done.code == 0, done
        self.template = json.loads(read(self.path("config.json")))
        self.template["process"]["terminal"] = False
        self.template["root"] = {"path": self.rootfs, "readonly": False}

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def name(self, prefix="c"):
        self.count += 1
        return f"{prefix}{self.count}"

    def bundle(self, *args, change=None):
        """A new bundle; returns its directory, whose last part is a new id."""
        name = self.name()
        config = copy.deepcopy(self.template)
        config["process"]["args"] = list(args)
        config["linux"]["cgroupsPath"] = f"{self.parent}/{name}"
        if change:
            change(config)
        os.mkdir(self.path(name))
        write(self.path(name, "config.json"), json.dumps(config))
        return self.path(name)

    def controllers(self):
        if self.view == "v1":
            return os.listdir(CGROUPS)
        return read(os.path.join(CGROUPS, "cgroup.controllers")).split()

    def cgroups(self):
        """Ours that exist."""
        tops = [CGROUPS] if self.view == "v2" else [os.path.join(CGROUPS, name) for name in os.listdir(CGROUPS)]
        return [path for top in tops for path, _, _ in os.walk(top + self.parent) if path != top + self.parent]

    def cgroup_file(self, name, controller, file):
        top = CGROUPS if self.view == "v2" else os.path.join(CGROUPS, controller)
        return f"{top}{self.parent}/{name}/{file}"

    def close(self):
        for path in sorted(self.cgroups(), key=len, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(path)
        tops = [CGROUPS] if self.view == "v2" else [os.path.join(CGROUPS, name) for name in os.listdir(CGROUPS)]
        for top in tops:
            with contextlib.suppress(OSError):
                os.rmdir(top + self.parent)
        shutil.rmtree(self.dir, ignore_errors=True)


class Runtime:
    """One runtime's command line, with a --root of its own."""

    def __init__(self, program, machine):
        self.program = program
        self.machine = machine
        self.root = machine.path("root-" + os.path.basename(program))

    def words(self, *words):
        return [self.program, "--root", self.root, *words]

    def __call__(self, *words, **options):
        return command(self.words(*words), **options)

    @contextlib.contextmanager
    def begin(self, *words, **options):
        """In the background; killed if the test does not end it."""
        with subprocess.Popen(self.words(*words), **options) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *args, change=None, flags=(), **options):
        bundle = self.machine.bundle(*args, change=change)
        return self("run", "--bundle", bundle, *flags, os.path.basename(bundle), **options)

    def create(self, *args, change=None, flags=(), **options):
        bundle = self.machine.bundle(*args, change=change)
        good(self("create", "--bundle", bundle, *flags, os.path.basename(bundle), **options))
        return os.path.basename(bundle)

    def started(self, *args, **options):
        name = self.create(*args, **options)
        good(self("start", name))
        return name

    def state(self, name):
        return good(self("state", name)).json()

    def status(self, name):
        done = self("state", name)
        return done.json()["status"] if done.code == 0 else "none"

    def stopped(self, name):
        until(f"{name} is stopped", lambda: self.status(name) == "stopped")

    def left(self):
        return os.listdir(self.root) if os.path.exists(self.root) else []

    @contextlib.contextmanager
    def sleeper(self, *args, **options):
        name = self.started(*(args or ("sleep", "1000")), **options)
        try:
            yield name
        finally:
            good(self("delete", "--force", name))


CASES = []


def case(name, views=("v1", "v2")):
    def register(function):
        CASES.append((name, function, views))
        return function

    return register


class Skip(Exception):
    pass


def run_cases(view, arguments, only, cases=CASES):
    failed = False
    for name, function, views in cases:
        if view not in views or (only and only not in name):
            continue
        title = f"{view}, {name}"
        begin = time.monotonic()
        try:
            function(*arguments)
            print(f"PASS {title} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Skip as missing:
            print(f"SKIP {title}: {missing}", flush=True)
        except (AssertionError, subprocess.SubprocessError, OSError, LookupError, ValueError, TypeError) as error:
            failed = True
            print(f"FAIL {title}: {' '.join(str(error).split())[:1500] or error!r}", flush=True)
            traceback.print_exc()
    return failed


def in_views(views, function):
    """Calls function(view) in a process and mount namespace of its own for each; the worst exit code. The command line may name
    one view: --view v2."""
    if sys.argv[1:2] == ["--view"]:
        views = [sys.argv[2]]
        del sys.argv[1:3]
    worst = 0
    for view in views:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                enter_view(view)
                code = function(view)
                # What came to us as the subreaper; the machine's own init need not reap it.
                with contextlib.suppress(ChildProcessError):
                    while os.waitpid(-1, os.WNOHANG)[0]:
                        pass
            except BaseException:  # pylint: disable=broad-except
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        worst = max(worst, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
    return worst
