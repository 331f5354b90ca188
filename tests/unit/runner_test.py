#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""tests/run.py must not take a dead, hanging, silent or untidy test program for a good one."""

import os
import pathlib
import subprocess
import tempfile
import time

import check

RUN = pathlib.Path(__file__).resolve().parent.parent / "run.py"

# What a doctest program does, in shell: $xml is where the report goes.
DOCTEST = """#!/bin/bash
for argument in "$@"; do case $argument in --out=*) xml=${argument#--out=} ;; esac; done
report() { printf '<testsuites><testsuite>%s</testsuite></testsuites>' "$1" >"$xml"; }
passed='<testcase name="good one" time="0.5"/>'
"""


class Run:
    def __init__(self, body, protocol="doctest", timeout=20, arguments=()):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "program")
            program.write_text((DOCTEST if protocol == "doctest" else "#!/bin/bash\n") + body)
            program.chmod(0o755)
            tests = pathlib.Path(folder, "list")
            tests.write_text(f"unit sample {timeout} {program}\n")
            option = "--programs" if protocol == "doctest" else "--scripts"
            begin = time.monotonic()
            result = subprocess.run([str(RUN), option, str(tests), "--logs", os.path.join(folder, "logs"), *arguments],
                                    capture_output=True, text=True, timeout=60)
            self.seconds = time.monotonic() - begin
            self.output, self.code = result.stdout, result.returncode
            self.summary = self.output.rstrip().splitlines()[-1] if self.output.strip() else ""

    def expect(self, summary, code, *texts):
        assert self.summary == summary, f"{self.summary!r}, expected {summary!r}: {self.output[-600:]}"
        assert self.code == code, f"exit code {self.code}"
        for text in texts:
            assert text in self.output, f"{text!r} is not in {self.output[-600:]!r}"


def a_passing_program_counts_each_case():
    Run('report "$passed<testcase name=\'other\' time=\'0.1\'/>"').expect("2 passed, 0 failed, 0 skipped", 0, "good one")


def a_failed_case_is_shown_with_its_text_and_the_output():
    Run('echo something odd; report "$passed<testcase name=\'bad\'><failure message=\'1 == 2\'>at x.cc:7</failure></testcase>"; exit 1'
        ).expect("1 passed, 1 failed, 0 skipped", 1, "1 == 2", "at x.cc:7", "something odd")


def a_skipped_case_is_counted_and_its_reason_shown():
    Run('printf "good one\\tKVM\\n" >>"$GCS_TEST_SKIPS"; report "$passed<testcase name=\'other\'/>"').expect(
        "1 passed, 0 failed, 1 skipped", 0, "sample: good one: KVM")


def a_case_that_failed_cannot_be_skipped():
    Run('printf "bad\\tKVM\\n" >>"$GCS_TEST_SKIPS"; report "<testcase name=\'bad\'><failure message=\'no\'/></testcase>"; exit 1').expect(
        "0 passed, 1 failed, 0 skipped", 1)


def skips_alone_are_no_success():
    Run('printf "good one\\tKVM\\n" >>"$GCS_TEST_SKIPS"; report "$passed"').expect("0 passed, 0 failed, 1 skipped", 1)


def a_program_that_dies_fails_and_what_it_finished_counts():
    Run('printf "start\\t0\\tone\\npass\\t0.1\\tone\\nstart\\t0\\ttwo\\n" >"$GCS_TEST_PROGRESS"; kill -SEGV $$').expect(
        "1 passed, 1 failed, 0 skipped", 1, "SIGSEGV", 'in test case "two"')


def a_program_that_hangs_is_killed_with_all_it_started():
    run = Run('(trap "" TERM HUP; sleep 300) & setsid sleep 300 & '
              'printf "start\\t0\\tslow\\n" >"$GCS_TEST_PROGRESS"; sleep 300', timeout=1)
    run.expect("0 passed, 1 failed, 0 skipped", 1, "still running after 1 s", '"slow"')
    assert run.seconds < 15, f"took {run.seconds} s"


def a_bad_exit_code_without_a_failed_case_fails():
    Run('report "$passed"; exit 3').expect("1 passed, 1 failed, 0 skipped", 1, "exit code 3")


def a_program_without_cases_fails():
    Run('report ""').expect("0 passed, 1 failed, 0 skipped", 1, "no test case was run")


def a_program_without_a_report_fails():
    Run("exit 0").expect("0 passed, 1 failed, 0 skipped", 1)


def a_process_left_behind_fails_and_is_killed():
    Run('setsid sleep 299 </dev/null >/dev/null 2>&1 & sleep 0.3; report "$passed"').expect(
        "1 passed, 1 failed, 0 skipped", 1, "leaves no process behind", "sleep 299")


def a_script_counts_its_lines():
    Run('echo "PASS one (0.5 s)"; echo "FAIL two: why not"; echo "SKIP three: KVM"; echo noise; exit 1', "lines").expect(
        "1 passed, 1 failed, 1 skipped", 1, "why not", "three: KVM")


def a_script_that_says_nothing_fails():
    Run("exit 0", "lines").expect("0 passed, 1 failed, 0 skipped", 1)


def a_script_that_fails_without_saying_which_fails():
    Run('echo "PASS one"; exit 4', "lines").expect("1 passed, 1 failed, 0 skipped", 1, "exit code 4")


def a_program_that_is_missing_fails():
    Run("", "lines", arguments=["--scripts", _missing_list()]).expect("0 passed, 2 failed, 0 skipped", 1, "No such file")


def _missing_list():
    path = pathlib.Path(tempfile.gettempdir(), f"gcs-missing.{os.getpid()}")
    path.write_text("unit missing 5 /nonexistent/program\n")
    return str(path)


def the_seed_is_printed_and_given_to_the_program():
    Run('report "<testcase name=\'seed $GCS_TEST_SEED\'/>"', arguments=["--seed", "77"]).expect(
        "1 passed, 0 failed, 0 skipped", 0, "GCS_TEST_SEED=77", "seed 77")


def nothing_to_run_is_a_failure():
    Run('report "$passed"', arguments=["--kinds", "vm"]).expect("0 passed, 0 failed, 0 skipped", 1)


if __name__ == "__main__":
    try:
        check.run([case for name, case in list(globals().items()) if callable(case) and name[0].islower()
                   and getattr(case, "__module__", "") == "__main__"])
    finally:
        pathlib.Path(_missing_list()).unlink()
