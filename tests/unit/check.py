# SPDX-License-Identifier: Apache-2.0
"""Test cases in Python that print the lines that tests/run.py reads."""

import sys
import time
import traceback


def run(cases):
    """Runs functions by their names (underscores are spaces); exits with 1 if one raised."""
    failed = False
    for case in cases:
        name = case.__name__.replace("_", " ")
        begin = time.monotonic()
        try:
            case()
        except Exception as error:  # Whatever a case raises is its failure.
            failed = True
            traceback.print_exc()
            print(f"FAIL {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)
        else:
            print(f"PASS {name} ({time.monotonic() - begin:.2f} s)", flush=True)
    sys.exit(1 if failed else 0)
