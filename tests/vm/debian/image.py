# SPDX-License-Identifier: Apache-2.0
"""Disks of ext4, made without a mount: a small Debian of files of the machine's own packages, kept in the cache by what is in it."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("GCS_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lcow-gcs")
KEPT_DAYS = 30

PROGRAMS = ["/usr/bin/busybox", "/usr/bin/conmon", "/usr/bin/podman", "/usr/bin/python3.11", "/usr/sbin/runc"]
FOLDERS = ["/usr/lib/python3.11", "/etc/containers", "/usr/share/containers"]
# Large, and nothing here imports them.
LEFT_OUT = {"test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "distutils", "dist-packages", "config-3.11-x86_64-linux-gnu"}
LINKS = {"/bin": "usr/bin", "/sbin": "usr/sbin", "/lib": "usr/lib", "/lib64": "usr/lib64", "/usr/bin/python3": "python3.11"}
EMPTY = ["/dev", "/proc", "/sys", "/run", "/tmp", "/root", "/work", "/var/lib", "/var/tmp"]
TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    # podman's --userns=auto takes its ranges from here.
    "/etc/subuid": "containers:200000:655360\n",
    "/etc/subgid": "containers:200000:655360\n",
    "/etc/hosts": "127.0.0.1 localhost\n",
}


def libraries(programs):
    """What the dynamic linker would load for them, by the paths that it looks at."""
    found = set()
    for program in programs:
        done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            words = line.split()
            if "not found" in line:
                raise FileNotFoundError(f"{program}: {line.strip()}")
            path = words[2] if len(words) > 2 and words[1] == "=>" else words[0]
            if path.startswith("/"):
                # /lib may be a link to /usr/lib, and the name of a library one to its version.
                found.add(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)))
    return found


def contents(programs):
    """{path in the image: path here} for the Debian that also has what these programs load."""
    files = {path: path for path in PROGRAMS}
    for top in FOLDERS:
        for folder, below, names in os.walk(top):
            below[:] = sorted(set(below) - LEFT_OUT)
            files |= {os.path.join(folder, name): os.path.join(folder, name) for name in names}
    loaded = libraries([*PROGRAMS, *programs, *(path for path in files if path.endswith(".so"))])
    files |= {path: path for path in loaded}
    # The loader's own place in programs.
    files["/usr/lib64/ld-linux-x86-64.so.2"] = os.path.realpath("/lib64/ld-linux-x86-64.so.2")
    files["/init"] = os.path.join(HERE, "init")
    return {path: source for path, source in files.items() if os.path.isfile(source)}


def write_disk(path, tree, megabytes):
    mke2fs = shutil.which("mke2fs") or "/sbin/mke2fs"
    subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", tree, path, f"{megabytes}M"], check=True,
                   stdout=subprocess.DEVNULL)


def place(tree, path, source):
    target = tree + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copy2(source, target)  # What a link leads to.


def tree_megabytes(tree):
    return sum(os.lstat(os.path.join(folder, name)).st_size + 4096 for folder, _, names in os.walk(tree) for name in names) >> 20


def make_work(path, files, scratch):
    """A disk of files by their places, beside the Debian."""
    tree = os.path.join(scratch, "work-tree")
    for name, source in files.items():
        place(tree, "/" + name, source)
    write_disk(path, tree, tree_megabytes(tree) + 16)


def debian(programs):
    """The path of a disk with PROGRAMS, what the given ones load, and ./init."""
    files = contents(programs)
    key = hashlib.sha256()
    for path, source in sorted([*files.items(), ("this file", os.path.abspath(__file__))]):
        with open(source, "rb") as file:
            key.update(f"{path} {os.stat(source).st_mode & 0o7777:o} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    folder = os.path.join(CACHE, "debian")
    result = os.path.join(folder, key.hexdigest()[:20] + ".ext4")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(result):
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
                tree = os.path.join(scratch, "tree")
                for path, source in files.items():
                    place(tree, path, source)
                for path in EMPTY:
                    os.makedirs(tree + path, exist_ok=True)
                for path, text in TEXTS.items():
                    with open(tree + path, "w", encoding="ascii") as file:
                        file.write(text)
                for path, target in LINKS.items():
                    os.symlink(target, tree + path)
                applets = subprocess.run(["/usr/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
                for applet in applets:
                    if not os.path.lexists(f"{tree}/usr/bin/{applet}") and not os.path.lexists(f"{tree}/usr/sbin/{applet}"):
                        os.symlink("busybox", f"{tree}/usr/bin/{applet}")
                disk = os.path.join(scratch, "disk")
                write_disk(disk, tree, tree_megabytes(tree) + 48)
                os.rename(disk, result)
        os.utime(result)
        subprocess.run(["find", folder, "-mindepth", "1", "-maxdepth", "1", "-name", "*.ext4", "-mtime", f"+{KEPT_DAYS}", "-delete"], check=True)
    return result
