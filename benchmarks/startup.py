"""How long a command takes to answer, as a multiple of `python -c 'import pyarrow'` in one run.

    python benchmarks/startup.py [--rounds 5]

The claims: `panoptic --help` at most 2 times that; at most 5 times every verb's help, a mistyped
option, a path that is not there, and the verbs that only read (status, errors, plan of a local
folder, sql, view, report). Each is the least of several rounds, which are taken in turns, so that a
busy machine slows them alike. Ends with 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import ROOT, print_result

BASE = "import pyarrow"
HELP, OTHERS = 2.0, 5.0  # times the base, at most
VERBS = (
    *("doctor", "plan", "segment", "status", "retry", "evaluate", "compare", "report", "view"),
    *("inspect", "sql", "export", "submit", "jobs", "nightly", "train"),
)
READS = (
    "status {run}",
    "errors {run}",
    "plan {photos} --out {folder}/new",
    "sql {run} 'select count(*) from images'",
    "view {run} --random 2 --folder {folder}/views",
    "report {run} --output {folder}/report.html",
)
MISTAKES = (
    "segment {folder}/nowhere --out {folder}/new",
    "segment {photos} --out {folder}/new --threshold 2",
    "segment {photos} --out {folder}/new --odd",
    "train {folder}/nowhere.json --out {folder}/own",
    "status {folder}/nowhere",
    "view {folder}/nowhere.jpg --weights r50",
)


def made_run(folder: Path) -> Path:
    """A run of a few scenes, without a model; the photos lie in folder/scenes/images."""
    from pipeline.train.synthetic import write_scenes
    from tests.factories import made_scenes, make_run, shard_row

    scenes = made_scenes(8)
    write_scenes(folder / "scenes", len(scenes), 7)
    rows = {
        name: shard_row(name, true, uri=str(folder / "scenes" / "images" / name))
        for name, true in scenes.items()
    }
    make_run(folder / "run", rows)
    return folder / "run"


def seconds(command: list[str]) -> float:
    """Of the wall's clock, whatever the command ends with."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"run": made_run(folder), "photos": folder / "scenes/images", "folder": folder}
        lines = ["--help", *(f"{verb} --help" for verb in VERBS), *MISTAKES, *READS]
        program = [sys.executable, "-m", "jobs.cli"]
        commands = {line: [*program, *shlex.split(line.format(**places))] for line in lines}
        commands[BASE] = [sys.executable, "-c", BASE]
        for command in commands.values():  # what is compiled and cached at the first call
            seconds(command)
        least = dict.fromkeys(commands, float("inf"))
        for _ in range(options.rounds):
            for line, command in commands.items():
                least[line] = min(least[line], seconds(command))
    base = least.pop(BASE)
    print(f"{BASE}: {base:.2f} s")
    limits = {line: HELP if line == "--help" else OTHERS for line in least}
    for line, spent in least.items():
        mark = "" if spent <= limits[line] * base else f"  more than {limits[line]:g}"
        print(f"{spent:6.2f} s  {spent / base:5.1f} times  panoptic {line}{mark}")
    ratios = {line: round(spent / base, 2) for line, spent in least.items()}
    print_result("startup", base=round(base, 3), ratios=ratios)
    if any(ratio > limits[line] for line, ratio in ratios.items()):
        sys.exit(1)


if __name__ == "__main__":
    main()
