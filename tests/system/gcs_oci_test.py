#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gcs-oci's life cycle, processes and terminals, with cgroup v1 and v2; Debian's runc as control (tests/README.md)."""

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios

from oci_support import (CASES, GCS_OCI, RUNC, Console, Machine, Runtime, alive, bad, case, good, in_views, read, read_terminal,
                         run_cases, until, write)


def states(runtime):
    """The life of a container as (words, exit code, status after)."""
    seen = []
    bundle = runtime.machine.bundle("sleep", "1000")
    name = os.path.basename(bundle)

    def act(*words):
        done = runtime(*words)
        seen.append((" ".join(words), done.code, runtime.status(name)))
        return done

    act("create", "--bundle", bundle, name)
    act("create", "--bundle", bundle, name)
    act("delete", name) if runtime.program == GCS_OCI else None
    act("start", name)
    act("start", name)
    act("delete", name)
    act("kill", name, "0")
    act("kill", name, "NOSUCH")
    act("pause", name)
    act("pause", name)
    act("delete", name)
    act("resume", name)
    act("resume", name)
    pid = runtime.state(name)["pid"]
    good(runtime("kill", name, "KILL"))
    until("its end", lambda: not alive(pid))
    act("state", name)
    for words in (("kill", name), ("start", name), ("pause", name), ("resume", name), ("exec", name, "true"), ("ps", name)):
        act(*words)
    act("kill", "--all", name, "KILL")
    act("delete", name)
    for words in (("delete", name), ("state", name), ("kill", name), ("start", name), ("exec", name, "true"), ("pause", name),
                  ("ps", name), ("update", "--pids-limit", "5", name), ("events", "--stats", name), ("delete", "--force", name)):
        act(*words)
    return [(words.replace(bundle, "B").replace(name, "ID"), code, status) for words, code, status in seen]


@case("every act in every state ends and leaves the state as with runc")
def life_cycle(oci, runc):
    ours = states(oci)
    # runc deletes what was only created, which the specification forbids; a container may be paused twice there.
    kept = [step for step in ours if step[:1] != ("delete ID",) or step[2] != "created"]
    assert [step for step in ours if step not in kept] == [("delete ID", 1, "created")], ours
    theirs = states(runc)
    for mine, control in zip(kept, theirs, strict=True):
        if mine[0] == "pause ID" and control[2] == "paused" and mine[2] == "paused":
            continue
        assert mine == control, f"{mine}, runc: {control}"


@case("an act in the wrong state says why")
def wrong_states(oci, _):
    name = oci.create("sleep", "1000")
    pid = oci.state(name)["pid"]
    bad(oci("delete", name), "cannot delete container that is not stopped: created")
    assert oci.status(name) == "created" and alive(pid)
    bad(oci("create", "--bundle", oci.machine.path(name), name), "container with given ID already exists")
    good(oci("start", name))
    bad(oci("start", name), "cannot start an already running container")
    bad(oci("delete", name), "cannot delete container that is not stopped: running")
    assert oci.status(name) == "running" and alive(pid)
    bad(oci("resume", name), "container not paused")
    good(oci("kill", name, "SIGKILL"))
    oci.stopped(name)
    bad(oci("kill", name), "container not running")
    bad(oci("start", name), "cannot start a container that has stopped")
    bad(oci("exec", name, "true"), "cannot exec in a stopped container", code=255)
    good(oci("delete", name))
    for words in (["state"], ["start"], ["kill"], ["delete"], ["pause"], ["ps"], ["events"]):
        bad(oci(*words, name), "container does not exist")
    good(oci("delete", "--force", name), "")


@case("ids that are no ids are refused and lead nowhere")
def bad_ids(oci, _):
    bundle = oci.machine.bundle("true")
    for name in ("", ".", "..", "../x", "a/b", "/etc", ".a", "a b", "a\nb", "a" * 1025, "ä"):
        for words in (["create", "--bundle", bundle], ["run", "--bundle", bundle], ["state"], ["kill"], ["delete", "--force"]):
            bad(oci(*words, name))
    assert not oci.left(), oci.left()


@case("run's exit code is the program's, or 128 and the signal, as with runc")
def exit_codes(oci, runc):
    for args in (["true"], ["sh", "-c", "exit 3"], ["sh", "-c", "exit 255"], ["no-such-program"], ["/etc/passwd"], ["/work"],
                 ["sh", "-c", "kill -9 $$; exec sleep 9 </dev/null"]):
        if "kill" not in args[-1]:
            ours, theirs = oci.run(*args), runc.run(*args)
            assert ours.code == theirs.code, f"{args}: {ours!r}, runc: {theirs!r}"
    bundle = oci.machine.bundle("sleep", "1000")
    name = os.path.basename(bundle)
    with oci.begin("run", "--bundle", bundle, name) as running:
        until("it runs", lambda: oci.status(name) == "running")
        good(oci("kill", name, "KILL"))
        assert running.wait(10) == 137
    assert not oci.left() and not oci.machine.cgroups(), (oci.left(), oci.machine.cgroups())
    assert "no such file" in oci.run("no-such-program").err.lower()


