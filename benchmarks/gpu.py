"""The GPU path on one GPU, right or wrong and how fast: one command of under 300 s.

Needs this repository (or what `make gpu-bundle` packs), torch, torchvision, numba and transformers;
neither Ray nor pyarrow. Each step is caught, appended to OUT/gpu.jsonl as it ends, and stands in
the table of PASS and FAIL at the end. What is compared with a CPU is compared with fp32 there. The
claims, from decoded photos to RLE, in bf16: 600 images/s on an H200 and 450 on an H100 at one size;
at least 70 % of that where nearly every photo has a size of its own; the device at work for 85 % of
the time; 10 times transformers' DetrForSegmentation in bf16 on the same card.

    python benchmarks/gpu.py --out FOLDER
    python benchmarks/gpu.py --out FOLDER --steps parity,tail
    python benchmarks/gpu.py --rehearse              # the same on a CPU, with tiny models: a minute
    python benchmarks/gpu.py --page FOLDER/gpu.jsonl # benchmarks/results/gpu.txt from its lines

Ends with 1 if a line says FAIL, and with 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detr  # noqa: F401  # isort: skip  # before torch, whose threads it tells how to wait
import torch

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gpu_bench import Bench, Step

STEPS: tuple[Step, ...] = (*gpu_checks.STEPS, *gpu_speed.STEPS)
PAGE = Path(__file__).resolve().parent / "results" / "gpu.txt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="folder of gpu.jsonl")
    parser.add_argument("--steps", help="only these, comma-separated: " + names(STEPS))
    parser.add_argument("--seconds", type=float, default=290, help="no step begins that won't fit")
    parser.add_argument("--rehearse", action="store_true", help="on this CPU, at tiny sizes")
    parser.add_argument("--page", metavar="JSONL", help="write the results page of a run, no more")
    arguments = parser.parse_args()
    if arguments.page:
        PAGE.write_text(page(read_lines(Path(arguments.page))))
        return 0
    wanted = arguments.steps.split(",") if arguments.steps else [step.name for step in STEPS]
    if unknown := set(wanted) - {step.name for step in STEPS}:
        print(f"--steps: no step {', '.join(sorted(unknown))}; there are {names(STEPS)}")
        return 2
    if not arguments.rehearse and not torch.cuda.is_available():
        print("torch finds no GPU here: --rehearse runs the same on a CPU")
        return 2
    # Against fragmentation; read at the first allocation.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    log = Path(arguments.out) / "gpu.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), rehearse=arguments.rehearse, seconds=arguments.seconds)
        try:
            for step in STEPS:
                if step.name in wanted:
                    lines.append(run(step, bench))
                    with log.open("a") as file:
                        file.write(json.dumps(lines[-1], default=str) + "\n")
        finally:
            bench.close()
    print(f"\n{table(lines)}")
    return int(any(line["verdict"] == "FAIL" for line in lines))


def names(steps: tuple[Step, ...]) -> str:
    return ", ".join(step.name for step in steps)


def run(step: Step, bench: Bench) -> dict[str, Any]:
    """One step's line; a step that fails costs the others nothing."""
    line: dict[str, Any] = {"step": step.name, "promise": step.promise}
    started = time.monotonic()
    if step.seconds > bench.seconds_left and not bench.rehearse:
        line |= {"verdict": "SKIP", "why": f"{bench.seconds_left:.0f} s left: --steps {step.name}"}
    else:
        try:
            holds, found = step.function(bench)
            line |= {"verdict": "PASS" if holds else "FAIL", **found}
        except Exception as error:  # noqa: BLE001  # whatever it is, the next step may work
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            said = f"{type(error).__name__}: {error}"[:400]
            line |= {"verdict": "FAIL", "error": said, "where": place}
    bench.rest()
    line |= {"s": round(time.monotonic() - started, 1), "rehearsal": bench.rehearse}
    line["date"] = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    print(json.dumps(line, default=str), flush=True)
    return line


def table(lines: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"{line['verdict']:5}{line['step']:14}{line['s']:6.1f} s  {line['promise']}"
        for line in lines
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The newest line of each step, in the order of the steps."""
    newest = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        newest[line["step"]] = line
    return [newest[step.name] for step in STEPS if step.name in newest]


def page(lines: list[dict[str, Any]]) -> str:
    """What is kept in benchmarks/results: the card, the table, the figures, then the lines."""
    usual = ("step", "promise", "verdict", "s", "rehearsal", "date")
    machine = next((line for line in lines if line["step"] == "machine"), {})
    title = "DETR-R50 panoptic on one GPU: " + str(machine.get("card", "a card not named"))
    if any(line["rehearsal"] for line in lines):
        title = "A rehearsal on a CPU with tiny models: no figure below is a GPU's"
    about = [f"{name} {machine[name]}" for name in ("torch", "cuda", "driver") if name in machine]
    figures = [
        f"{line['step']:14}{name}: {value}"
        for line in lines
        for name, value in line.items()
        if name not in usual
    ]
    dates = sorted({line["date"][:10] for line in lines})
    head = [title, ", ".join([*about, *dates]), "", table(lines), ""]
    return "\n".join([*head, *figures, "", *(json.dumps(line) for line in lines), ""])


if __name__ == "__main__":
    sys.exit(main())
