#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a person types, as it is typed: scripts/demo, the images it runs, and the scripts that make things to pass on. Prints PASS
and FAIL lines (tests/README.md)."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(ROOT, "tests", "unit"))
import check  # noqa: E402

OCI_IMAGE = os.path.join(ROOT, "build/release/tests/host/image/oci-image")
TIME_LIMIT = 400  # The runner has a limit for all of them.
WARM_SECONDS = 30  # What scripts/demo promises once everything is built.

# What tests/host/image/README.md says of the image, as a container sees it.
MINBASE_LOOK = r"""
cat /opt/app/version /etc/app.conf /opt/app/cache/new
ls -A /opt/app/data /opt/app/cache
test /opt/app/data/kept -ef /opt/app/data/kept-too && echo one inode
stat -c %s /opt/app/data/eight-mebibytes
ls -A /usr/share/doc | wc -l
ls -d /usr/share/man /etc/motd 2>/dev/null
. /etc/os-release; echo $ID $VERSION_CODENAME; dpkg --version | head -n 1 | cut -d ' ' -f 1-2
"""
MINBASE_SEEN = """layer 3
lcow-gcs
new
/opt/app/cache:
new

/opt/app/data:
eight-mebibytes
kept
kept-too
one inode
8388608
0
debian bookworm
Debian 'dpkg'
"""

work = tempfile.TemporaryDirectory(prefix="demo-test.", dir="/tmp")


def run(script, *words, cwd=ROOT, **options):
    """Exit code, stdout, stderr of a program of the repository."""
    done = subprocess.run([os.path.join(ROOT, script), *words], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=TIME_LIMIT, check=False, **options)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def expect(got, code, out=None):
    assert got[0] == code, f"exit code {got[0]}, not {code}: {got[1][-300:]!r} {got[2][-2000:]!r}"
    assert out is None or got[1] == out, f"stdout {got[1]!r}, not {out!r}; stderr {got[2][-1000:]!r}"


def result(*command):
    """The last line of stdout, which names a script's result."""
    got = run(*command)
    expect(got, 0)
    return got[1].splitlines()[-1]


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def the_demo_gives_the_output_and_the_exit_code_of_the_container():
    expect(run("scripts/demo", "--", "sh", "-c", "echo x; echo y >&2; exit 7"), 7, "x\n")


def the_next_demo_builds_nothing_and_takes_less_than_30_seconds():
    begin = time.monotonic()
    got = run("scripts/demo")
    took = time.monotonic() - begin
    expect(got, 0)
    assert re.match(r"Hello from container \S+: Linux 6\.12\.\S+, \d+ entries in /, I am process 1 of:\n", got[1]), got[1]
    assert "building" not in got[2], got[2]
    assert took < WARM_SECONDS, f"{took:.1f} s: {got[2]}"


def what_fails_before_the_container_runs_is_125():
    expect(run("scripts/demo", "--help"), 0)
    for words in (["--image"], ["--no-such-option"], ["--image", os.path.join(work.name, "no-such-image"), "--", "true"]):
        expect(run("scripts/demo", *words), 125, "")


def a_debian_with_whiteouts_shows_what_its_readme_says():
    expect(run("tests/host/image/make-minbase", os.path.join(work.name, "minbase"), OCI_IMAGE), 0)
    # Named relative to where the caller is.
    got = run("scripts/demo", "--image", "oci:minbase", "--", "sh", "-c", MINBASE_LOOK, cwd=work.name)
    expect(got, 0, MINBASE_SEEN)


def the_images_for_linuxkit_hold_the_kernel_and_the_init_of_the_image():
    image = os.environ["GCS_IMAGE_DIR"]
    output = result("scripts/build-oci-images", "--kernel", os.environ["GCS_KERNEL_DIR"], "--output", os.path.join(work.name, "oci"))
    assert sorted(os.listdir(output)) == ["init", "init.tar", "kernel", "kernel.tar"], os.listdir(output)
    for name, member, same in (("kernel", "kernel", "kernel"), ("init", "bin/gcs", "programs/gcs")):
        for reference in (f"oci:{output}/{name}", f"oci-archive:{output}/{name}.tar"):
            expect(run(OCI_IMAGE, "inspect", reference), 0)
        blobs = os.path.join(output, name, "blobs/sha256")
        with open(os.path.join(output, name, "index.json"), encoding="utf-8") as file:
            manifest = json.load(file)["manifests"][0]["digest"].split(":")[1]
        with open(os.path.join(blobs, manifest), encoding="utf-8") as file:
            (layer,) = json.load(file)["layers"]
        with tarfile.open(os.path.join(blobs, layer["digest"].split(":")[1])) as tar:
            digest = hashlib.file_digest(tar.extractfile(member), "sha256").hexdigest()
        assert digest == sha256(os.path.join(image, same)), member


def the_relink_kit_links_the_programs_of_the_image_again():
    image = result("scripts/build-image", "--kernel", os.environ["GCS_KERNEL_DIR"], "--relink-kit")
    subprocess.run(["tar", "-C", work.name, "-xf", os.path.join(image, "relink-kit.tar.zst")], check=True, timeout=TIME_LIMIT)
    kit = os.path.join(work.name, "relink-kit")
    with open(os.path.join(kit, "SOURCES"), encoding="utf-8") as file:
        assert re.search(r"^glibc \S+ ", file.read(), re.M), "SOURCES does not name the C library"
    expect(run(os.path.join(kit, "relink"), cwd=kit), 0)
    linked = {name: os.path.join(folder, name) for folder, _, names in os.walk(kit) for name in names}
    for name in os.listdir(os.path.join(image, "programs")):
        stripped = os.path.join(work.name, name)
        subprocess.run(["strip", "--strip-all", "-R", ".comment", "-R", ".note.gnu.build-id", "-o", stripped, linked[name]],
                       check=True, timeout=TIME_LIMIT)
        assert sha256(stripped) == sha256(os.path.join(image, "programs", name)), f"{name} is another program"


def the_preset_debug_builds_programs_that_work():
    build = os.path.join(work.name, "debug")
    for command in (["cmake", "--preset", "debug", "-B", build], ["ninja", "-C", build, "base_test"],
                    [os.path.join(build, "tests/unit/base_test")]):
        # Without the runner's own variables: what base_test does is one case here.
        environment = {name: value for name, value in os.environ.items() if name not in ("GCS_TEST_PROGRESS", "GCS_TEST_SKIPS")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == 0, f"{command[0]}: {done.stdout[-1000:]} {done.stderr[-1000:]}"


if __name__ == "__main__":
    for variable in ("GCS_IMAGE_DIR", "GCS_KERNEL_DIR"):
        if variable not in os.environ:
            print(f"FAIL demo: {variable} is not set")
            sys.exit(1)
    # Its own by default, whatever other VM the caller has.
    os.environ["GCSCTL_STATE"] = os.path.join(work.name, "state")
    try:
        check.run([case for name, case in list(globals().items())
                   if callable(case) and name not in ("run", "expect", "result", "sha256")])
    finally:
        work.cleanup()
