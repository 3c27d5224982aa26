"""Verbs that only read a run folder start without Ray and without torch, which take seconds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.factories import damaged, evaluate_rows, made_scenes, make_run, shard_row

# Runs one command line, then says its exit code and which of the two libraries are loaded.
PROGRAM = """
import json, sys
from jobs.cli import run
code = run(sys.argv[1:])
print(json.dumps([code, sorted({"ray", "torch"} & {*sys.modules})]))
"""
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


@pytest.mark.parametrize(
    "command",
    [
        "status {a}",
        "errors {a}",
        "sql {a} 'select count(*) from images'",
        "report {a} --output {folder}/report.html",
        "report {a} --compare {b} --output {folder}/compared.html",
        "compare {a} {b}",
        "view {a} {photo} --output {folder}/view.png",
        "export {a} {folder}/predictions.json --truth {truth}",
        "prune {a}",
        "verify {a}",
    ],
)
def test_neither_ray_nor_torch_is_loaded(folder: Path, command: str) -> None:
    names = {"a": folder / "a", "b": folder / "b", "folder": folder, "photo": next(iter(TRUTH))}
    truth = folder / "truth.json"
    images = [{"id": number, "file_name": name} for number, name in enumerate(TRUTH, start=1)]
    truth.write_text(json.dumps({"images": images, "categories": []}))
    words = shlex.split(command.format(**names, truth=truth))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr
