#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gcsctl as a person uses it: every command against a VM of its own. Prints PASS and FAIL lines (tests/README.md)."""

import contextlib
import errno
import fcntl
import glob
import io
import json
import os
import pty
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("GCS_BUILD_DIR", os.path.join(ROOT, "build", "release"))
GCSCTL = os.path.join(BUILD, "tests", "host", "gcsctl", "gcsctl")
OCI_IMAGE = os.path.join(BUILD, "tests", "host", "image", "oci-image")

work = tempfile.mkdtemp(prefix="gcsctl-test.", dir="/tmp")
image = os.path.join(work, "image")
STATE = os.environ["GCSCTL_STATE"] = os.path.join(work, "state")
failed = False
# Who runs this in the background may have it ignored, and what it starts with it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def gcsctl(*words, stdin=b"", timeout=120):
    """Runs gcsctl; returns exit code, stdout, stderr."""
    done = subprocess.run([GCSCTL, *words], input=stdin, capture_output=True, timeout=timeout, check=False)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def expect(got, code, out=None, err_has=""):
    assert got[0] == code, f"exit code {got[0]}, not {code}: {got[1]!r} {got[2]!r}"
    assert out is None or got[1] == out, f"stdout {got[1]!r}, not {out!r}; stderr {got[2]!r}"
    assert err_has in got[2], f"{err_has!r} not in stderr {got[2]!r}"


def containers():
    code, out, err = gcsctl("ps", "--json")
    assert code == 0, err
    return {container["container_id"]: container for container in json.loads(out).get("containers", [])}


def until(what, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def begun(*words, **options):
    """gcsctl in the background; killed if the test does not end it."""
    with subprocess.Popen([GCSCTL, *words], **options) as process:
        try:
            yield process
        finally:
            process.kill()


CASES = []


def case(name):
    def register(function):
        CASES.append((name, function))
        return function

    return register


def processes_with(text):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(pid))
        except OSError:
            pass
    return [pid for pid in found if pid != os.getpid()]


@case("without a running VM, status says so and commands name the remedy")
def no_vm():
    expect(gcsctl("vm", "status"), 1)
    expect(gcsctl("ps"), 125, err_has="gcsctl vm start")
    expect(gcsctl("run", "-d", image, "true"), 125, err_has="gcsctl vm start")


@case("run without a VM boots one, gives the container's exit code and leaves nothing")
def one_shot():
    timings = os.path.join(work, "timings.json")
    expect(gcsctl("run", "--timings", timings, image, "sh", "-c", "echo one; exit 3"), 3, "one\n")
    with open(timings, encoding="utf-8") as file:
        steps = json.load(file)
    assert steps["all"] > 0 and "create" in steps, steps
    expect(gcsctl("run", "/no/such/image"), 125, err_has="/no/such/image")
    expect(gcsctl("run", image, "no-such-program"), 127)
    assert os.listdir(STATE) in ([], ["default"]), os.listdir(STATE)


