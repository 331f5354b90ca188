#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of initrd/: the file list, the archive writer, the OCI images, and that linuxkit.yml gives the same image."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "initrd"))
import cpio  # noqa: E402
import filelist  # noqa: E402
import linuxkit  # noqa: E402

EPOCH = "1767225600"
MODULES = {"kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko": ["kernel/net/b.ko", "kernel/net/a.ko"],
           "kernel/net/b.ko": ["kernel/net/a.ko"], "kernel/net/a.ko": [], "kernel/other.ko": []}
CASES = []


def case(name):
    def register(function):
        CASES.append((name, function))
        return function
    return register


def write(path, data, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)


def workshop(directory):
    """A kernel's result and a source for each file row of the real list, with fixed content; returns mkinitrd's arguments."""
    kernel = os.path.join(directory, "kernel")
    write(os.path.join(kernel, "kernel"), b"bzImage" * 1000)
    modules = os.path.join(kernel, "modules", "6.12.0-test")
    write(os.path.join(modules, "modules.dep"),
          "".join(f"{m}: {' '.join(d)}\n" for m, d in MODULES.items()).encode())
    for module in MODULES:
        write(os.path.join(modules, module), f"module {module}".encode())
    arguments = ["--kernel", kernel]
    with open(os.path.join(ROOT, "initrd/files.list"), encoding="utf-8") as file:
        rows = filelist.parse(file.read())
    for row in rows:
        if row.kind != "file":
            continue
        if row.argument.startswith("repo:"):
            path = os.path.join(ROOT, row.argument[5:])
        else:
            path = os.path.join(directory, row.argument.replace(":", "-"))
            write(path, f"content of {row.argument}".encode() * 37)
        if f"{row.argument}={path}" not in arguments:
            arguments += ["--source", f"{row.argument}={path}"]
    return arguments, kernel


def run(tool, arguments, **options):
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONDONTWRITEBYTECODE": "1", **options.pop("extra", {})}
    return subprocess.run([os.path.join(ROOT, "initrd", tool), *arguments], env=environment, check=True,
                          stdout=subprocess.PIPE, **options).stdout


def packed(directory, **options):
    arguments, _ = workshop(directory)
    return run("mkinitrd", ["--list", options.pop("list", os.path.join(ROOT, "initrd/files.list")), *arguments], **options)


@case("two packings with other directories, times, modes, umask, locale and order of the list give the same bytes")
def same_bytes(temporary):
    first = packed(os.path.join(temporary, "a"))
    old = os.umask(0o077)
    try:
        directory = os.path.join(temporary, "somewhere", "else")
        workshop(directory)
        for path, _, names in os.walk(directory):
            for name in names:
                os.utime(os.path.join(path, name), (1, time.time() + 1e6))
                os.chmod(os.path.join(path, name), 0o700)
        with open(os.path.join(ROOT, "initrd/files.list"), encoding="utf-8") as file:
            lines = file.read().splitlines()
        random.shuffle(lines)
        shuffled = os.path.join(temporary, "list")
        write(shuffled, "\n".join(lines).encode())
        second = packed(directory, list=shuffled, cwd="/", extra={"LC_ALL": "C", "TZ": "Asia/Tokyo", "HOME": "/nonexistent"})
    finally:
        os.umask(old)
    assert first == second
    assert first != packed(os.path.join(temporary, "c"), extra={"SOURCE_DATE_EPOCH": "1"}), "the epoch must show"


@case("the archive is what the list says, and cpio agrees")
def archive(temporary):
    data = packed(temporary)
    entries, times = cpio.read(data)
    assert times == {int(EPOCH)}, times
    by_path = {entry.path: entry for entry in entries}
    init = by_path["init"]
    assert stat.S_ISREG(init.mode) and stat.S_IMODE(init.mode) == 0o755 and init.data.startswith(b"content of program:init")
    assert by_path["tmp"].mode == stat.S_IFDIR | 0o1777
    assert by_path["etc/resolv.conf"].data == b"/run/resolvconf/resolv.conf"
    for entry in entries:
        parent = os.path.dirname(entry.path)
        assert not parent or list(by_path).index(parent) < list(by_path).index(entry.path), entry.path
        assert (entry.uid, entry.gid) == (0, 0)
    names = subprocess.run(["cpio", "-t", "--quiet"], input=data, check=True, stdout=subprocess.PIPE).stdout.decode().split()
    assert names == [entry.path for entry in entries]


@case("device nodes keep their numbers")
def nodes(_):
    rows = filelist.parse("dir /dev 0755 0 0\nchar /dev/null 0666 1 2 1:3\nblock /dev/sda 0600 0 6 8:300\n")
    entries, _ = cpio.read(cpio.write(filelist.resolve(rows, {}, ""), 7))
    assert entries[1] == filelist.Entry("dev/null", stat.S_IFCHR | 0o666, 1, 2, b"", 1, 3), entries[1]
    assert entries[2].major == 8 and entries[2].minor == 300 and entries[2].gid == 6


