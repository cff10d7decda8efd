"""The tests of other engines, in a process of their own: what starts processes after them has been seen to crash."""

import os
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).parent / "engine_cases.py"


def test_all_cases_hold_in_a_process_of_their_own():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, env=os.environ, check=False)
    assert result.returncode == 0, result.stdout[-5000:]
    n_passed = int(result.stdout.rpartition(" passed")[0].split()[-1])
    assert n_passed >= 24