@case("a signal ends a run in its VM's boot, SIGKILL one that runs, and nothing is left")
def one_shot_interrupted():
    def gone(pid):
        until("its files are gone", lambda: not os.path.exists(os.path.join(STATE, f"run-{pid}")))
        assert not processes_with(f"/run-{pid}/"), "QEMU is left"

    with begun("run", image, "sleep", "1000") as process:
        until("QEMU runs", lambda: processes_with(f"/run-{process.pid}/"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM, process.returncode
        gone(process.pid)
    with begun("run", image, "sh", "-c", "echo up; sleep 1000", stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.kill()
        gone(process.pid)
    with begun("vm", "start", "--vm", "half", stdout=subprocess.DEVNULL) as process:
        until("QEMU runs", lambda: processes_with("/state/half/"))
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == -signal.SIGINT, process.returncode
        until("QEMU ends", lambda: not processes_with("/state/half/"))


PAUSED_SECONDS = 62
paused = None


@case("a VM is started once, and told to be there")
def start():
    global paused
    expect(gcsctl("vm", "start"), 0)
    # Read by the case of the reader that pauses, so that the pause costs no time of its own.
    words = ["run", "--rm", "--name", "paused", image, "head", "-c", "300000", "/dev/zero"]
    paused = subprocess.Popen([GCSCTL, *words], stdout=subprocess.PIPE)  # pylint: disable=consider-using-with
    paused.begin = time.monotonic()
    expect(gcsctl("vm", "start"), 125, err_has="runs already")
    code, out, _ = gcsctl("--json", "vm", "status")
    assert code == 0 and json.loads(out)["running"] is True
    code, out, _ = gcsctl("info", "--json")
    assert code == 0 and json.loads(out)["api_version"] == "v1"


@case("a VM starts while somebody looks whether it runs")
def start_watched():
    os.makedirs(os.path.join(STATE, "watched"))
    with open(os.path.join(STATE, "watched", "alive"), "w", encoding="utf-8") as alive:
        fcntl.flock(alive, fcntl.LOCK_SH)
        with begun("vm", "start", "--vm", "watched", stdout=subprocess.DEVNULL) as process:
            time.sleep(0.5)
            expect(gcsctl("vm", "status", "--vm", "watched"), 1)
            fcntl.flock(alive, fcntl.LOCK_UN)
            assert process.wait(60) == 0, process.returncode
    expect(gcsctl("vm", "stop", "--force", "--vm", "watched"), 0)


@case("exit codes: the container's, 125 for gcsctl's own, 126 and 127 as a shell has them")
def exit_codes():
    for code in (0, 1, 42):
        expect(gcsctl("run", "--rm", image, "sh", "-c", f"exit {code}"), code)
    expect(gcsctl("run", "--rm", image, "sh", "-c", "sleep 9 & kill -9 $!; wait $!"), 137)
    expect(gcsctl("run", "--rm", image, "no-such-program"), 127, err_has="no-such-program")
    expect(gcsctl("run", "--rm", image, "/etc/passwd"), 126)
    expect(gcsctl("run", "--rm", "/no/such/image", "true"), 125, err_has="/no/such/image")
    expect(gcsctl("run", "--rm", "-u", "stranger", image, "true"), 125, err_has="stranger")
    expect(gcsctl("run", "--rm", "--cap-add", "FLY", image, "true"), 125, err_has="FLY")
    expect(gcsctl("run", "--no-such-flag", image), 125)


@case("run passes environment, directory, user, hostname, limits and standard streams")
def run_flags():
    script = 'echo $A $(pwd) $(id -un) $(hostname) $HOME $(cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max); cat'
    got = gcsctl("run", "--rm", "-i", "-e", "A=b", "-w", "/tmp", "-u", "user", "--hostname", "box", "--memory", "64m",
                 "--pids-limit", "33", image, "sh", "-c", script, stdin=b"from stdin\n")
    expect(got, 0, "b /tmp user box /home/user 67108864 33\nfrom stdin\n")
    expect(gcsctl("run", "--rm", "--read-only", image, "touch", "/x"), 1, err_has="Read-only")
    expect(gcsctl("run", "--rm", "--entrypoint", "/bin/echo", image, "a", "b"), 0, "a b\n")
    expect(gcsctl("run", "--rm", "--scratch", "64m", image, "sh", "-c", "echo x > /f && cat /f"), 0, "x\n")


@case("arguments reach the program as they are, whatever they look like")
def arguments():
    words = ["[1,2]", "[ -e /x ]", "{}", "%%", "", "a b", "--rm", "-x", "--", "[]"]
    script = 'for word; do echo "<$word>"; done'
    lines = "".join(f"<{word}>\n" for word in words)
    expect(gcsctl("run", "--rm", "--hostname", "[box]", image, "sh", "-c", script, "sh", *words), 0, lines)
    expect(gcsctl("run", "--rm", "--name=args", "-eA=b", "--", image, "echo", "{}"), 0, "{}\n")
    expect(gcsctl("run", "-d", "--name", "words", image, "sleep", "1000"), 0)
    expect(gcsctl("exec", "-w", "/", "words", "sh", "-c", script, "sh", *words), 0, lines)
    expect(gcsctl("exec", "words"), 125, err_has="ARGS")
    expect(gcsctl("rm", "-f", "words"), 0)


@case("a host directory is shared, read-only when asked")
def volumes():
    shared = os.path.join(work, "shared")
    os.mkdir(shared)
    with open(os.path.join(shared, "f"), "w", encoding="utf-8") as file:
        file.write("hello\n")
    expect(gcsctl("run", "--rm", "-v", f"{shared}:/mnt", image, "sh", "-c", "cat /mnt/f; echo x > /mnt/g"), 0, "hello\n")
    assert os.path.exists(os.path.join(shared, "g"))
    expect(gcsctl("run", "--rm", "-v", f"{shared}:/mnt:ro", image, "sh", "-c", "echo x > /mnt/h"), 1)
    assert not os.path.exists(os.path.join(shared, "h"))
    expect(gcsctl("run", "--rm", "-v", "/no/such/dir:/mnt", image, "true"), 125, err_has="/no/such/dir")
    expect(gcsctl("run", "--rm", "--cap-add", "FLY", "-v", f"{shared}:/mnt", image, "true"), 125, err_has="FLY")
    until("no 9P server is left", lambda: not processes_with("/default/diod.log"), 5)


def exchange(server, kind, body):
    """One 9P request; kind and body of the answer."""
    server.sendall(struct.pack("<IBH", 7 + len(body), kind, 1) + body)
    size, answer, _ = struct.unpack("<IBH", server.recv(7, socket.MSG_WAITALL))
    return answer, server.recv(size - 7, socket.MSG_WAITALL) if size > 7 else b""


@case("the server of a read-only share refuses to write, whatever the guest asks")
def read_only_server():
    version, attach, walk, make_directory, open_file, error = 100, 104, 110, 72, 12, 7

    def string(text):
        return struct.pack("<H", len(text)) + text.encode()

    for options, refused in ((":ro", True), ("", False)):
        directory = os.path.join(work, "served" + options.replace(":", "-"))
        os.mkdir(directory)
        with open(os.path.join(directory, "f"), "w", encoding="utf-8") as file:
            file.write("kept")
        expect(gcsctl("run", "-d", "--name", "server", "-v", f"{directory}:/mnt{options}", image, "sleep", "1000"), 0)
        with open(glob.glob(os.path.join(STATE, "default", "share-*.json"))[0], encoding="utf-8") as file:
            share = json.load(file)
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(share["socket"])
            assert exchange(server, version, struct.pack("<I", 8192) + string("9P2000.L"))[0] == version + 1
            body = struct.pack("<II", 1, 0xFFFFFFFF) + string("root") + string(share["name"]) + struct.pack("<I", 0)
            assert exchange(server, attach, body)[0] == attach + 1
            made = exchange(server, make_directory, struct.pack("<I", 1) + string("made") + struct.pack("<II", 0o755, 0))
            assert exchange(server, walk, struct.pack("<IIH", 1, 2, 1) + string("f"))[0] == walk + 1
            cut = exchange(server, open_file, struct.pack("<II", 2, os.O_RDONLY | os.O_TRUNC))
        expect(gcsctl("rm", "-f", "server"), 0)
        for got in (made, cut):
            assert (got == (error, struct.pack("<I", errno.EROFS))) == refused, got
        assert os.path.exists(os.path.join(directory, "made")) != refused
        assert os.path.getsize(os.path.join(directory, "f")) == (4 if refused else 0)
        until("no 9P server is left", lambda: not processes_with("/default/diod.log"), 5)
        assert not glob.glob(os.path.join(STATE, "default", "share-2*"))


@case("a share whose container is still being made survives another container's removal")
def share_in_making():
    path = os.path.join(STATE, "default", "share-20500.json")
    with subprocess.Popen(["sleep", "1000"]) as server, open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with open(f"/proc/{server.pid}/stat", encoding="utf-8") as stat:
                start_time = stat.read().rsplit(")", 1)[1].split()[19]
            json.dump({"container": "coming", "pid": server.pid, "start_time": start_time, "socket": ""}, file)
            file.flush()
            expect(gcsctl("rm", "no-such"), 125)
            assert server.poll() is None and os.path.exists(path)
            fcntl.flock(file, fcntl.LOCK_UN)
            expect(gcsctl("rm", "no-such"), 125)
            assert server.wait(5) == -signal.SIGTERM and not os.path.exists(path)
        finally:
            server.kill()


@case("a detached container is listed, exec'd into, measured, killed, waited for and removed")
def detached():
    expect(gcsctl("run", "-d", "--name", "back", image, "sh", "-c", "echo started; sleep 1000"), 0, "back\n")
    assert containers()["back"]["status"] == "CONTAINER_STATUS_RUNNING"
    expect(gcsctl("exec", "back", "sh", "-c", "echo in; echo err >&2; exit 9"), 9, "in\n", "err")
    expect(gcsctl("exec", "-i", "-u", "user", "back", "sh", "-c", "id -un; cat", stdin=b"x\n"), 0, "user\nx\n")
    expect(gcsctl("exec", "back", "no-such"), 127)
    expect(gcsctl("ps", "back"), 0)
    code, out, _ = gcsctl("stats", "--json", "back")
    assert code == 0 and int(json.loads(out)["stats"][0]["pids"]["current"]) >= 1, out
    expect(gcsctl("pause", "back"), 0)
    expect(gcsctl("unpause", "back"), 0)
    expect(gcsctl("rm", "back"), 125, err_has="back")
    expect(gcsctl("kill", "-s", "KILL", "back"), 0)
    expect(gcsctl("wait", "back"), 0, "137\n")
    expect(gcsctl("attach", "back"), 137, "started\n")
    expect(gcsctl("rm", "back"), 0)
    expect(gcsctl("rm", "back"), 125, err_has="back")
    code, out, _ = gcsctl("events")
    assert code == 0 and "back deleted" in out, out
    code, out, _ = gcsctl("logs")
    assert code == 0 and "ContainerService.Create" in out


@case("attach shows what a container with a terminal prints")
def attach_terminal():
    expect(gcsctl("run", "-d", "-t", "--name", "tty", image, "sh", "-c", "echo seen; exit 3"), 0, "tty\n")
    expect(gcsctl("attach", "tty"), 3, "seen\r\n")
    expect(gcsctl("rm", "tty"), 0)
    expect(gcsctl("attach", "tty"), 125, err_has="tty")


@case("signals are forwarded, and the third interrupt kills")
def signals():
    loop = "echo up; while true; do sleep 0.1; done"
    # Signals that come close together are one: of those that the second container ignores, three or more are sent.
    for script, most, code in (("trap 'echo caught; exit 4' TERM; " + loop, 1, 4), ("trap '' TERM; " + loop, 100, 137)):
        with subprocess.Popen([GCSCTL, "run", "--rm", image, "sh", "-c", script], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout.readline() == b"up\n"
                for _ in range(most):
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(0.2)
                        break
                    except subprocess.TimeoutExpired:
                        pass
                assert process.wait(30) == code, process.returncode
            finally:
                process.kill()  # Popen would wait for it for ever.


@case("a reader that goes away ends the container")
def broken_pipe():
    command = f"{GCSCTL} run --rm {image} yes | head -n 2"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"y\ny\n", done.stdout
    assert containers().keys() <= {"paused"}, containers()


@case("signals end what follows events and logs")
def followers():
    for words, number in ((["events", "-f"], signal.SIGTERM), (["logs", "-f"], signal.SIGINT)):
        with begun(*words, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline()
            process.send_signal(number)
            assert process.wait(5) == -number, process.returncode


@case("a terminal has the caller's size, follows it, takes Ctrl-C, and is given back")
def terminal():
    pid, fd = pty.fork()
    if pid == 0:
        os.execv("/bin/sh", ["sh", "-c", f"stty rows 33 cols 99; {GCSCTL} run --rm -it {image} sh; echo code $?; stty -a"])
    text = b""

    def until(mark, seconds=30):
        nonlocal text
        end = time.monotonic() + seconds
        while mark not in text:
            assert time.monotonic() < end, f"no {mark!r} in {text!r}"
            if select.select([fd], [], [], 0.1)[0]:
                try:
                    text += os.read(fd, 65536)
                except OSError:
                    break
        assert mark in text, f"no {mark!r} in {text!r}"
        text = text[text.index(mark) + len(mark):]

    until(b"# ")
    os.write(fd, b"stty size\n")
    until(b"33 99")
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 70, 0, 0))
    os.write(fd, b"until stty size | grep -qx '20 70'; do sleep 0.1; done; echo size $((1 + 1))\n")
    until(b"size 2")
    # Said by the job that Ctrl-C is for; put together by it, as the terminal echoes the line itself too.
    os.write(fd, b"sh -c 'echo job $((1 + 1)); exec sleep 1000'\n")
    until(b"job 2")
    os.write(fd, b"\x03")
    os.write(fd, b"exit 9\n")
    until(b"code 9")
    until(b" icanon")
    until(b" echo ")
    os.waitpid(pid, 0)
    os.close(fd)


@case("pods, the network and kernel parameters")
def pods():
    expect(gcsctl("pod", "create", "--hostname", "shared", "--shm-size", "1m", "--sysctl", "net.core.somaxconn=99", "p"), 0, "p\n")
    expect(gcsctl("run", "--rm", "--pod", "p", image, "sh", "-c", "echo file > /dev/shm/file; hostname; cat /proc/sys/net/core/somaxconn"), 0,
           "shared\n99\n")
    expect(gcsctl("run", "-d", "--pod", "p", "--name", "member", image, "sleep", "1000"), 0, "member\n")
    expect(gcsctl("exec", "member", "cat", "/dev/shm/file"), 0, "file\n")
    listed = gcsctl("pod", "ls")
    expect(listed, 0)
    assert listed[1].splitlines()[1].split()[0] == "p" and listed[1].rstrip().endswith("member"), listed[1]
    expect(gcsctl("pod", "rm", "p"), 125, err_has="member")
    expect(gcsctl("net", "dns", "--pod", "p", "--search", "example.org", "10.0.0.53"), 0)
    expect(gcsctl("exec", "member", "cat", "/etc/resolv.conf"), 0, "nameserver 10.0.0.53\nsearch example.org\n")
    expect(gcsctl("net", "dns", "--pod", "p", "nobody"), 125, err_has="name_servers[0]")
    listed = gcsctl("net", "ls", "--pod", "p", "--json")
    expect(listed, 0)
    assert [each["name"] for each in json.loads(listed[1])["interfaces"]] == ["lo"], listed[1]
    expect(gcsctl("net", "set", "lo", "--address", "10.0.0.1/24"), 125, err_has="loopback")
    expect(gcsctl("rm", "-f", "member"), 0)
    expect(gcsctl("pod", "rm", "p"), 0)
    expect(gcsctl("pod", "rm", "p"), 125, err_has="find pod")
    expect(gcsctl("sysctl", "vm.swappiness=7"), 0, "vm.swappiness = 7\n")
    expect(gcsctl("sysctl", "vm.no_such"), 125, err_has="vm.no_such")
    expect(gcsctl("run", "--rm", "--pod", "nowhere", image, "true"), 125, err_has="find pod")


@case("cp carries tar streams into a container and out of it")
def copy():
    expect(gcsctl("run", "-d", "--name", "cp", image, "sleep", "1000"), 0)
    try:
        content = os.urandom(700000)
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            entry = tarfile.TarInfo("sub/caf\u00e9")
            entry.size, entry.mode, entry.uid = len(content), 0o640, 1234
            tar.addfile(entry, io.BytesIO(content))
        expect(gcsctl("cp", "-", "cp:/tmp", stdin=stream.getvalue()), 0)
        expect(gcsctl("exec", "cp", "stat", "-c", "%a %u %s", "/tmp/sub/caf\u00e9"), 0, "640 1234 700000\n")
        got = subprocess.run([GCSCTL, "cp", "cp:/tmp/sub", "-"], stdout=subprocess.PIPE, check=True, timeout=60)
        with tarfile.open(fileobj=io.BytesIO(got.stdout)) as tar:
            assert tar.getnames() == ["sub", "sub/caf\u00e9"], tar.getnames()
            assert tar.extractfile("sub/caf\u00e9").read() == content
        code, _, err = gcsctl("cp", "cp:/none", "-")
        assert code == 125 and "No such file" in err, (code, err)
        code, _, err = gcsctl("cp", "-", "cp:/tmp", stdin=b"no tar" * 200)
        assert code == 125 and "read tar" in err, (code, err)
    finally:
        expect(gcsctl("rm", "-f", "cp"), 0)


@case("output waits for a reader that pauses, until a signal says that it needs not")
def paused_reader():
    words = ["run", "--rm", "--name", "stalled", image, "head", "-c", "300000", "/dev/zero"]
    with begun(*words, stdout=subprocess.PIPE) as process:
        until("its end", lambda: containers().get("stalled", {}).get("status") == "CONTAINER_STATUS_STOPPED")
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 125, process.returncode
    assert "stalled" not in containers()
    time.sleep(max(0, paused.begin + PAUSED_SECONDS - time.monotonic()))
    assert containers()["paused"]["status"] == "CONTAINER_STATUS_STOPPED"
    assert len(paused.stdout.read()) == 300000
    assert paused.wait(20) == 0, paused.returncode
    assert "paused" not in containers()


@case("vm stop ends QEMU and leaves no process")
def stop():
    _, out, _ = gcsctl("--json", "vm", "status")
    run_dir = json.loads(out)["run_dir"]
    expect(gcsctl("vm", "stop"), 0)
    expect(gcsctl("vm", "status"), 1)
    time.sleep(0.3)
    assert not os.path.exists(run_dir)
    assert not processes_with(run_dir)


def main():
    global failed
    if "GCS_IMAGE_DIR" not in os.environ:
        print("FAIL gcsctl: GCS_IMAGE_DIR is not set")
        return 1
    made = subprocess.run([OCI_IMAGE, "make-default", image], capture_output=True, check=False)
    if made.returncode != 0:
        print(f"FAIL gcsctl: oci-image make-default: {made.stderr!r}")
        return 1
    for name, function in CASES:
        begin = time.monotonic()
        try:
            function()
            print(f"PASS {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        except (AssertionError, subprocess.TimeoutExpired, OSError, KeyError, IndexError, ValueError) as error:
            failed = True
            print(f"FAIL {name}: {' '.join(str(error).split())[:1000] or error!r}", flush=True)
            traceback.print_exc()
    gcsctl("vm", "stop", "--force")
    if paused:
        paused.kill()
    shutil.rmtree(work, ignore_errors=True)
    return 1 if failed else 0


sys.exit(main())