@case("run passes its streams on, and --keep keeps what is left")
def streams(oci, _):
    good(oci.run("sh", "-c", "cat; echo err >&2", stdin=b"in\n"), "in\n").err.index("err\n")
    bundle = oci.machine.bundle("true")
    name = os.path.basename(bundle)
    good(oci("run", "--keep", "--bundle", bundle, name))
    assert oci.state(name)["status"] == "stopped" and oci.state(name)["pid"] == 0
    good(oci("delete", name))


@case("run --detach leaves a running container and its pid in a file")
def detached(oci, _):
    pid_file = oci.machine.path("pid")
    bundle = oci.machine.bundle("sleep", "1000")
    name = os.path.basename(bundle)
    good(oci("run", "--detach", "--pid-file", pid_file, "--bundle", bundle, name), "")
    state = oci.state(name)
    assert state["status"] == "running" and read(pid_file) == str(state["pid"]) and alive(state["pid"])
    good(oci("delete", "--force", name))
    assert not alive(state["pid"]) and not oci.machine.cgroups()
    good(oci("create", "--pid-file", pid_file, "--bundle", bundle, name))
    assert read(pid_file) == str(oci.state(name)["pid"])
    good(oci("delete", "--force", name))
    bad(oci("create", "--pid-file", "/no/such/pid", "--bundle", bundle, name), "/no/such/pid")
    assert not oci.left() and not oci.machine.cgroups()


def terminal(config):
    config["process"]["terminal"] = True
    config["process"]["consoleSize"] = {"width": 91, "height": 17}


@case("--console-socket gets the terminal's master, of create, run --detach and exec")
def console(oci, _):
    with socket.socket(socket.AF_UNIX):
        listener = Console(oci.machine.path("console.sock"))
    flags = ["--console-socket", listener.path]
    name = oci.create("sh", "-c", "read line; stty size; echo got $line; tty", change=terminal, flags=flags)
    master = listener.receive()
    assert fcntl.ioctl(master, termios.TIOCGWINSZ, bytes(8))[:4] == struct.pack("HH", 17, 91)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 50, 0, 0))
    good(oci("start", name))
    os.write(master, b"hello\n")
    out = read_terminal(master)
    assert out == "hello\n20 50\ngot hello\n/dev/pts/0\n", out
    os.close(master)
    oci.stopped(name)
    good(oci("delete", name))
    bundle = oci.machine.bundle("sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo terminal; exec sleep 1000", change=terminal)
    name = os.path.basename(bundle)
    bad(oci("run", "--detach", "--bundle", bundle, name), "console socket")
    bad(oci("create", "--console-socket", "/no/such/socket", "--bundle", bundle, name), "/no/such/socket")
    assert not oci.left() and not oci.machine.cgroups()
    good(oci("run", "--detach", *flags, "--bundle", bundle, name))
    master = listener.receive()
    assert os.read(master, 100) == b"terminal\r\n"
    good(oci("exec", "--tty", "--detach", *flags, name, "sh", "-c", "echo exec on a; tty"))
    second = listener.receive()
    out = read_terminal(second)
    assert out == "exec on a\n/dev/pts/1\n", out
    bad(oci("exec", "--tty", "--detach", name, "true"), "console socket", code=255)
    bad(oci("exec", *flags, name, "true"), "no terminal", code=255)
    os.close(second)
    os.close(master)
    good(oci("delete", "--force", name))


