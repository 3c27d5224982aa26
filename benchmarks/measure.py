"""What the benchmarks share: a clock of CPU time, peak memory, and the machine of a figure."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def cpu_ms(function: Callable[[], Any], *, rounds: int = 7, seconds: float = 0.3) -> float:
    """CPU milliseconds of one call in this process: the best of several rounds."""
    function()
    started = time.process_time()
    function()
    calls = max(1, int(seconds / max(time.process_time() - started, 1e-6)))
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(calls):
            function()
        best = min(best, (time.process_time() - started) / calls)
    return 1000 * best


def peak_mb() -> float:
    """Peak resident memory of this process. Not `ru_maxrss`: a child inherits its parent's."""
    status = Path("/proc/self/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1000


def run_watched(command: list[str]) -> tuple[str, float, list[dict[str, float]]]:
    """Run `panoptic` with these words: its stdout, seconds, and samples of `resident`."""
    samples = []
    started = time.monotonic()
    program = [sys.executable, "-m", "jobs.cli", *command]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            samples.append(resident(child.pid))
            time.sleep(0.25)
        assert child.stdout is not None
        printed = child.stdout.read()
    if child.returncode:
        sys.exit(f"panoptic {command[0]} ended with {child.returncode}")
    return printed, time.monotonic() - started, samples


def resident(root: int) -> dict[str, float]:
    """Resident gigabytes of a process and everything under it, by name and process id (Linux)."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            name, _, rest = text.partition("(")[2].rpartition(") ")
            parents[int(entry.name)] = (int(rest.split()[1]), name)
    sizes = {}
    for process, (_, name) in parents.items():
        above = process
        while above != root and above in parents:
            above = parents[above][0]
        if above == root:
            try:
                pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            sizes[f"{name} {process}"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    return sizes


def print_result(benchmark: str, **facts: Any) -> None:
    """Print the last line of a benchmark: one JSON object with where and when it was measured."""
    print(json.dumps({"benchmark": benchmark, **machine(), **facts}))


def machine() -> dict[str, str]:
    """Processor, date and commit of a figure."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {"cpu": model, "date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit}
