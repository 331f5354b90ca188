#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs test programs one by one and counts their test cases; scripts/test builds them and calls this.

A list has lines `KIND NAME TIMEOUT COMMAND`. Programs (--programs) speak doctest; scripts (--scripts) print lines
`PASS name`, `FAIL name: reason` or `SKIP name: missing feature`. tests/README.md describes both protocols.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree

KINDS = ["unit", "fuzz", "system", "vm", "apps"]  # The order of running: what is quick and tells most comes first.
PARALLEL_KINDS = {"unit": 2}
OUTPUT_LIMIT = 16 * 1024  # What is shown of a failed program's output: its end.
HEARTBEAT_SECONDS = 30


@dataclasses.dataclass
class Case:
    name: str
    status: str  # pass, fail or skip
    seconds: float
    detail: str = ""


@dataclasses.dataclass
class Program:
    kind: str
    name: str
    timeout: float
    command: list
    protocol: str  # doctest or lines
    cases: list = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    output: str = ""

    def count(self, status):
        return sum(case.status == status for case in self.cases)


class Screen:
    """Lines that stay, and on a terminal one status line below them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tty = sys.stdout.isatty()
        self.status_shown = False

    def line(self, text):
        with self.lock:
            self._clear()
            print(text, flush=True)

    def status(self, text):
        if not self.tty:
            return
        with self.lock:
            self._clear()
            width = os.get_terminal_size().columns
            sys.stdout.write(text[: width - 1])
            sys.stdout.flush()
            self.status_shown = True

    def _clear(self):
        if self.status_shown:
            sys.stdout.write("\r\033[K")
            self.status_shown = False


def read_list(path, prefix, protocol):
    programs = []
    for number, line in enumerate(pathlib.Path(path).read_text().splitlines(), 1):
        line = line.split("#", 1)[0].strip() if protocol == "lines" else line.strip()
        if not line:
            continue
        parts = line.split(None, 3)
        if len(parts) != 4 or parts[0] not in KINDS or not parts[2].isdigit():
            raise SystemExit(f"{path}:{number}: expected KIND NAME TIMEOUT COMMAND with a kind of {KINDS}: {line}")
        kind, name, timeout, command = parts
        argv = [command] if protocol == "doctest" else shlex.split(command)
        programs.append(Program(kind, prefix + name, float(timeout), argv, protocol))
    return programs


def marked_processes(mark):
    """Living processes whose environment carries our mark: what a test started, wherever it has moved to."""
    found = []
    needle = b"GCS_TEST_MARK=" + mark.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                if needle not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{entry}/stat", "rb") as file:
                state = file.read().rsplit(b")", 1)[1].split()[0]
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # It has ended meanwhile, or is not ours to look at.
        if state not in (b"Z", b"X"):
            found.append((int(entry), command))
    return found


def kill_all(process, mark):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for pid, _ in marked_processes(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def describe_exit(code):
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"ended with exit code {code}"


class Runner:
    def __init__(self, options, screen):
        self.options = options
        self.screen = screen
        self.logs = pathlib.Path(options.logs).resolve()
        self.logs.mkdir(parents=True, exist_ok=True)

    def run(self, program):
        base = self.logs / re.sub(r"[^A-Za-z0-9_.-]", "_", program.name)
        paths = {kind: base.with_name(base.name + "." + kind) for kind in ("log", "xml", "skips", "progress")}
        for path in paths.values():
            path.write_bytes(b"")
        mark = f"{os.getpid()}.{program.name}"
        environment = dict(os.environ, GCS_TEST_SEED=str(self.options.seed), GCS_TEST_MARK=mark,
                           GCS_TEST_SKIPS=str(paths["skips"]), GCS_TEST_PROGRESS=str(paths["progress"]))
        command = list(program.command)
        if program.protocol == "doctest":
            command += ["--reporters=junit", f"--out={paths['xml']}"]
            if self.options.case:
                command.append(f"--test-case=*{self.options.case}*")
        begin = time.monotonic()
        with open(paths["log"], "wb") as log:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                           start_new_session=True, env=environment)
            except OSError as error:
                program.cases.append(Case("starts", "fail", 0.0, f"cannot run {command[0]}: {error.strerror}"))
                return program
        timed_out = self.wait(program, process, begin, paths)
        program.seconds = time.monotonic() - begin
        left = marked_processes(mark)
        kill_all(process, mark)
        program.output = paths["log"].read_bytes()[-OUTPUT_LIMIT:].decode(errors="replace")

        if program.protocol == "doctest":
            self.read_junit(program, paths)
        else:
            read_lines(program, paths["log"].read_text(errors="replace"))
        if timed_out:
            program.cases.append(Case(f"{program.name} ends in time", "fail", program.seconds,
                                      f"still running after {program.timeout:.0f} s{self.running_case(paths)}; killed"))
        elif process.returncode != 0 and (process.returncode < 0 or program.count("fail") == 0):
            program.cases.append(Case(f"{program.name} ends well", "fail", program.seconds,
                                      f"{describe_exit(process.returncode)}{self.running_case(paths)}"))
        elif not program.cases and not self.options.case:
            program.cases.append(Case(f"{program.name} runs tests", "fail", program.seconds, "no test case was run"))
        if left and not timed_out:
            text = "; ".join(f"{pid} {command[:100]}" for pid, command in left)
            program.cases.append(Case(f"{program.name} leaves no process behind", "fail", 0.0, f"killed: {text}"))
        return program

    def wait(self, program, process, begin, paths):
        next_heartbeat = begin + HEARTBEAT_SECONDS
        while True:
            try:
                process.wait(timeout=0.2 if self.screen.tty else 1.0)
                return False
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            done, current = progress(paths["progress"])
            text = f"  {program.kind} {program.name}: {now - begin:.0f} s, {done} done{': ' + current if current else ''}"
            self.screen.status(text)
            if now >= next_heartbeat and not self.screen.tty:
                self.screen.line(text)
                next_heartbeat += HEARTBEAT_SECONDS
            if now - begin > program.timeout:
                kill_all(process, f"{os.getpid()}.{program.name}")
                process.wait()
                return True

    @staticmethod
    def running_case(paths):
        current = progress(paths["progress"])[1]
        return f", in test case \"{current}\"" if current else ""

    @staticmethod
    def read_junit(program, paths):
        skips = {}
        for line in paths["skips"].read_text(errors="replace").splitlines():
            name, _, reason = line.partition("\t")
            skips[name] = reason
        try:
            root = xml.etree.ElementTree.parse(paths["xml"]).getroot()
        except xml.etree.ElementTree.ParseError:
            # The program died or was killed before its report: what it had finished still counts.
            for event, seconds, name in read_progress(paths["progress"]):
                if event in ("pass", "fail"):
                    status = "skip" if name in skips and event == "pass" else event
                    program.cases.append(Case(name, status, seconds, skips.get(name, "see the program's output")))
            return
        for element in root.iter("testcase"):
            name = " ".join(element.get("name", "?").split())
            failures = [(failure.get("message") or "").strip() + "\n" + (failure.text or "").strip()
                        for failure in element if failure.tag in ("failure", "error")]
            reason = next((skips[skip] for skip in skips if name == skip or name.startswith(skip + "/")), None)
            status = "fail" if failures else "skip" if reason is not None else "pass"
            detail = "\n".join(failures) if failures else reason or ""
            program.cases.append(Case(name, status, float(element.get("time") or 0), detail))


def read_progress(path):
    events = []
    for line in path.read_text(errors="replace").splitlines():
        parts = line.split("\t", 2)
        if len(parts) == 3:
            events.append((parts[0], float(parts[1]), parts[2]))
    return events


def progress(path):
    """How many test cases have ended, and the one that runs."""
    done, current = 0, ""
    for event, _, name in read_progress(path):
        if event == "start":
            current = name
        else:
            done, current = done + 1, ""
    return done, current


def read_lines(program, output):
    for line in output.splitlines():
        match = re.fullmatch(r"(PASS|FAIL|SKIP) (.+?)(?: \(([0-9.]+) s\))?", line.strip())
        if not match:
            continue
        status, name, seconds = match.groups()
        reason = ""
        if status != "PASS":
            # A name without a colon behind it is one word.
            name, _, reason = name.partition(": ") if ": " in name else name.partition(" ")
        program.cases.append(Case(name, status.lower(), float(seconds or 0), reason))


def indent(text, by="      "):
    return "\n".join(by + line for line in text.rstrip().splitlines())


def report(screen, program, done, total):
    parts = [f"{program.count('pass')} passed"]
    parts += [f"{program.count(s)} {word}" for s, word in (("fail", "FAILED"), ("skip", "skipped")) if program.count(s)]
    head = f"[{done:3}/{total}] {program.kind:6} {program.name} "
    screen.line(f"{head:.<58} {', '.join(parts)} in {program.seconds:.2f} s")
    failed = [case for case in program.cases if case.status == "fail"]
    for case in failed:
        screen.line(f"    FAILED {program.name}: {case.name}\n{indent(case.detail)}")
    if failed and program.output.strip():
        screen.line(f"    output of {program.name} (its end):\n{indent(program.output)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", action="append", default=[], metavar="[PREFIX=]LIST")
    parser.add_argument("--scripts", action="append", default=[], metavar="LIST")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--filter", default="", help="only programs with this in their name; else only such test cases")
    parser.add_argument("--slow-factor", type=float, default=4.0, help="time limit factor of prefixed (sanitizer) programs")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--logs", required=True)
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1, 2**31)
    options.case = ""

    programs = []
    for item in options.programs:
        prefix, _, path = item.rpartition("=")
        listed = read_list(path, prefix + "/" if prefix else "", "doctest")
        if prefix:
            for program in listed:
                program.timeout *= options.slow_factor
        programs += listed
    for path in options.scripts:
        programs += read_list(path, "", "lines")
    programs = [program for program in programs if program.kind in options.kinds.split(",")]
    if options.filter:
        named = [program for program in programs if options.filter in program.name]
        if not named:
            named = [program for program in programs if program.protocol == "doctest"]
            options.case = options.filter
        programs = named
    programs.sort(key=lambda program: KINDS.index(program.kind))  # Stable: the lists' order within a kind.

    screen = Screen()
    screen.line(f"seed {options.seed} (GCS_TEST_SEED={options.seed} repeats it)")
    runner = Runner(options, screen)
    begin = time.monotonic()
    done = 0
    for kind in KINDS:
        of_kind = [program for program in programs if program.kind == kind]
        with concurrent.futures.ThreadPoolExecutor(PARALLEL_KINDS.get(kind, 1)) as pool:
            for future in concurrent.futures.as_completed([pool.submit(runner.run, program) for program in of_kind]):
                done += 1
                report(screen, future.result(), done, len(programs))

    cases = [(case, program) for program in programs for case in program.cases]
    slowest = sorted(cases, key=lambda item: -item[0].seconds)[:20]
    screen.line(f"\nSlowest tests (all: {time.monotonic() - begin:.0f} s):")
    for case, program in slowest:
        screen.line(f"  {case.seconds:8.2f} s  {program.name}: {case.name}")
    for status, title in (("skip", "Skipped, and what is missing:"), ("fail", "Failed:")):
        selected = [(case, program) for case, program in cases if case.status == status]
        if selected:
            screen.line(f"\n{title}")
        for case, program in selected:
            first = case.detail.strip().splitlines()[:1]
            screen.line(f"  {program.name}: {case.name}{': ' + first[0] if first else ''}")
    counts = {status: sum(case.status == status for case, _ in cases) for status in ("pass", "fail", "skip")}
    screen.line(f"\n{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    if not counts["pass"] and not counts["fail"]:
        print("no test was run", file=sys.stderr)
        return 1
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
