"""What a refresh and a retry touch, and what they must not: objects, rows, earlier snapshots."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import make_config
from pipeline.nightly.verify import verify
from pipeline.run.run import open_run
from pipeline.segmentation.job import Summary, retry, segment
from tests.counting_model import encoded, picture, segment_map
from tests.killing import Field, make_field
from tests.run_rows import live_rows

pytestmark = [pytest.mark.slow(seconds=90), pytest.mark.usefixtures("ray_session")]


def objects(field: Field) -> dict[str, str]:
    """Every object of the run folder that is written once, by its content."""
    folders = ("manifest", "segments", "snapshots")
    paths = (p for name in folders for p in (field.out / name).rglob("*") if p.is_file())
    return {
        str(p.relative_to(field.out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }


def live_shards(field: Field, number: int) -> list[str]:
    table = pq.read_table(field.out / f"snapshots/{number:04d}.parquet")
    return table["path"].to_pylist()


def run(field: Field, **more: Any) -> Summary:
    return segment(make_config({**field.settings, **more}))


def put(field: Field, number: int, seed: int = 0) -> str:
    path = field.source / f"{number:06d}-000.png"
    path.write_bytes(encoded(number, seed) + b"\0" * seed)  # another size, as no ETag tells
    return path.name


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, Any]:
    """A run of 60 images, then 3 replaced, 4 added, 2 removed, and a refresh; read only."""
    field = make_field(tmp_path_factory.mktemp("generations"), images=60, per_shard=8, seconds=0)
    run(field)
    before = objects(field)
    seen = len(field.computed())
    changed = {put(field, number, seed=1) for number in (3, 14, 15)}
    added = {put(field, number) for number in range(100, 104)}
    removed = {f"{number:06d}-000.png" for number in (26, 53)}
    for name in removed:
        (field.source / name).unlink()
    summary = run(field, refresh=True)
    return {
        "field": field,
        "before": before,
        "computed": field.computed()[seen:],
        "changed": changed,
        "added": added,
        "removed": removed,
        "summary": summary,
    }


def test_a_refresh_computes_what_is_new_or_changed_and_nothing_else(
    refreshed: dict[str, Any],
) -> None:
    field: Field = refreshed["field"]
    assert sorted(refreshed["computed"]) == [3, 14, 15, *range(100, 104)]
    assert refreshed["summary"].computed == 7
    new = [path for path in live_shards(field, 2) if path.startswith("segments/0002/shard-")]
    rows = [pq.read_table(field.out / path).num_rows for path in new]
    assert rows == [7]  # one full shard, not one for each old shard that lost a row
    for row in live_rows(field.out).to_pylist():
        number = int(row["file_name"][:6])
        image = picture(number, 1 if row["file_name"] in refreshed["changed"] else 0)
        assert row["area"] == [int((segment_map(image) == kind).sum()) for kind in (1, 2)]


def test_every_earlier_object_is_as_it_was(refreshed: dict[str, Any]) -> None:
    after = objects(refreshed["field"])
    assert after.items() >= refreshed["before"].items()


def test_only_shards_that_lose_rows_are_copied_and_their_other_rows_are_the_same(
    refreshed: dict[str, Any],
) -> None:
    field: Field = refreshed["field"]
    leaving = refreshed["changed"] | refreshed["removed"]
    first, second = live_shards(field, 1), live_shards(field, 2)
    losing = set()
    for path in first:
        old = pq.read_table(field.out / path)
        stays = pa.array([name not in leaving for name in old["file_name"].to_pylist()])
        if stays.to_pylist().count(False) == 0:
            assert path in second
            continue
        losing.add(path)
        shard = path.split("-")[1]
        [copy] = [p for p in second if p.startswith(f"segments/0002/kept-0001-{shard}")]
        kept = pq.read_table(field.out / copy)
        assert kept.to_pylist() == old.filter(stays).to_pylist()
        metadata = [dict(table.schema.metadata) for table in (old, kept)]
        assert metadata[0][b"panoptic.fingerprint"] == metadata[1][b"panoptic.fingerprint"]
    copies = [path for path in second if "/kept-" in path]
    assert len(copies) == len(losing) > 0


def test_the_former_snapshot_stays_readable(refreshed: dict[str, Any]) -> None:
    opened = open_run(str(refreshed["field"].out))
    for number, images in ((1, 60), (2, 62)):
        result = verify(opened, number)
        assert result.holds, result.examples
        assert result.rows == images


def test_a_deleted_latest_json_is_put_back_by_the_same_command(refreshed: dict[str, Any]) -> None:
    field: Field = refreshed["field"]
    pointer = json.loads((field.out / "latest.json").read_text())["snapshot"]
    (field.out / "latest.json").unlink()
    before = objects(field)
    assert run(field).computed == 0
    assert json.loads((field.out / "latest.json").read_text())["snapshot"] == pointer == 2
    assert objects(field) == before


def test_a_retry_computes_the_failed_images_alone(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=30, per_shard=8, seconds=0)
    good = field.source / "000011-000.png"
    content = good.read_bytes()
    good.write_bytes(content[: len(content) // 2])
    first = run(field, max_error_rate=1.0)
    assert (first.ok, first.error) == (29, 1)
    before, seen = objects(field), len(field.computed())
    good.write_bytes(content)
    config = make_config({**open_run(str(field.out)).info.config})

    # The file has another size by now: as listed it can't be had, which is transient...
    assert retry(config, ["truncated"]).error == 1
    second = retry(config, [])

    # ...and the retry of that takes it as it is.
    assert (second.ok, second.error, second.computed) == (30, 0, 1)
    assert field.computed()[seen:] == [11]
    assert objects(field).items() >= before.items()
    row = next(r for r in live_rows(field.out).to_pylist() if r["file_name"] == good.name)
    assert row["attempts"] == 3
    assert verify(open_run(str(field.out))).holds
    field.check()