@case("modules come with what they need, and modules.load is in the order of dependency")
def modules(temporary):
    entries, _ = cpio.read(packed(temporary))
    by_path = {entry.path: entry for entry in entries}
    base = "lib/modules/6.12.0-test"
    assert by_path[f"{base}/modules.load"].data.decode().split() == [
        "kernel/net/a.ko", "kernel/net/b.ko", "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko"]
    assert by_path[f"{base}/kernel/net/a.ko"].data == b"module kernel/net/a.ko"
    assert f"{base}/kernel/other.ko" not in by_path


@case("a list that is wrong is refused with file and line")
def refused(temporary):
    _, kernel = workshop(temporary)
    directory = "dir /d 0755 0 0\n"
    bad = ["fifo /x 0644 0 0 y", "dir x 0755 0 0", "dir / 0755 0 0", "dir /d/ 0755 0 0", "dir /d/../e 0755 0 0", "dir //d 0755 0 0",
           "dir /x 755 0 0", "dir /x 0999 0 0", "dir /x 0755 root 0", "dir /x 0755 0 -1", "dir /x 0755 0 0 extra",
           "file /x 0644 0 0", "file /x 0644 0 0 program:none", "char /x 0644 0 0 1", "char /x 0644 0 0 a:b", "dir /d 0755 0 0",
           "link /no/parent 0777 0 0 x", "link /d/l 0777 0 0 x\nlink /d/l/y 0777 0 0 x", "module /d 0644 0 0 nosuch"]
    for line in bad:
        try:
            filelist.resolve(filelist.parse(directory + line, "L"), {}, kernel)
        except filelist.ListError as error:
            assert "L:2" in str(error) or "not in the list" in str(error), f"{line}: {error}"
        else:
            raise AssertionError(f"taken: {line}")


def make_oci(temporary, name="oci"):
    arguments, kernel = workshop(os.path.join(temporary, "work"))
    output = os.path.join(temporary, name)
    shutil.rmtree(output, ignore_errors=True)
    with open(os.path.join(ROOT, "linuxkit.yml"), encoding="utf-8") as file:
        yml = linuxkit.parse(file.read())
    names = [linuxkit.full_name(yml["kernel"]["image"]), linuxkit.full_name(yml["init"][0])]
    run("mkoci", ["--list", os.path.join(ROOT, "initrd/files.list"), *arguments, "--kernel-name", names[0], "--init-name",
                  names[1], output])
    return output, yml, names


def blob(layout, descriptor):
    with open(os.path.join(layout, "blobs/sha256", descriptor["digest"].split(":")[1]), "rb") as file:
        data = file.read()
    assert len(data) == descriptor["size"]
    assert hashlib.sha256(data).hexdigest() == descriptor["digest"].split(":")[1]
    return data


def layer(layout):
    """Entries of an OCI image of one layer, by path, every digest checked on the way."""
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
        (manifest_descriptor,) = json.load(file)["manifests"]
    manifest = json.loads(blob(layout, manifest_descriptor))
    config = json.loads(blob(layout, manifest["config"]))
    (layer_descriptor,) = manifest["layers"]
    data = gzip.decompress(blob(layout, layer_descriptor))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(data).hexdigest()}"]
    return manifest_descriptor, untar(data)


def untar(data):
    kinds = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.REGTYPE: stat.S_IFREG, tarfile.SYMTYPE: stat.S_IFLNK}
    entries = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            content = archive.extractfile(member).read() if member.isreg() else member.linkname.encode()
            assert member.mtime == int(EPOCH)
            entries[member.name] = filelist.Entry(member.name, kinds[member.type] | member.mode, member.uid, member.gid, content)
    return entries


@case("the OCI images carry what LinuxKit's import needs, and are reproducible")
def oci(temporary):
    output, _, names = make_oci(temporary)
    for name, full in zip(("kernel", "init"), names):
        layout = os.path.join(output, name)
        descriptor, _ = layer(layout)
        assert descriptor["annotations"]["io.containerd.image.name"] == full and full.startswith("docker.io/lcow-gcs/")
        assert descriptor["platform"] == {"architecture": "amd64", "os": "linux"}
        with tarfile.open(f"{layout}.tar") as archive:
            for member in archive:
                path = os.path.join(layout, member.name)
                assert os.path.isdir(path) if member.isdir() else open(path, "rb").read() == archive.extractfile(member).read()
    before = {name: open(os.path.join(output, f"{name}.tar"), "rb").read() for name in ("kernel", "init")}
    time.sleep(1.1)  # gzip has seconds in its header
    output, _, _ = make_oci(temporary, "again")
    for name, data in before.items():
        assert data == open(os.path.join(output, f"{name}.tar"), "rb").read(), name


