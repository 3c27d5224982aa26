"""Runs over archives: the same maps as over loose files, and every promise of a run."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.archive_tasks import in_tasks
from pipeline.config import make_config
from pipeline.evaluation.evaluator import evaluate_run
from pipeline.nightly.verify import verify
from pipeline.planning.archives import in_threads
from pipeline.planning.source import Source
from pipeline.report.view import view_row
from pipeline.run.run import open_run
from pipeline.segmentation.job import Summary, retry, segment
from tests.archive_files import tarred, zipped
from tests.run_rows import live_rows

pytestmark = pytest.mark.usefixtures("ray_session")
SAME = ("status", "error_code", "height", "width", "category_id", "isthing", "score", "counts")


def run_over(source: Path | str, out: Path, weights: Path, **settings: Any) -> Summary:
    values = {"source": str(source), "out": str(out), "weights": str(weights), "num_actors": "1"}
    return segment(make_config({**values, "max_error_rate": 0.5, "threshold": 0.1, **settings}))


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    """The rows by the last part of their file names."""
    rows = live_rows(out).to_pylist()
    named = {row["file_name"].rpartition("/")[2]: row for row in rows}
    assert len(named) == len(rows)
    return named


def same_rows(one: Path, other: Path) -> None:
    first, second = by_name(one), by_name(other)
    assert first.keys() == second.keys()
    for name, row in first.items():
        assert {k: row[k] for k in SAME} == {k: second[name][k] for k in SAME}, name


def test_a_mixed_prefix_gives_the_rows_of_its_loose_files(
    segmented: Path, scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    photos = {path.name: path.read_bytes() for path in sorted((scenes / "images").iterdir())}
    names = list(photos)
    source = tmp_path / "mixed"
    (source / "loose").mkdir(parents=True)
    parts = [{name: photos[name] for name in names[start::4]} for start in range(4)]
    (source / "a.zip").write_bytes(zipped(parts[0], zipfile.ZIP_DEFLATED))
    (source / "b.tar").write_bytes(tarred(parts[1]))
    (source / "c.tar").write_bytes(tarred(parts[2], tarfile.PAX_FORMAT))
    for name, data in parts[3].items():
        (source / "loose" / name).write_bytes(data)
    out = tmp_path / "run"
    settings = open_run(str(segmented)).info.config
    summary = run_over(source, out, tiny_weights, threshold=settings["threshold"])
    assert (summary.images, summary.error) == (23, 3)
    same_rows(segmented, out)
    result = verify(open_run(str(out)))
    assert result.holds, result.examples
    whole = next(row for row in by_name(out).values() if row["status"] == "ok")
    assert view_row(open_run(str(out)), whole["file_name"]).image.shape[2] == 3
    before = open_run(str(segmented))
    loose = evaluate_run(str(segmented), str(scenes / "panoptic.json"))
    packed = evaluate_run(str(out), str(scenes / "panoptic.json"))
    assert before.info.config["threshold"] == settings["threshold"]
    assert packed["All"] == loose["All"]


def test_a_refresh_computes_the_members_that_changed_and_a_retry_finds_them_again(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    photos = {path.name: path.read_bytes() for path in sorted((scenes / "images").glob("0*.jpg"))}
    names = list(photos)[:6]
    first = {name: photos[name] for name in names}
    source, out = tmp_path / "photos.tar", tmp_path / "run"
    source.write_bytes(tarred(first))
    assert run_over(source, out, tiny_weights).computed == 6
    before = by_name(out)
    # Another order, one replaced, one gone, one new: the other four lie elsewhere, unchanged.
    second = {name: photos[name] for name in reversed(names[1:])}
    second[names[2]] = photos[list(photos)[6]]
    second["new.jpg"] = photos[list(photos)[7]]
    second["broken.jpg"] = b"no photo"
    source.write_bytes(tarred(second))
    summary = run_over(source, out, tiny_weights, refresh=True, max_removed_rate=0.5)
    assert summary.computed == 3
    after = by_name(out)
    assert after.keys() == {*names[1:], "new.jpg", "broken.jpg"}
    for name in names[3:]:
        assert after[name] == before[name]
    assert run_over(source, out, tiny_weights, refresh=True).computed == 0
    values = {"source": str(source), "out": str(out), "weights": str(tiny_weights)}
    config = make_config({**values, "max_error_rate": 0.5, "threshold": 0.1})
    again = retry(config, ["not_an_image"])
    assert (again.computed, again.error) == (1, 1)


def test_many_tars_are_listed_by_tasks_as_in_threads(scenes: Path, tmp_path: Path) -> None:
    photos = {path.name: path.read_bytes() for path in sorted((scenes / "images").glob("0*.jpg"))}
    for number, (name, data) in enumerate([*photos.items()][:6]):
        (tmp_path / f"{number}.tar").write_bytes(tarred({name: data, "label.txt": b"0"}))
    listings = []
    for each in (in_threads, in_tasks(None)):
        source = Source(str(tmp_path), each=each)
        rows = [row for table in source.tables() for row in table.to_pylist()]
        listings.append((sorted(rows, key=lambda row: row["file_name"]), source.left_out))
    assert listings[0] == listings[1]
    assert len(listings[0][0]) == 6
    assert listings[0][1].suffixes == {"txt": 6}


@pytest.mark.slow(seconds=300)
@pytest.mark.timeout(1800)
def test_coco_photos_give_equal_maps_from_every_kind_of_archive(
    coco_val100: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    photos = {path.name: path.read_bytes() for path in sorted((coco_val100 / "images").iterdir())}
    assert len(photos) == 128
    names = list(photos)
    shards = [{n: photos[n] for n in names[start : start + 16]} for start in range(0, 128, 16)]
    sources = {
        "stored": {"val.zip": zipped(photos)},
        "deflated": {"val.zip": zipped(photos, zipfile.ZIP_DEFLATED)},
        "gnu": {f"{n}.tar": tarred(shard) for n, shard in enumerate(shards)},
        "pax": {f"{n}.tar": tarred(shard, tarfile.PAX_FORMAT) for n, shard in enumerate(shards)},
    }
    run_over(coco_val100 / "images", tmp_path / "loose", tiny_weights)
    for kind, files in sources.items():
        (tmp_path / f"source-{kind}").mkdir()
        for name, data in files.items():
            (tmp_path / f"source-{kind}" / name).write_bytes(data)
        run_over(tmp_path / f"source-{kind}", tmp_path / kind, tiny_weights)
        same_rows(tmp_path / "loose", tmp_path / kind)


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(600)
def test_truth_is_read_from_the_official_archive_as_from_the_unpacked_files(
    segmented: Path, scenes: Path, tmp_path: Path
) -> None:
    pngs = {f"panoptic_val2017/{p.name}": p.read_bytes() for p in (scenes / "panoptic").iterdir()}
    truth = json.loads((scenes / "panoptic.json").read_text())
    official = {
        "annotations/panoptic_val2017.json": json.dumps(truth).encode(),
        "annotations/panoptic_val2017.zip": zipped(pngs),
        "annotations/panoptic_train2017.json": b"{}",
    }
    archive = tmp_path / "panoptic_annotations_trainval2017.zip"
    archive.write_bytes(zipped(official, zipfile.ZIP_DEFLATED))
    loose = evaluate_run(str(segmented), str(scenes / "panoptic.json"))
    packed = evaluate_run(str(segmented), f"{archive}#panoptic_val2017.json")
    assert packed["All"] == loose["All"]
    assert packed["per_class"] == loose["per_class"]
