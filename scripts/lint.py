#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The checks of scripts/lint. Each finding is a line `file:line: message`; each section counts as one test."""

import argparse
import concurrent.futures
import datetime
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "release"
CLANG_FORMAT = "clang-format-19"
CLANG_TIDY = "clang-tidy-19"
MAX_LINES = 600
TIDY_MOST = 80  # Units that one run has the time for; of more, today's share only of those that merely include a change.
TIDY_SHARES = 7  # Files that did not change are looked at again one day in so many.
CI_COMMITS = 10  # What counts as changed on the main branch: the files of the last so many commits.

# Calls that take a path and follow it. Where an image or a container controls the path they lead out of its root, so all
# of agent/ leaves them to the places below.
PATH_CALLS = """mount umount umount2 pivot_root chroot open open64 openat creat fopen freopen opendir mkdir mkdirat rmdir mknod
mknodat mkfifo symlink symlinkat link linkat rename renameat renameat2 unlink unlinkat remove chown lchown fchownat chmod
fchmodat truncate utimensat setxattr lsetxattr removexattr""".split()
PATH_STREAMS = re.compile(r"\bstd::(?:filesystem\b|(?:basic_)?[io]?fstream\b)")
PATH_CALLS_ALLOWED = [
    ("agent/base/paths.cc", "the place made for it: look-ups below a root by openat2, and the agent's own paths"),
    ("agent/init/*", "runs before any container exists, on its own constant paths"),
    ("agent/tools/*", "programs of their own that handle the paths their caller names, as their namesakes do"),
    ("agent/engine/*_mount.cc", "a container's root and mounts, on verified descriptors"),
    ("agent/engine/cli/*", "a program of its own that handles the paths its caller names, as runc does"),
    ("agent/engine/child_copy.cc", "single names below descriptors, links never followed"),
    ("agent/engine/child.cc", "after pivot_root, where no path leads out of the container"),
    ("agent/engine/cgroup*.cc", "cgroupfs, which has no links, by descriptors"),
    ("agent/engine/intel_rdt.cc", "resctrl, which has no links, by descriptors"),
    ("agent/guest/leftovers.cc", "cgroupfs, which has no links, by descriptors"),
    ("agent/storage/mount*.cc", "mount points below the agent's own /run, which no container can change"),
    ("agent/guest/unpack.cc", "makes what a tar stream holds: single names in directories that base/paths.h has opened"),
    ("agent/transport/listener.cc", "the agent's own socket, named on its command line"),
]
SINGLE_ARGUMENT = {"umount", "chroot", "opendir", "rmdir", "unlink", "remove"}
# What the programs of agent/ that are no layer may include beside their own folder; None: everything.
PROGRAM_LAYERS = {"init": ["base"], "tools": ["base", "transport", "storage"], "gcs": None}


