"""`panoptic verify`: what it prints, how it exits, and images that are computed a second time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import run
from pipeline.errors import EXIT_QUALITY_GATE
from tests.run_rows import shard_files


def verified(
    out: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(["verify", str(out), *options, "--json"])
    return code, json.loads(capsys.readouterr().out)


def edited(segmented: Path, folder: Path, name: str, **values: Any) -> Path:
    """A copy of the run whose row of `name` holds other values."""
    out = Path(shutil.copytree(segmented, folder / "run"))
    for shard in shard_files(out):
        table = pq.read_table(out / shard)
        rows = table.to_pylist()
        for row in rows:
            if row["file_name"] == name:
                row.update({key: change(row) for key, change in values.items()})
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), out / shard)
    return out


def test_a_sample_computed_again_is_the_same_to_the_last_pixel(
    segmented: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, facts = verified(segmented, capsys, "--sample", "50")
    assert code == 0
    assert (facts["images"], facts["rows"], facts["ok"], facts["error"]) == (23, 23, 20, 3)
    sample = facts["sample"]
    assert (sample["compared"], sample["same"], sample["skipped"]) == (23, 23, 0)


def test_what_a_count_finds_stands_in_the_json(
    segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = edited(segmented, tmp_path, "000003.jpg", file_name=lambda row: "stranger.jpg")
    code, facts = verified(out, capsys)
    assert code == EXIT_QUALITY_GATE
    assert facts["findings"]["missing"] == facts["findings"]["not in the manifest"] == 1


def test_a_row_with_another_class_is_found_by_computing_it_again(
    segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = edited(
        segmented, tmp_path, "000003.jpg", category_id=lambda row: [8 for _ in row["category_id"]]
    )
    code, facts = verified(out, capsys, "--sample", "50")
    assert code == EXIT_QUALITY_GATE
    assert list(facts["sample"]["differences"]) == ["000003.jpg"]
    assert facts["sample"]["same"] == 22


def test_an_error_that_was_none_is_found_by_computing_it_again(
    segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = edited(segmented, tmp_path, "000003.jpg", width=lambda row: row["width"] + 1)
    code, facts = verified(out, capsys, "--sample", "50")
    assert code == EXIT_QUALITY_GATE
    [words] = facts["sample"]["other"]
    assert words.startswith("000003.jpg: width is 1")


def test_a_file_that_changed_since_is_skipped(
    segmented: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = scenes / "images" / "000004.jpg"
    content, times = photo.read_bytes(), photo.stat()
    try:
        Image.new("RGB", (64, 64)).save(photo)
        code, facts = verified(segmented, capsys, "--sample", "50")
    finally:
        photo.write_bytes(content)
        os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert code == 0
    assert (facts["sample"]["compared"], facts["sample"]["skipped"]) == (22, 1)


def test_a_missing_shard_is_named_and_exits_with_the_gate_s_code(
    segmented: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(segmented, tmp_path / "run"))
    gone = next(iter(shard_files(out)))
    (out / gone).unlink()
    capsys.readouterr()
    assert run(["verify", str(out)]) == EXIT_QUALITY_GATE
    said = capsys.readouterr().out
    assert gone in said
    assert "NOT as promised" in said
