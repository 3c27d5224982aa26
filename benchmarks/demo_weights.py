"""PQ of the demo weights on 500 scenes that training never saw, by the ordinary commands.

    python benchmarks/demo_weights.py [--weights FILE] [--scenes 500] [--seed 3] [--record]

The claim: PQ >= 70 (things >= 55, stuff >= 90), computed by `panoptic evaluate` from the shards of
`panoptic segment`. `--record` writes the figures beside the weights, with the scenes, the seed and
the stages of the training as the Makefile's target runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import detr
from benchmarks.measure import ROOT, machine
from jobs.demo import DEMO_THRESHOLD, DEMO_WEIGHTS

TARGETS = {"All": 70.0, "Things": 55.0, "Stuff": 90.0}


def panoptic(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    command = [sys.executable, "-m", "jobs.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def training() -> dict[str, Any]:
    """How `make demo-weights` trains: scenes by name, the seed, and the arguments of each stage."""
    lines = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    variables = dict(re.findall(r"^(SMALL|LARGE|TRAIN) = (.*)$", lines, re.M))
    stages = []
    for data, arguments in re.findall(r"^\t\$\(TRAIN\) \$\((SMALL|LARGE)\) (.*)$", lines, re.M):
        common = variables["TRAIN"].partition("panoptic train ")[2]
        stages.append(" ".join(f"{common} {variables[data]} {arguments}".split()))
    scenes = {
        name: {"images": int(images), "seed": int(seed)}
        for name, images, seed in re.findall(r'"(\w+) (\d+) (\d+)"', lines)
    }
    seeds = {int(seed) for stage in stages for seed in re.findall(r"--seed (\d+)", stage)}
    [seed] = seeds
    return {"command": "make demo-weights", "scenes": scenes, "seed": seed, "stages": stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, default=DEMO_WEIGHTS)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write demo.json beside the weights")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    weights: Path = options.weights.resolve()
    with tempfile.TemporaryDirectory() as folder:
        data, out = f"{folder}/scenes", f"{folder}/run"
        panoptic("scenes", data, "--images", str(options.scenes), "--seed", str(options.seed))
        settings = ["--threshold", str(DEMO_THRESHOLD), "--device", "cpu"]
        segment = panoptic(
            "segment", f"{data}/images", "--out", out, "--weights", str(weights), *settings
        )
        found = panoptic("evaluate", out, "--truth", f"{data}/panoptic.json")
    print(f"{found['images']['scored']} scenes of seed {options.seed}")
    print("          PQ     SQ     RQ   classes   target")
    for group, target in TARGETS.items():
        row = found[group]
        figures = "".join(f"{100 * row[name]:7.1f}" for name in ("pq", "sq", "rq"))
        print(f"{group:6}{figures}{row['n']:10}{target:9.0f}")
    result = {
        "benchmark": "demo_weights",
        "command": "python benchmarks/demo_weights.py",
        **machine(),
        "weights": weights.name,
        "sha256": detr.describe(weights, device="cpu").weights_sha256,
        "bytes": weights.stat().st_size,
        "threshold": DEMO_THRESHOLD,
        "scenes": found["images"]["scored"],
        "seed": options.seed,
        "segments": segment["segments"],
        "training": training(),
        **{g: {k: found[g][k] for k in ("pq", "sq", "rq", "n", "pq_interval")} for g in TARGETS},
    }
    if options.record:
        weights.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
