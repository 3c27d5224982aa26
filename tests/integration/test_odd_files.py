"""A folder of every odd and broken file there is: one row each, the right code, bounded memory."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest

from pipeline.config import make_config
from pipeline.segmentation.job import segment
from tests.odd_files import write_odd_files
from tests.run_rows import live_rows

LIMIT_BYTES = 4_000_000_000  # above what Ray and torch hold before the first image


class PeakGrowth:
    """The most that this process and its children grew, sampled ten times a second."""

    def __enter__(self) -> PeakGrowth:
        self.peak = self._start = self._memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.peak - self._start

    def _sample(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._memory())

    def _memory(self) -> int:
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total


@pytest.mark.usefixtures("ray_session")
def test_every_odd_file_has_one_row_with_the_right_code(tiny_weights: Path, tmp_path: Path) -> None:
    expected = write_odd_files(tmp_path / "images")
    expected["one_row.png"] = "too_thin"  # at the published 1333 pixels it is fine, at 160 not
    settings = {
        "source": str(tmp_path / "images"),
        "out": str(tmp_path / "run"),
        "weights": str(tiny_weights),
        "max_error_rate": 1.0,
    }
    with PeakGrowth() as growth:
        summary = segment(make_config(settings))
    rows = live_rows(tmp_path / "run").to_pylist()
    assert {row["file_name"]: row["error_code"] for row in rows} == expected
    assert len(rows) == summary.images == len(expected)
    assert growth.bytes < LIMIT_BYTES


@pytest.mark.usefixtures("ray_session")
def test_a_listed_file_that_is_not_there_is_an_error_row(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    there = scenes / "images" / "000000.jpg"
    listing = tmp_path / "list.txt"
    listing.write_text(f"{there}\n{tmp_path}/nowhere.jpg\n")
    settings = {
        "source": str(listing),
        "out": str(tmp_path / "run"),
        "weights": str(tiny_weights),
        "max_error_rate": 1.0,
        "num_actors": "1",
    }
    segment(make_config(settings))
    rows = {row["file_name"]: row for row in live_rows(tmp_path / "run").to_pylist()}
    assert rows[str(there)]["status"] == "ok"
    assert rows[f"{tmp_path}/nowhere.jpg"]["error_code"] == "not_found"
