"""What answers at once: the claims of benchmarks/startup.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow(seconds=150)
@pytest.mark.timeout(900)
def test_help_mistakes_and_what_only_reads_answer_within_a_few_imports_of_pyarrow() -> None:
    command = [sys.executable, "benchmarks/startup.py", "--rounds", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