class Tree:
    """The files of the repository: tracked ones and new ones that are not ignored."""

    def __init__(self):
        listing = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                                 capture_output=True)
        if listing.returncode == 0:
            names = sorted(set(listing.stdout.decode().split("\0")) - {""})
            self.git = True
        else:
            names = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*")
                           if path.is_file() and path.relative_to(ROOT).parts[0] not in ("build", "out", ".git"))
            self.git = False
        self.files = [name for name in names if (ROOT / name).is_file()]
        self._texts = {}

    def text(self, name):
        if name not in self._texts:
            self._texts[name] = (ROOT / name).read_text(encoding="utf-8", errors="replace")
        return self._texts[name]

    def matching(self, *patterns):
        return [name for name in self.files if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    def cpp(self):
        return self.matching("*.cc", "*.h", "*.cpp", "*.c")

    def with_shebang(self, *interpreters):
        found = []
        for name in self.files:
            with open(ROOT / name, "rb") as file:
                first = file.readline(100).decode(errors="replace")
            if first.startswith("#!") and any(re.search(rf"\b{each}\b", first) for each in interpreters):
                found.append(name)
        return found

    def shell(self):
        return sorted(set(self.with_shebang("bash", "sh", "dash") + self.matching("*.sh")))

    def python(self):
        return sorted(set(self.with_shebang("python3") + self.matching("*.py")))


def run_parallel(function, items, jobs=None):
    with concurrent.futures.ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        return [finding for findings in pool.map(function, items) for finding in findings]


def strip_code(text):
    """The text without comments and the contents of strings, its lines where they were."""
    pattern = re.compile(r'R"(\w*)\((?:.|\n)*?\)\1"|//[^\n]*|/\*(?:.|\n)*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'')
    digit_separator = re.compile(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])")
    return pattern.sub(lambda match: '""' + "\n" * match.group().count("\n"), digit_separator.sub("", text))


def check_format(tree, options):
    def one(name):
        if options.fix:
            subprocess.run([CLANG_FORMAT, "-i", name], cwd=ROOT, check=True)
        result = subprocess.run([CLANG_FORMAT, "--dry-run", "-Werror", name], cwd=ROOT, capture_output=True, text=True)
        lines = {int(m.group(1)) for m in re.finditer(r"^[^:\n]+:(\d+):\d+: error:", result.stderr, re.M)}
        if result.returncode != 0 and not lines:
            return [f"{name}:1: clang-format: {result.stderr.strip()[:200]}"]
        if not lines:
            return []
        return [f"{name}:{min(lines)}: {len(lines)} lines are not as clang-format has them (scripts/lint --fix format)"]

    return run_parallel(one, tree.cpp())


def check_shell(tree, _options):
    names = tree.shell()
    if not names:
        return []
    result = subprocess.run(["shellcheck", "-x", "-f", "gcc"] + names, cwd=ROOT, capture_output=True, text=True)
    findings = re.findall(r"^([^:\n]+:\d+):\d+: (.*)$", result.stdout, re.M)
    if result.returncode not in (0, 1):
        return [f"scripts/lint.py:1: shellcheck: {result.stderr.strip()[:300]}"]
    return [f"{where}: {message}" for where, message in findings]


def check_python(tree, _options):
    findings = []
    for name in tree.python():
        try:
            compile(tree.text(name), name, "exec")
        except SyntaxError as error:
            findings.append(f"{name}:{error.lineno}: {error.msg}")
    return findings


def layers():
    text = (ROOT / "CMakeLists.txt").read_text()
    return re.search(r"set\(GCS_LAYERS ([^)]*)\)", text).group(1).split()


def check_layers(tree, _options):
    order = layers()
    folders = set(order) | set(PROGRAM_LAYERS)
    findings = []
    for name in tree.matching("agent/*.cc", "agent/*.h"):
        own = name.split("/")[1]
        if own not in folders:
            findings.append(f"{name}:1: agent/{own} is neither in GCS_LAYERS nor a known program")
            continue
        allowed = PROGRAM_LAYERS[own] if own in PROGRAM_LAYERS else order[:order.index(own)]
        for number, line in enumerate(tree.text(name).splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if not match:
                continue
            path = match.group(1)
            used = "api" if path.startswith("gcs/v1/") else path.split("/")[0]
            if used in ("host", "support", "unit", "system", "vm"):
                findings.append(f"{name}:{number}: agent code includes a test's header, {path}")
            elif used in folders and used != own and allowed is not None and used not in allowed:
                findings.append(f"{name}:{number}: agent/{own} may not include {path}: dependencies point down "
                                f"({' '.join(allowed) or 'nothing'})")
    return findings


def is_path_call(line, match, raw):
    before = re.search(r"(\w+)[\s*&]+$", line[:match.start()])
    if before and before.group(1) not in ("return", "else", "do", "co_return"):
        return False  # A declaration of something of that name.
    closed = re.match(r"[^()]*\)", line[match.end():])
    if closed and "," not in closed.group() and match.group(1) not in SINGLE_ARGUMENT:
        return False  # Something else of that name: the system call takes more.
    # What the kernel's own file systems have under a fixed name is the agent's own.
    return not re.search(re.escape(match.group(1)) + r'\s*\((?:\w+,\s*)?"(?:/(?:proc|sys)/|/dev/null")', raw)


def check_calls(tree, _options):
    call = re.compile(r"(?<![\w.:>])(?:::)?(" + "|".join(PATH_CALLS) + r")\s*\(")
    findings = []
    for name in tree.matching("agent/*.cc", "agent/*.h"):
        if any(fnmatch.fnmatch(name, pattern) for pattern, _ in PATH_CALLS_ALLOWED):
            continue
        raw = tree.text(name).splitlines()
        for number, line in enumerate(strip_code(tree.text(name)).splitlines(), 1):
            for match in list(call.finditer(line)) + list(PATH_STREAMS.finditer(line)):
                if match.re is call and not is_path_call(line, match, raw[number - 1]):
                    continue
                what = match.group().strip("( ")
                findings.append(f"{name}:{number}: {what} takes a path: use base/paths.h or a descriptor "
                                "(scripts/lint.py lists the places that may)")
    return findings


def check_text(tree, _options):
    unfinished = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    private = re.compile(r"/tmp/pl" + r"an\b|/work/(?:main|sha" + r"red)\b|\bshar" + r"ed/(?:facts|start|hooks|design|style)")
    silent_skip = re.compile(r"doctest::(?:skip|may_" + r"fail)\s*\(")
    sources = set(tree.cpp() + tree.shell() + tree.python() +
                  tree.matching("*.proto", "*.cmake", "CMakeLists.txt", "*/CMakeLists.txt", "*.yml"))
    measured = set(tree.cpp() + tree.shell() + tree.python())
    findings = []
    for name in tree.files:
        if name == "LICENSE" or "/corpus/" in name:
            continue
        text = tree.text(name)
        if "\0" in text:
            continue
        lines = text.splitlines()
        if name in sources and not any("SPDX-License-Identifier: Apache-2.0" in line for line in lines[:3]):
            findings.append(f"{name}:1: no line SPDX-License-Identifier: Apache-2.0")
        if name in measured and len(lines) > MAX_LINES:
            findings.append(f"{name}:{MAX_LINES + 1}: {len(lines)} lines, more than {MAX_LINES}: this is two topics")
        for number, line in enumerate(lines, 1):
            if unfinished.search(line):
                findings.append(f"{name}:{number}: unfinished: {line.strip()[:100]}")
            if private.search(line):
                findings.append(f"{name}:{number}: names a file that is no part of the repository")
            if silent_skip.search(line):
                findings.append(f"{name}:{number}: a test is skipped by GCS_SKIP, which names the missing feature")
            if line != line.rstrip() and not name.endswith(".md"):
                findings.append(f"{name}:{number}: space at the end of the line")
        if text and not text.endswith("\n"):
            findings.append(f"{name}:{len(lines)}: no newline at the end of the file")
    return findings


def check_protos(tree, _options):
    """A field of the public contract without a comment of its own: what it means, its unit, its default."""
    block = re.compile(r"(message|enum|oneof|service)\s+(\w+)\s*\{")
    field = re.compile(r"(?:repeated |optional )?[\w.]+(?:<[^>]*>)? (\w+) = \d+\b")
    findings = []
    for name in tree.matching("agent/api/*.proto"):
        blocks = []
        before = ""
        for number, line in enumerate(tree.text(name).splitlines(), 1):
            line = line.strip()
            opens, declares = block.match(line), field.match(line)
            if opens and not line.endswith("}"):
                blocks.append(opens.groups())
            elif line == "}" and blocks:
                blocks.pop()
            elif declares and blocks and blocks[-1][0] in ("message", "oneof") and not before.startswith("//"):
                message = [title for kind, title in blocks if kind == "message"][-1]
                findings.append(f"{name}:{number}: {message}.{declares.group(1)} has no comment of its own")
            before = line
    return findings


def check_readmes(tree, _options):
    folders = {"initrd", "kernel-config", "scripts", "tests"}
    for name in tree.files:
        parts = name.split("/")
        if parts[0] in ("agent", "tests") and len(parts) > 2:
            folders.add("/".join(parts[:2]))
    findings = []
    for folder in sorted(folders):
        if any(name.startswith(folder + "/") for name in tree.files) and f"{folder}/README.md" not in tree.files:
            findings.append(f"{folder}/README.md:1: missing: what the folder is for, what it may depend on, its invariants")
    return findings


def git_lines(*arguments):
    result = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return result.stdout.split("\n")[:-1] if result.returncode == 0 else []


def changed_files(tree):
    """Names that differ from the branch's start, or on the main branch those of the last commits; and what is not committed."""
    if not tree.git:
        return set(tree.files)
    head = git_lines("rev-parse", "HEAD")
    base = git_lines("merge-base", "HEAD", "origin/main")
    if not base or base == head:
        # The last of at most so many commits; in a shallow clone with fewer the oldest one there is.
        commits = git_lines("rev-list", f"--max-count={CI_COMMITS + 1}", "HEAD")
        base = commits[-1:]
    names = set(git_lines("diff", "--name-only", base[0])) if base else set(tree.files)
    return names | set(git_lines("ls-files", "--others", "--exclude-standard"))


class TidyJob:
    """A translation unit, and the hash of everything of ours that decides what clang-tidy says of it."""

    include = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)

    def __init__(self, tree, name, entry, common):
        self.name = name
        self.headers = set()
        pending = [name]
        generated = False
        while pending:
            current = pending.pop()
            for path in self.include.findall(tree.text(current)):
                generated = generated or path.endswith(".pb.h")
                for base in ("agent", "tests", os.path.dirname(current)):
                    candidate = os.path.normpath(os.path.join(base, path))
                    if candidate in tree.file_set and candidate not in self.headers:
                        self.headers.add(candidate)
                        pending.append(candidate)
                        break
        digest = hashlib.sha256(common.encode())
        command = entry.get("command") or " ".join(entry["arguments"])
        digest.update(command.replace(str(ROOT), "").encode())
        protos = tree.matching("agent/api/*.proto") if generated else []
        for path in [name] + sorted(self.headers) + protos:
            digest.update(path.encode() + b"\0" + tree.text(path).encode() + b"\0")
        self.key = digest.hexdigest()


def tidy_jobs(tree, options):
    database = BUILD / "compile_commands.json"
    if not database.exists():
        raise SystemExit("lint: build/release/compile_commands.json is missing (scripts/lint makes it)")
    tree.file_set = set(tree.files)
    version = subprocess.run([CLANG_TIDY, "--version"], capture_output=True, text=True, check=True).stdout
    common = version + tree.text(".clang-tidy")
    entries = {}
    for entry in json.loads(database.read_text()):
        path = pathlib.Path(entry["directory"], entry["file"]).resolve()
        if path.is_relative_to(ROOT) and str(path.relative_to(ROOT)) in tree.file_set:
            entries.setdefault(str(path.relative_to(ROOT)), entry)
    jobs = [TidyJob(tree, name, entry, common) for name, entry in sorted(entries.items())]
    if options.all:
        return jobs, [], []
    return choose(jobs, changed_files(tree), datetime.date.today().timetuple().tm_yday % TIDY_SHARES)


def choose(jobs, changed, share):
    """The jobs that changed themselves, all of them; those that include a change; others. In this order they are run."""
    own = [job for job in jobs if job.name in changed]
    including = [job for job in jobs if job.name not in changed and job.headers & changed]
    others = [job for job in jobs if job.name not in changed and not job.headers & changed]

    def in_share(job):
        return int(hashlib.sha256(job.name.encode()).hexdigest(), 16) % TIDY_SHARES == share

    many = len(own) + len(including) > TIDY_MOST
    if many:
        including = [job for job in including if in_share(job)]
    if many or not {".clang-tidy", "scripts/lint.py"} & changed:
        others = [job for job in others if in_share(job)]
    return own, including, others


def check_tidy(tree, options):
    own, including, others = tidy_jobs(tree, options)
    jobs = own + including + others
    cache = pathlib.Path(os.environ["GCS_CACHE"], "tidy")
    cache.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs if not (cache / job.key).exists()]
    for job in jobs:
        if (cache / job.key).exists():
            os.utime(cache / job.key)
    print(f"  clang-tidy: {len(own)} units that changed, {len(including)} that include a change, {len(others)} others; "
          f"{len(todo)} of them not yet checked", flush=True)
    begin = time.monotonic()
    deadline = float("inf") if options.all else begin + options.tidy_seconds
    left = []
    pattern = re.compile(r"^(/[^:\n]+):(\d+):\d+: (?:warning|error): (.*)$", re.M)

    def one(job):
        if time.monotonic() > deadline:
            left.append(job.name)
            return []
        started = time.monotonic()
        # Templates of libstdc++ use what it deprecates; for our own code the compiler's -Werror has it.
        result = subprocess.run([CLANG_TIDY, "--quiet", "--extra-arg=-Wno-deprecated-declarations",
                                 "--extra-arg=-Wno-unknown-warning-option", "-p", str(BUILD), job.name],
                                cwd=ROOT, capture_output=True, text=True)
        findings = []
        for path, line, message in pattern.findall(result.stdout):
            where = pathlib.Path(path).resolve()
            name = where.relative_to(ROOT) if where.is_relative_to(ROOT) else where
            findings.append(f"{name}:{line}: {message}")
        if result.returncode != 0 and not findings:
            findings.append(f"{job.name}:1: clang-tidy failed: {(result.stderr or result.stdout).strip()[-300:]}")
        if not findings:
            (cache / job.key).touch()
        if options.verbose:
            print(f"  {job.name}: {time.monotonic() - started:.0f} s, {len(findings)} findings", flush=True)
        return findings

    findings = sorted(set(run_parallel(one, todo, 2)))
    if left:
        print(f"  clang-tidy: out of its {options.tidy_seconds} s; left for the next run: {' '.join(sorted(left))}")
    for entry in cache.iterdir():
        if entry.stat().st_mtime < time.time() - 30 * 86400:
            entry.unlink()
    return findings


