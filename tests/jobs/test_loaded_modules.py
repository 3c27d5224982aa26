"""Ray and torch take seconds to load: verbs that only read a run never do, others only to work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.verbs import VERBS
from tests.factories import damaged, evaluate_rows, made_scenes, make_run, shard_row

# Runs each command line and stops at the first after which one of the two libraries is loaded: a
# library stays loaded, so if none is after all of them, none of them loads it.
PROGRAM = """
import json, sys
from jobs.cli import run
for words in json.loads(sys.argv[1]):
    code = run(words)
    loaded = sorted({"ray", "torch"} & {*sys.modules})
    if code or loaded:
        sys.exit(f"{words} ended with {code} and loads {loaded}")
"""
COMMANDS = (
    "status {a}",
    "errors {a}",
    "sql {a} 'select count(*) from images'",
    "report {a} --output {folder}/report.html",
    "report {a} --compare {b} --output {folder}/compared.html",
    "compare {a} {b}",
    "view {a} {photo} --output {folder}/view.png",
    "view {a} --random 2 --folder {folder}/views",
    "export {a} {folder}/predictions.json --truth {truth}",
    "prune {a}",
    "verify {a}",
)
TRUTH = made_scenes(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two evaluated runs, `a` and `b`, of the photos beside them."""
    folder = tmp_path_factory.mktemp("read")
    for name, (segment_map, _) in TRUTH.items():
        pixels = np.zeros((*segment_map.shape, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name, format="PNG")
    for seed, name in enumerate(("a", "b")):
        rows = {
            photo: shard_row(photo, damaged(true, seed), uri=str(folder / photo))
            for photo, true in TRUTH.items()
        }
        evaluate_rows(make_run(folder / name, rows), TRUTH)
    return folder


def test_verbs_that_read_load_neither_ray_nor_torch(folder: Path) -> None:
    names = {"a": folder / "a", "b": folder / "b", "folder": folder, "photo": next(iter(TRUTH))}
    truth = folder / "truth.json"
    images = [{"id": number, "file_name": name} for number, name in enumerate(TRUTH, start=1)]
    truth.write_text(json.dumps({"images": images, "categories": []}))
    words = [shlex.split(command.format(**names, truth=truth)) for command in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_and_mistakes_of_a_verb_load_neither_ray_nor_torch() -> None:
    program = PROGRAM.replace("if code or loaded", "if loaded")
    words = [[verb, option] for verb in VERBS for option in ("--help", "--odd")]
    words += [
        ["train", "nowhere.json", "--out", "o"],
        ["train", "d.json", "--out", "o", "--phase", "odd"],
        ["train", "--config", "nowhere.toml"],
        ["train", "--example"],
        ["nightly", "--example"],
        ["doctor", "a", "b", "--source-option", "odd"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([["--help"], *words])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
