"""The views of a run, against its rows read one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.evaluator import evaluate_run
from pipeline.report.sql import query
from pipeline.run.run import Run, open_run
from pipeline.run.snapshots import RunSnapshot
from pipeline.storage.storage import Storage
from tests.factories import (
    MadeImage,
    made_scenes,
    make_run,
    named_images,
    publish_run,
    shard_row,
    write_coco,
)
from tests.servers import S3Server


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """In a folder whose name means something to SQL and to a glob."""
    made = [
        *named_images([f"{n}.jpg" for n in range(20)]),
        MadeImage("bad.jpg", "/bad.jpg", "empty"),
    ]
    return publish_run(tmp_path / "o'ut [1]*", made, shards=3)


def one(run: Run, text: str) -> object:
    return query(run, text).to_pylist()[0].popitem()[1]


def test_images_are_rows_and_segments_are_rows(run: Run) -> None:
    rows = run.table().to_pylist()
    assert one(run, "select count(*) from images") == 21
    assert one(run, "select error_code from images where status = 'error'") == "empty"
    assert one(run, "select sum(segments) from images") == sum(len(r["area"]) for r in rows)
    totals = query(run, "select category, count(*) as n, sum(area) as a from segments group by 1")
    found = {row["category"]: (row["n"], row["a"]) for row in totals.to_pylist()}
    names, areas = Counter[str](), Counter[str]()
    for row in rows:
        for category_id, area in zip(row["category_id"], row["area"], strict=True):
            name = run.info.categories.by_id(category_id).name
            names[name] += 1
            areas[name] += area
    assert found == {name: (names[name], areas[name]) for name in names}
    box = query(run, "select x, y, w, h from segments where file_name = '7.jpg' limit 1")
    assert list(box.to_pylist()[0].values()) == run["7.jpg"].row["bbox"][0]


def test_shares_of_an_image_add_up_to_what_is_covered(run: Run) -> None:
    share = one(run, "select sum(share) from segments where file_name = '3.jpg'")
    assert share == pytest.approx((run["3.jpg"].map > 0).mean())


def test_an_evaluation_is_a_view_by_its_name(tmp_path: Path, ray_session: None) -> None:
    scenes = made_scenes(6)
    rows = {name: shard_row(name, made) for name, made in scenes.items()}
    run = make_run(tmp_path / "out", rows)
    with pytest.raises(UserError, match="run `panoptic evaluate` first"):
        query(run, "select * from per_image")
    truth = write_coco(tmp_path, "truth", scenes)
    evaluate_run(run.storage.url, str(truth))
    joined = "select count(*) from per_image join images using (file_name) where pq = 1"
    assert one(run, joined) == 6
    with pytest.raises(UserError, match=r"no evaluation 'other' \(there are: truth\)"):
        query(run, "select 1", evaluation="other")
    part, _ = RunSnapshot(run, 1).rows("truth")
    run.storage.delete(part)
    with pytest.raises(UserError, match=r"has 1 of 2 files .* run `panoptic evaluate` again"):
        query(run, joined)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select nope from images", "the query can't be answered: .*nope"),
        ("selec 1", "the query can't be answered: .*selec"),
        ("select * from nothing", "nothing does not exist"),
    ],
)
def test_what_duckdb_refuses_is_a_sentence(run: Run, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        query(run, text)


def test_a_folder_above_the_run_does_not_fill_its_columns(tmp_path: Path) -> None:
    """DuckDB reads `generation=7` in a path as that column's value, unless it is told not to."""
    made = [*named_images(["1.jpg"]), MadeImage("bad.jpg", "/bad.jpg", "empty")]
    run = publish_run(tmp_path / "generation=7" / "status=error" / "out", made)
    rows = query(run, "select file_name, generation, status from images order by 1").to_pylist()
    assert rows == [
        {"file_name": "1.jpg", "generation": 1, "status": "ok"},
        {"file_name": "bad.jpg", "generation": 1, "status": "error"},
    ]


def test_shards_in_a_bucket_are_queried_where_they_lie(run: Run, moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="bucket")
    there = Storage("s3://bucket/a b/out")
    for entry in run.storage.list():
        there.write(entry.path, run.storage.read(entry.path))
    text = "select category, sum(area) as a from segments group by 1 order by 1"
    assert query(open_run("s3://bucket/a b/out"), text) == query(run, text)