def under_pty(oci, words, typed):
    """Exit code and last output of a command that has a terminal at which somebody waits for a text and types."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(oci.program, oci.words(*words))
    try:
        for wait, text in typed:
            read_terminal(master, wait)
            if callable(text):
                text(master)
            else:
                os.write(master, text)
        out = read_terminal(master)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(master)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, out


@case("run and exec on a terminal: its size and changes, raw input, and all output of the end")
def on_a_terminal(oci, _):
    script = "trap 'echo size $(stty size)' WINCH; echo ready; until read a; do :; done; echo got $a; until read b; do :; done; seq 2000; echo done; exit 5"

    def resize(master):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 55, 0, 0))

    typed = [("ready", b"x\n"), ("got x", resize), ("size 44 55", b"y\n")]
    bundle = oci.machine.bundle("sh", "-c", script, change=terminal)
    code, out = under_pty(oci, ["run", "--bundle", bundle, os.path.basename(bundle)], typed)
    assert code == 5 and out.endswith("1999\n2000\ndone\n"), (code, out[-300:])
    with oci.sleeper() as name:
        code, out = under_pty(oci, ["exec", "-t", name, "sh", "-c", script], typed)
        assert code == 5 and out.endswith("1999\n2000\ndone\n"), (code, out[-300:])
        # What ^C is, the terminal of the container decides.
        code, out = under_pty(oci, ["exec", "-t", name, "sh", "-c", "echo up; exec sleep 100"], [("up", b"\x03")])
        assert code == 130, (code, out)
        # A process that stays behind and writes on does not hold up the end.
        code, out = under_pty(oci, ["exec", "-t", name, "sh", "-c", "trap '' HUP; yes & exit 4"], [])
        assert code == 4, (code, out[-100:])
    assert "tty" in good(oci.run("sh", "-c", "test -t 0 && echo tty", change=terminal)).out


@case("--preserve-fds and LISTEN_FDS hand on what they count, and nothing more")
def preserved(oci, _):
    files = [os.open(write(oci.machine.path(f"file{i}"), f"file {i}"), os.O_RDONLY) for i in range(3)]
    # As descriptors 3, 4, 5 of the runtime.
    show = "cd /proc/self/fd; for fd in 3 4 5; do test -e $fd && cat <&$fd; done; echo ' '$LISTEN_FDS $LISTEN_PID"
    shell = 'exec 3<"$0" 4<"$1" 5<"$2"; shift 2; exec "$@"'

    def with_files(words, **environment):
        done = subprocess.run(["sh", "-c", shell, *(oci.machine.path(f"file{i}") for i in range(3)), *oci.words(*words)],
                              env={**os.environ, **environment}, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done
        return done.stdout.strip()

    def run(*flags, **environment):
        bundle = oci.machine.bundle("sh", "-c", show)
        return with_files(["run", *flags, "--bundle", bundle, os.path.basename(bundle)], **environment)

    assert run() == "", run()
    assert run("--preserve-fds", "2") == "file 0file 1", run("--preserve-fds", "2")
    assert run(LISTEN_FDS="1") == "file 0 1 1", run(LISTEN_FDS="1")
    assert run("--preserve-fds", "1", LISTEN_FDS="1") == "file 0file 1 1 1"
    with oci.sleeper() as name:
        assert with_files(["exec", name, "sh", "-c", show]) == ""
        assert with_files(["exec", "--preserve-fds", "2", name, "sh", "-c", show]) == "file 0file 1"
        # As with runc, sockets to listen on are for the first process.
        assert with_files(["exec", name, "sh", "-c", show], LISTEN_FDS="2") == ""
    for fd in files:
        os.close(fd)
    bad(oci.run("true", flags=["--preserve-fds", "1"]), "preserve")
    bad(oci.run("true", env={**os.environ, "LISTEN_FDS": "x"}), "LISTEN_FDS")
    assert not oci.left() and not oci.machine.cgroups()


@case("exec: arguments reach the process as they are, whatever they look like")
def exec_arguments(oci, _):
    odd = ["[a,b]", "{}", "%%", "[]", "--", "-x", "--help", "", "a b", "'q'", '"', "\\n", "--user=5", "é", "[[]]", "++", "/s", "=", "a=b"]
    with oci.sleeper() as name:
        done = good(oci("exec", name, "sh", "-c", 'for a in "$@"; do printf "<%s>" "$a"; done', *odd))
        assert done.out == "".join(f"<{word}>" for word in ["sh", *odd][1:]).replace("<[a,b]>", "", 1), done.out
        done = good(oci("exec", "-e", "A=[x,y]", "--env", "B={}", "-e", "C=%%", "--env=D=a,b", "-e", "E=", name, "env"))
        assert {"A=[x,y]", "B={}", "C=%%", "D=a,b", "E="} <= set(done.out.splitlines()), done.out
        good(oci("exec", "--cwd", "/tmp", name, "pwd"), "/tmp\n")
        good(oci("exec", name, "echo", "[a,b]", "{}", "%%"), "[a,b] {} %%\n")
        bad(oci("exec", name), "args", code=255)
        bad(oci("exec", "--cwd", "relative", name, "true"), "cwd", code=255)
        bad(oci("exec", "--env", "novalue", name, "true"), "novalue", code=255)


@case("escape 11, exec: capabilities, privileges, exit codes, process files")
def exec_process(oci, runc):
    with oci.sleeper() as name:
        def sets(*flags):
            out = good(oci("exec", *flags, name, "grep", "-E", "Cap|NoNewPrivs", "/proc/self/status")).out
            return dict(line.split(":\t") for line in out.splitlines())

        plain, more = sets(), sets("--cap", "CAP_SYS_PTRACE", "-c", "CAP_SYS_CHROOT")
        added = 1 << 19 | 1 << 18
        for key in ("CapPrm", "CapEff", "CapBnd"):
            assert int(more[key], 16) == int(plain[key], 16) | added, (plain, more)
        assert int(more["CapInh"], 16) == 0, more
        assert "CAP_NONSENSE" in good(oci("exec", "--cap", "CAP_NONSENSE", name, "true")).err
        good(oci("exec", "--no-new-privs", name, "grep", "NoNewPrivs", "/proc/self/status"), "NoNewPrivs:\t1\n")
        process = {"args": ["sh", "-c", "pwd; id -u; echo $A; cat; exit 6"], "cwd": "/tmp", "env": ["A=b", "PATH=/bin"], "user": {"uid": 5, "gid": 6}}
        file = write(oci.machine.path("process.json"), json.dumps(process))
        good(oci("exec", "--process", file, name, stdin=b"in"), "/tmp\n5\nb\nin", 6)
        bad(oci("exec", "--process", write(file, "{"), name), code=255)
        bad(oci("exec", "--process", write(file, '{"args": []}'), name), "args", code=255)
        bad(oci("exec", "--process", "/no/such/file", name), "/no/such/file", code=255)
        with runc.sleeper() as control:
            for args in (["true"], ["sh", "-c", "exit 9"], ["sh", "-c", "kill -9 $$"], ["no-such"], ["/etc/passwd"], ["/work"]):
                ours, theirs = oci("exec", name, *args), runc("exec", control, *args)
                assert ours.code == theirs.code, f"{args}: {ours!r}, runc: {theirs!r}"
    with oci.sleeper(change=lambda config: config["process"].update(user={"uid": 3, "gid": 4}, cwd="/etc")) as name:
        good(oci("exec", name, "sh", "-c", "id -u; id -g; pwd"), "3\n4\n/etc\n")
    name = oci.create("sleep", "1000")
    good(oci("exec", name, "echo", "in a created one"), "in a created one\n")
    assert oci.status(name) == "created"
    good(oci("delete", "--force", name))


@case("exec --detach returns at once, with the process's id in a file")
def exec_detached(oci, _):
    pid_file = oci.machine.path("exec.pid")
    with oci.sleeper() as name:
        good(oci("exec", "--detach", "--pid-file", pid_file, name, "sleep", "999"))
        pid = int(read(pid_file))
        assert alive(pid) and pid in oci("ps", "-f", "json", name).json()
        bad(oci("exec", "--pid-file", "/no/such/pid", name, "sleep", "998"), "/no/such/pid", code=255)
        assert "998" not in oci("ps", name).out
    assert not alive(pid)


@case("run and exec forward signals to their process")
def forwarded(oci, _):
    script = "trap 'echo term; exit 7' TERM; trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo int' INT; echo up; while :; do sleep 0.02; done"
    bundle = oci.machine.bundle("sh", "-c", script)

    def tell(words):
        with oci.begin(*words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "up\n"
            for number, text in ((signal.SIGUSR1, "usr1\n"), (signal.SIGHUP, "hup\n"), (signal.SIGINT, "int\n"), (signal.SIGTERM, "term\n")):
                process.send_signal(number)
                assert process.stdout.readline() == text, number
            assert process.wait(10) == 7

    tell(["run", "--bundle", bundle, os.path.basename(bundle)])
    with oci.sleeper() as name:
        tell(["exec", name, "sh", "-c", script])
        masks = good(oci("exec", name, "grep", "-E", "SigBlk|SigIgn", "/proc/self/status")).out
        assert set("".join(line.split(":")[1] for line in masks.splitlines()).split()) == {"0" * 16}, masks


@case("kill takes names and numbers, and --all reaches every process")
def kills(oci, _):
    with oci.sleeper("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & sleep 1001 & wait") as name:
        pids = until("three processes", lambda: len(found := oci("ps", "-f", "json", name).json()) == 3 and found)
        for text in ("SIGNOPE", "-9", "99", "9x", ""):
            bad(oci("kill", name, text), "signal")
        good(oci("kill", name, "sigcont"))
        good(oci("kill", "--all", name, "9"))
        until("nobody is left", lambda: not any(map(alive, pids)))

    def no_pid_namespace(config):
        config["linux"]["namespaces"] = [item for item in config["linux"]["namespaces"] if item["type"] != "pid"]

    with oci.sleeper("sh", "-c", "sleep 1000 & wait", change=no_pid_namespace) as name:
        pids = until("two processes", lambda: len(found := oci("ps", "-f", "json", name).json()) == 2 and found)
        good(oci("kill", name, "KILL"))
        until("nobody is left", lambda: not any(map(alive, pids)))


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
    assert CASES
    sys.exit(in_views(["v1", "v2"], main))
