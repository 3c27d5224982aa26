"""A night that is killed at each of its steps and called again ends as if it never was."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.run.run import open_run
from tests.factories import write_coco
from tests.night_model import CATEGORIES, png, truth
from tests.run_rows import live_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


class Folder:
    """A folder of photos and a folder of nights on this disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.out = folder / "out"
        named = {f"{n:03d}.png": truth(n) for n in range(6)}
        gt = write_coco(folder, "gt", named, categories=CATEGORIES)
        self.weights = folder / "weights.txt"
        self.weights.write_text("128")
        settings = {
            "source": str(self.photos),
            "out": str(self.out),
            "weights": str(self.weights),
            "model": "tests.night_model:load",
            "truth": str(gt),
            "images_per_shard": 8,
            "allow_full": True,
        }
        self.toml = folder / "nightly.toml"
        self.toml.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in settings.items()))

    def put(self, *numbers: int) -> None:
        for number in numbers:
            (self.photos / f"{number:03d}.png").write_bytes(png(number))

    def killed(self, *marks: str, once: bool = True) -> list[int]:
        """How each call ended that was killed before writing a mark, and with `once` a last one
        that was not."""
        address = ray.get_runtime_context().gcs_address
        command = [sys.executable, "-m", "tests.night_killer", str(self.toml), address, *marks]
        command += ["-"] if once else []
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line)["end"] for line in done.stdout.splitlines()]

    def live(self) -> str | None:
        pointer = self.out / "latest.json"
        return json.loads(pointer.read_text())["run"] if pointer.exists() else None

    def rows(self) -> dict[str, Any]:
        run = open_run(str(self.out))
        rows = live_rows(Path(run.storage.url)).to_pylist()
        assert max(Counter(row["file_name"] for row in rows).values()) == 1
        return {row["file_name"]: row for row in rows}


def test_killed_at_each_step_the_first_night_ends_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put(*range(12))
    steps = (
        *("run.json", "generation.json", "stats/0001.json", "snapshots/0001.parquet"),
        *("pq.json", "baseline.json", "/nights/*.json", "/latest.json", "out/latest.json"),
    )
    ends = folder.killed(*steps)
    assert ends == [-9] * len(steps) + [0]
    assert set(folder.rows()) == {path.name for path in folder.photos.iterdir()}
    shards = sorted(path.name for path in folder.out.rglob("shard-*"))
    assert len(shards) == 2  # planned once, whatever was killed when


def test_killed_between_two_runs_no_reader_moves_until_the_last_write(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put(*range(12))
    assert folder.killed() == [0]
    first, before = folder.live(), folder.rows()
    folder.weights.write_text("127")
    folder.put(20)
    assert folder.killed("snapshots/0002.parquet", "out/latest.json", once=False) == [-9, -9]
    assert (folder.live(), folder.rows()) == (first, before)
    assert folder.killed() == [0]
    assert folder.live() != first
    assert set(folder.rows()) == {path.name for path in folder.photos.iterdir()}


def test_killed_at_each_step_a_night_of_changes_ends_the_same(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.put(*range(12))
    assert folder.killed() == [0]
    before = folder.rows()
    folder.put(20)
    (folder.photos / "007.png").write_bytes(png(107))
    (folder.photos / "011.png").unlink()
    steps = (
        *("0002/dropped-*.parquet", "0002/generation.json", "stats/0002.json"),
        *("snapshots/0002.parquet", "0002/gt/pq.json", "/nights/*.json", "/latest.json"),
        "/_SUCCESS",
    )
    assert folder.killed(*steps) == [-9] * len(steps) + [0]
    after = folder.rows()
    assert set(after) == {path.name for path in folder.photos.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"007.png", "020.png"}
    run = Path(open_run(str(folder.out)).storage.url)
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == [
        *("0001.parquet", "0002.parquet"),
    ]
    assert (run / "_SUCCESS").exists()  # though the call that published was killed before it
    fresh = [path.name for path in (run / "segments/0002").iterdir()]
    assert [name for name in fresh if name.startswith("shard-")] == [
        "shard-000000-of-000001.parquet"
    ]
