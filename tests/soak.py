"""Segment, kill, resume, refresh and retry in a loop, and look for what is left behind.

    python -m tests.soak --minutes 20

Each round starts the job as a user does, kills the driver at random moments (-9 and SIGTERM in
turn), lets it finish, replaces, adds and removes images, refreshes, retries, and verifies. After
each round no process, temporary file or lease may be left; at the end the last rounds' drivers may
not need more memory than the first ones'. Prints a line a round, then one JSON object; exit code 1
if anything was left or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from pipeline.run.lease import read_holder
from pipeline.storage.storage import Storage
from tests.counting_model import encoded
from tests.killing import JOB_SECONDS, ROOT, Field, end, make_field

MARK = "PANOPTIC_SOAK"
GRACE_SECONDS = 30.0
IMAGES, PER_SHARD = 120, 4
GROWTH = 1.25  # of a driver's peak memory, from the first rounds to the last


def left_processes(mark: str) -> list[str]:
    """Command lines of processes that descend from a job of this soak."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            marked = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if marked and state != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def gone(mark: str) -> list[str]:
    """What is still running after a while of grace."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := left_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def left_files(field: Field, scratch: Path) -> list[str]:
    """Temporary files in the run folder, scratch folders beside it, and a lease nobody holds."""
    names = [str(path) for path in field.out.rglob(".tmp-*")]
    names += [str(path) for path in scratch.glob("panoptic-*")]
    held = read_holder(Storage(field.out))
    return names + ([f"a lease held by {held['pid']}"] if held else [])


def measured(job: subprocess.Popen[str]) -> float:
    """Wait for a job; returns its driver's peak memory in MB. Raises if it fails."""
    peak = 0.0
    deadline = time.monotonic() + JOB_SECONDS
    while job.poll() is None and time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{job.pid}/status").read_text()
            lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
            peak = max([peak, *(int(line.split()[1]) / 1000 for line in lines)])
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.2)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 0, said
    return peak


def kill_some(field: Field, draw: random.Random, kills: int, *more: str) -> None:
    for kill in range(kills):
        job = field.start(*more)
        wanted = len(field.computed()) + draw.randint(1, IMAGES // 4)
        field.wait_for(job, computed=wanted, seconds=draw.uniform(2, 60))
        code = end(job, signal.SIGKILL if kill % 2 == 0 else signal.SIGTERM)
        assert code in (0, 75, -signal.SIGKILL), code


def change(field: Field, draw: random.Random, number: int) -> None:
    """Replace four images, remove two, add two."""
    there = sorted(field.source.iterdir())
    for path in draw.sample(there, 6)[:2]:
        path.unlink()
    for path in draw.sample(sorted(field.source.iterdir()), 4):
        image, seed = int(path.name[:6]), (int(path.name[7:10]) + 1) % 256
        path.unlink()
        (field.source / f"{image:06d}-{seed:03d}.png").write_bytes(encoded(image, seed))
    for extra in range(2):
        image = 100_000 + 2 * number + extra
        (field.source / f"{image:06d}-000.png").write_bytes(encoded(image))


def panoptic(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    mark = os.environ[MARK] = uuid.uuid4().hex
    problems: list[str] = []
    peaks: list[float] = []
    started, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        scratch = Path(folder, "tmp")
        scratch.mkdir()
        os.environ["TMPDIR"] = str(scratch)
        os.environ["RAY_TMPDIR"] = str(scratch)
        field = make_field(Path(folder, "field"), images=IMAGES, per_shard=PER_SHARD, seconds=0.02)
        while time.monotonic() - started < 60 * arguments.minutes:
            more = ("--refresh", "--max-removed-rate", "1") if number else ()
            kill_some(field, draw, 2, *more)
            peaks.append(measured(field.start(*more)))
            retried = panoptic("retry", str(field.out), "--all", "--json")
            checked = panoptic("verify", str(field.out), "--json")
            facts = json.loads(checked.stdout or "{}")
            found = [f"process: {words}" for words in gone(mark)]
            found += [f"file: {name}" for name in left_files(field, scratch)]
            found += [] if retried.returncode == 0 else [f"retry: {retried.stderr[-300:]}"]
            found += [] if facts.get("holds") else [f"verify: {checked.stdout}{checked.stderr}"]
            names = {path.name for path in field.source.iterdir()}
            found += [] if facts.get("images") == len(names) else [f"images: {facts}"]
            problems += [f"round {number}: {problem}" for problem in found]
            print(
                f"round {number}: {facts.get('images')} images in {facts.get('shards')} shards, "
                f"driver {peaks[-1]:.0f} MB, {len(found)} problems, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            change(field, draw, number)
            number += 1
    third = max(1, len(peaks) // 3)
    growth = statistics.median(peaks[-third:]) / statistics.median(peaks[:third])
    if growth > GROWTH:
        problems.append(f"drivers need {growth:.2f} times the memory of the first ones")
    for problem in problems:
        print(problem)
    report = {
        "rounds": number,
        "kills": 2 * number,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "driver_peak_mb": [round(peak) for peak in peaks],
        "growth": round(growth, 3),
        "problems": len(problems),
        "holds": not problems,
    }
    print(json.dumps(report))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