SECTIONS = {
    "text": (check_text, "licence lines, file lengths, nothing unfinished"),
    "protos": (check_protos, "every field of the public contract has a comment of its own"),
    "readmes": (check_readmes, "a README.md in each folder"),
    "layers": (check_layers, "includes of agent/ point down GCS_LAYERS"),
    "calls": (check_calls, "path-taking calls of agent/ only where they belong"),
    "python": (check_python, "Python compiles"),
    "shell": (check_shell, "shellcheck"),
    "format": (check_format, "clang-format"),
    "tidy": (check_tidy, "clang-tidy"),
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/lint", description="Sections: " +
                                     "; ".join(f"{name}: {text}" for name, (_, text) in SECTIONS.items()))
    parser.add_argument("section", nargs="*", help="only these")
    parser.add_argument("--all", action="store_true", help="clang-tidy on all files, without a time limit")
    parser.add_argument("--fix", action="store_true", help="let clang-format change the files")
    parser.add_argument("--tidy-seconds", type=int, default=420, metavar="N", help="no new clang-tidy run after N s (420)")
    parser.add_argument("--verbose", action="store_true", help="the time of each clang-tidy run")
    options = parser.parse_args()
    unknown = set(options.section) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {' '.join(sorted(unknown))}; there are {' '.join(SECTIONS)}")

    tree = Tree()
    failed = 0
    selected = options.section or list(SECTIONS)
    for name in selected:
        begin = time.monotonic()
        findings = SECTIONS[name][0](tree, options)
        failed += bool(findings)
        for finding in findings:
            print(f"{finding} [{name}]")
        print(f"lint {name}: {f'{len(findings)} findings' if findings else 'ok'} in {time.monotonic() - begin:.1f} s", flush=True)
    print(f"{len(selected) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
