"""A job in a process of its own that a test can kill, and what is left of it to count.

field = make_field(tmp_path, images=240, seconds=0.02)
job = field.start()
field.wait_for(job, computed=50)
job.kill()
field.finish()
field.check()
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.counting_model import encoded, picture, segment_map
from tests.run_rows import live_rows, shards_of_names

ROOT = Path(__file__).resolve().parents[1]
JOB_SECONDS = 240.0
PROGRAM = ("jobs.cli",)


@dataclass(frozen=True)
class Field:
    """A folder of numbered images, a run folder, and the log of what was computed."""

    folder: Path
    images: int
    per_shard: int

    @property
    def source(self) -> Path:
        return self.folder / "images"

    @property
    def out(self) -> Path:
        return self.folder / "run"

    @property
    def weights(self) -> Path:
        return self.folder / "model.json"

    @property
    def settings(self) -> dict[str, Any]:
        """As `make_config` takes them."""
        return {
            "source": str(self.source),
            "out": str(self.out),
            "weights": str(self.weights),
            "model": "tests.counting_model:load",
            "images_per_shard": self.per_shard,
            "batch_size": 4,
            "device": "cpu",
        }

    def command(self, *more: str) -> list[str]:
        """Words after the program's name; a URL first in `more` is another source."""
        source = str(self.source)
        if more and "://" in more[0]:
            source, *rest = more
            more = tuple(rest)
        flags = [
            word
            for name, value in self.settings.items()
            if name != "source" and (flag := f"--{name.replace('_', '-')}") not in more
            for word in (flag, str(value))
        ]
        return ["segment", source, *flags, *more]

    def start(self, *more: str, program: Sequence[str] = PROGRAM) -> subprocess.Popen[str]:
        """The job as a user starts it, in a session of its own."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            [sys.executable, "-m", *program, *self.command(*more), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def finish(self, *more: str) -> dict[str, Any]:
        """Run the job to its end; returns its summary."""
        out, err = self.start(*more).communicate(timeout=JOB_SECONDS)
        assert out, err
        return json.loads(out)

    def computed(self) -> list[int]:
        """The number of every image that the model saw, once for each time it saw it."""
        log = self.folder / "computed.log"
        return (
            [int(line.split()[0]) for line in log.read_text().split("\n") if line]
            if (log.exists())
            else []
        )

    def shards(self) -> dict[str, int]:
        """Every shard object's modification time in ns."""
        paths = (self.out / "segments").rglob("*.parquet")
        return {str(path.relative_to(self.out)): path.stat().st_mtime_ns for path in paths}

    def wait_for(
        self, job: subprocess.Popen[str], *, computed: int = 0, seconds: float = JOB_SECONDS
    ) -> bool:
        """Wait until so many computations were made in all; False if the job or time ends first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and job.poll() is None:
            if computed and len(self.computed()) >= computed:
                return True
            time.sleep(0.02)
        return False

    def check(self) -> None:
        """Every image has exactly one row, and each row is that image's own."""
        rows = {row["file_name"]: row for row in live_rows(self.out).to_pylist()}
        assert live_rows(self.out).num_rows == len(rows) == self.images
        assert set(rows) == {path.name for path in self.source.iterdir()}
        for name, row in rows.items():
            image = picture(int(name[:6]), int(name[7:10]))
            assert row["status"] == "ok", row
            assert row["area"] == [int((segment_map(image) == kind).sum()) for kind in (1, 2)], name

    def repeated_units(self) -> int:
        """Computations of work units beyond the first of each; a part of a unit counts as a unit.

        Units, not images, are what a death costs, and a unit holds the images of a range of hashes:
        with four an image on average, some of eighty images' units hold seven.
        """
        shards = {int(name[:6]): path for name, path in shards_of_names(self.out).items()}
        most: Counter[str] = Counter()
        for number, count in Counter(self.computed()).items():
            most[shards[number]] = max(most[shards[number]], count - 1)
        return most.total()

    def planned_once(self) -> None:
        """The objects under segments/ are exactly the planned ones, and none is half a file."""
        for path in (self.out / "segments").rglob("*"):
            if path.is_file():
                assert path.suffix == ".parquet", path
                assert pq.read_table(path).num_rows > 0


def make_field(folder: Path, *, images: int, per_shard: int = 8, seconds: float = 0.02) -> Field:
    """Images named NUMBER-SEED.png, seed 000 unless a test replaces them."""
    field = Field(folder, images, per_shard)
    field.source.mkdir(parents=True)
    for number in range(images):
        (field.source / f"{number:06d}-000.png").write_bytes(encoded(number))
    settings = {"log": str(folder / "computed.log"), "seconds": seconds}
    field.weights.write_text(json.dumps(settings))
    return field


def end(job: subprocess.Popen[str], number: int = signal.SIGKILL) -> int:
    """Send a signal to the driver alone and wait for its end; returns its exit code.

    A SIGTERM waits until the program answers it: Python itself, still starting, would only die.
    """
    while number == signal.SIGTERM and job.poll() is None and not _catches(job.pid, number):
        time.sleep(0.02)
    job.send_signal(number)
    try:
        _, said = job.communicate(timeout=60)
        if job.returncode < 0 and job.returncode != -number:
            print(said[-3000:])  # another signal ended it: these words say why
    except subprocess.TimeoutExpired:
        job.kill()
        raise
    return job.returncode


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal (man 5 proc: SigCgt)."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)