def linuxkit_build(output, yml):
    """What `linuxkit build --format kernel+initrd` makes of it (src/cmd/linuxkit/moby: build.go, image.go)."""
    _, kernel = layer(os.path.join(output, "kernel"))
    _, image = layer(os.path.join(output, "init"))
    for path in ("dev/console", ".dockerenv", "Dockerfile", "etc/hostname"):
        image.pop(path, None)
    for path in ("dev", "dev/pts", "dev/shm", "proc", "sys", "etc"):
        image[path] = filelist.Entry(path, stat.S_IFDIR | 0o755, 0, 0)
    for path, target in (("etc/mtab", b"/proc/mounts"), ("etc/resolv.conf", b"/run/resolvconf/resolv.conf")):
        image[path] = filelist.Entry(path, stat.S_IFLNK | 0o777, 0, 0, target)
    image["etc/hosts"] = filelist.Entry("etc/hosts", stat.S_IFREG | 0o644, 0, 0, b"LinuxKit's own")
    for path, entry in untar(kernel[yml["kernel"]["tar"]].data).items():
        image[path] = entry
    for file in yml["files"]:
        with open(os.path.join(ROOT, file["source"]), "rb") as source:
            image[file["path"]] = filelist.Entry(file["path"], stat.S_IFREG | int(file["mode"], 8), 0, 0, source.read())
    return kernel[yml["kernel"]["binary"]].data, image


@case("linuxkit.yml and its packages give the content of the initrd, the same kernel and the same command line")
def no_drift(temporary):
    output, yml, _ = make_oci(temporary)
    kernel, image = linuxkit_build(output, yml)
    with open(os.path.join(temporary, "work/kernel/kernel"), "rb") as file:
        assert kernel == file.read()
    entries, _ = cpio.read(packed(os.path.join(temporary, "direct")))
    direct = {entry.path: entry for entry in entries}
    assert sorted(image) == sorted(direct), set(image) ^ set(direct)
    for path, entry in direct.items():
        assert image[path] == entry, f"{path}: {image[path]} is not {entry}"
    with open(os.path.join(ROOT, "initrd/cmdline"), encoding="utf-8") as file:
        assert yml["kernel"]["cmdline"] == file.read().strip()


@case("packages are named by the project's version")
def version(_):
    with open(os.path.join(ROOT, "CMakeLists.txt"), encoding="utf-8") as file:
        project = file.read().split("project(lcow_gcs VERSION ", 1)[1].split(" ", 1)[0]
    with open(os.path.join(ROOT, "linuxkit.yml"), encoding="utf-8") as file:
        yml = linuxkit.parse(file.read())
    for name in (yml["kernel"]["image"], *yml["init"]):
        assert name.endswith(f":{project}"), name


@case("forms of linuxkit.yml that LinuxKit might read otherwise are refused")
def strict(_):
    good = 'kernel:\n  image: a/k:1\n  cmdline: "x=1 y"\n  binary: kernel\n  tar: kernel.tar\ninit:\n  - a/i:1\nfiles:\n  - path: etc/x\n' \
           '    source: dir/x\n    mode: "0644"\n'
    parsed = linuxkit.parse(good)
    assert parsed["kernel"]["cmdline"] == "x=1 y" and parsed["init"] == ["a/i:1"] and parsed["files"][0]["mode"] == "0644"
    for old, new in (('"0644"', "0644"), ("    mode: \"0644\"\n", ""), ("init:", "Init:"), ("  tar: kernel.tar\n", ""),
                     ("init:\n  - a/i:1\n", ""), ("  - a/i:1", "  - {a: b}"), ("files:", "trust:"), ("  image:", "   image:"),
                     ("binary: kernel", "binary: kernel\n  binary: other"), ("source: dir/x", "source: |"), ('"x=1 y"', "x=1 y"),
                     ("init:", "init: []"), ("path: etc/x", "path: &a etc/x"), ("init:\n", "init:\n  - x/y:1\ninit:\n")):
        assert old in good
        try:
            linuxkit.parse(good.replace(old, new))
        except linuxkit.YamlError:
            continue
        raise AssertionError(f"taken: {new}")
    for name, full in (("a/b:1", "docker.io/a/b:1"), ("b:1", "docker.io/library/b:1"), ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
                       ("localhost/b:1", "localhost/b:1")):
        assert linuxkit.full_name(name) == full


def main():
    failed = False
    for name, function in CASES:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="initrd_test.") as temporary:
            try:
                function(temporary)
                print(f"PASS {name} ({time.monotonic() - begin:.1f} s)", flush=True)
            except Exception as error:  # pylint: disable=broad-except
                failed = True
                traceback.print_exc()
                print(f"FAIL {name}: {type(error).__name__} {error}"[:500].replace("\n", " "), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
