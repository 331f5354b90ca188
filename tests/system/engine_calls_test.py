#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How many system calls the engine makes for a container, all its threads and processes together: the difference of two runs
of the engine's benchmark under strace, divided. Half of what a container costs is entering the kernel."""

import os
import subprocess
import sys
import tempfile

BENCH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../build/release/tests/bench/bench_engine")
FEW, MANY = 10, 50
LIMITS = {"v2": 180, "v1": 260}


def count(view, containers):
    with tempfile.NamedTemporaryFile() as output:
        subprocess.run(["strace", "-f", "-c", "-o", output.name, BENCH, "--cgroups", view, "--only", "engine", "--count", str(containers)], check=True, timeout=100)
        total = [line.split() for line in open(output.name) if line.rstrip().endswith(" total")]
    return int(total[0][3])


def main():
    failed = False
    for view, limit in LIMITS.items():
        name = f"a container with cgroup {view} takes at most {limit} system calls"
        calls = (count(view, MANY) - count(view, FEW)) / (MANY - FEW)
        # What less than a bare container would be is a count that went wrong.
        ok = 100 < calls <= limit
        failed |= not ok
        print(f"PASS {name}: {calls:.1f}" if ok else f"FAIL {name}: {calls:.1f}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
