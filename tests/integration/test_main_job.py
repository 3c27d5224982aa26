"""The main job on a local folder: exactly one row per image, resumed, extended and repeated."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from pycocotools import mask

from detr.weights.own_format import recommending
from pipeline.config import make_config
from pipeline.errors import ErrorBudgetError, UserError
from pipeline.run.run import open_run
from pipeline.segmentation.job import Summary, retry, segment
from tests.run_rows import live_rows, shard_files

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("ray_session")


def run_segment(source: Path, out: Path, weights: Path, **settings: Any) -> Summary:
    values = {"source": str(source), "out": str(out), "weights": str(weights)}
    values |= {"images_per_shard": 8, "max_error_rate": 0.2, "num_actors": "1"}
    return segment(make_config({**values, **settings}))


@pytest.fixture
def copy(segmented: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(segmented, tmp_path / "run"))


def go_on(copy: Path, scenes: Path, weights: Path, **settings: Any) -> Summary:
    """The command that made the run, once more."""
    return run_segment(scenes / "images", copy, weights, device="cpu", dtype="fp32", **settings)


def test_every_image_of_the_source_has_exactly_one_row(segmented: Path, scenes: Path) -> None:
    names = live_rows(segmented)["file_name"].to_pylist()
    assert sorted(names) == sorted(path.name for path in (scenes / "images").iterdir())


def test_broken_files_are_rows_with_a_code_and_a_message(segmented: Path) -> None:
    rows = live_rows(segmented).to_pylist()
    errors = {row["file_name"]: row for row in rows if row["status"] == "error"}
    assert {row["error_code"] for row in errors.values()} == {"empty", "truncated", "not_an_image"}
    assert all(row["error_message"] and row["counts"] == [] for row in errors.values())


def test_a_second_call_computes_nothing_and_leaves_every_shard_alone(
    copy: Path, scenes: Path, tiny_weights: Path
) -> None:
    before = shard_files(copy)
    summary = go_on(copy, scenes, tiny_weights)
    assert (summary.computed, summary.images) == (0, 23)
    assert shard_files(copy) == before


def test_a_deleted_shard_alone_is_computed_again_to_the_same_bytes(
    copy: Path, scenes: Path, tiny_weights: Path
) -> None:
    before = shard_files(copy)
    lost = next(iter(before))
    content = (copy / lost).read_bytes()
    rows = next(s.rows for s in open_run(str(copy)).snapshot().shards if s.path == lost)
    (copy / lost).unlink()

    summary = go_on(copy, scenes, tiny_weights)

    assert summary.computed == rows
    assert (copy / lost).read_bytes() == content
    after = shard_files(copy)
    assert {name: after[name] for name in after if name != lost} == {
        name: before[name] for name in before if name != lost
    }


def test_chosen_shards_are_published_only_once_the_others_are_there(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = run_segment(scenes / "images", out, tiny_weights, shards="0:1")
    assert (first.shards_done, first.snapshot) == (1, None)
    assert not (out / "latest.json").exists()
    early = shard_files(out)

    second = run_segment(scenes / "images", out, tiny_weights)

    assert second.computed == 23 - first.computed
    assert second.snapshot == 1
    assert shard_files(out).items() >= early.items()


@pytest.mark.slow(seconds=30)
def test_a_limited_run_is_extended_by_a_refresh_without_losing_its_work(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = run_segment(scenes / "images", out, tiny_weights, limit=9, max_error_rate=1)
    assert (first.images, first.computed) == (9, 9)
    early = shard_files(out)

    second = run_segment(scenes / "images", out, tiny_weights, refresh=True)

    assert (second.images, second.computed) == (23, 14)
    assert shard_files(out).items() >= early.items()
    assert len(set(live_rows(out)["file_name"].to_pylist())) == live_rows(out).num_rows == 23


def test_a_refresh_computes_what_changed_and_drops_what_is_gone(
    copy: Path, scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(scenes / "images", tmp_path / "images"))
    out = tmp_path / "other"
    run_segment(images, out, tiny_weights)
    former = live_rows(out).to_pylist()
    names = sorted(path.name for path in images.iterdir() if not path.name.startswith("broken"))
    (images / "new.jpg").write_bytes((images / names[0]).read_bytes())
    (images / names[1]).write_bytes((images / names[0]).read_bytes())
    (images / names[2]).unlink()

    summary = run_segment(images, out, tiny_weights, refresh=True)

    rows = {row["file_name"]: row for row in live_rows(out).to_pylist()}
    assert summary.computed == 2
    assert sorted(rows) == sorted(path.name for path in images.iterdir())
    assert rows["new.jpg"]["counts"] == rows[names[0]]["counts"] == rows[names[1]]["counts"]
    same = [row for row in former if row["file_name"] not in (names[1], names[2])]
    assert [rows[row["file_name"]] for row in same] == same


def test_retry_replaces_the_error_rows_of_mended_files(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    listing = tmp_path / "list.csv"
    source = scenes / "images"
    names = sorted(path.name for path in source.glob("0*"))[:6]
    late = tmp_path / "late.jpg"
    uris = [*(str(source / name) for name in names), str(late)]
    lines = [f"{uri},{number}" for number, uri in enumerate(uris)]
    listing.write_text("\n".join(["uri,shelf", *lines]))
    out = tmp_path / "run"
    settings: dict[str, Any] = {"keep_columns": ("shelf",), "images_per_shard": 3}
    first = run_segment(listing, out, tiny_weights, **settings)
    assert (first.ok, first.error) == (6, 1)
    late.write_bytes((source / names[0]).read_bytes())

    config = make_config(open_run(str(out)).info.config)
    second = retry(config, [])

    rows = {row["uri"]: row for row in live_rows(out).to_pylist()}
    assert (second.computed, second.ok, second.error) == (1, 7, 0)
    assert rows[str(late)]["attempts"] == 2
    assert rows[str(late)]["counts"] == rows[uris[0]]["counts"]
    assert [rows[uri]["shelf"] for uri in uris] == [str(number) for number in range(7)]


def test_too_many_failures_publish_nothing_and_keep_every_row(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ErrorBudgetError, match=r"3 of 23 images failed .*--max-error-rate 0\.01"):
        run_segment(scenes / "images", tmp_path / "run", tiny_weights, max_error_rate=0.01)
    assert not (tmp_path / "run/latest.json").exists()

    summary = run_segment(scenes / "images", tmp_path / "run", tiny_weights, max_error_rate=0.2)

    assert (summary.computed, summary.images, summary.snapshot) == (0, 23, 1)


@pytest.mark.slow(seconds=10)  # the quick tests of kills run such a model, too
def test_another_model_runs_through_the_same_engine(scenes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "none"
    weights.write_bytes(b"")
    summary = run_segment(
        scenes / "images", tmp_path / "run", weights, model="tests.toy_model:load"
    )
    assert (summary.ok, summary.error) == (20, 3)
    kinds = {kind for row in live_rows(tmp_path / "run")["category_id"].to_pylist() for kind in row}
    assert kinds == {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.5}, r"was made with threshold 0\.85, not 0\.5"),
        ({"exif": False}, "was made with exif True, not False"),
        ({"include": ("*.png",)}, "was made with include"),
    ],
)
def test_other_settings_are_refused_by_name(
    copy: Path, scenes: Path, tiny_weights: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        go_on(copy, scenes, tiny_weights, **change)


def test_a_run_goes_on_when_its_weights_have_got_a_threshold_since(
    copy: Path, scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "sure.safetensors"
    weights.write_bytes(recommending(tiny_weights.read_bytes(), 0.5))
    summary = go_on(copy, scenes, weights)
    assert (summary.computed, summary.snapshot) == (0, 1)
    with pytest.raises(UserError, match=r"was made with threshold 0\.85, not 0\.5"):
        go_on(copy, scenes, weights, threshold=0.5)


def test_a_newer_schema_is_refused(copy: Path, scenes: Path, tiny_weights: Path) -> None:
    info = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**info, "schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        go_on(copy, scenes, tiny_weights)


def test_a_summary_counts_in_plain_numbers(segmented: Path) -> None:
    names = {field.name for field in dataclasses.fields(Summary)}
    assert names >= {"images", "ok", "error", "shards", "shards_done", "computed", "seconds"}


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow(seconds=40))])
def test_the_demo_weights_run_on_real_photos_as_on_scenes(
    coco_val100: Path, tmp_path: Path, step: int
) -> None:
    """What they see there means nothing; that each photo has its row, of its own size, does."""
    photos = sorted((coco_val100 / "images").iterdir())[::step]
    listing = tmp_path / "photos.txt"
    listing.write_text("".join(f"{photo}\n" for photo in photos))
    weights = ROOT / "jobs" / "demo_weights" / "demo.safetensors"
    out = tmp_path / "run"
    summary = run_segment(listing, out, weights, threshold=0.5, images_per_shard=16)
    assert (summary.images, summary.ok, summary.error) == (len(photos), len(photos), 0)
    rows = {row["uri"]: row for row in live_rows(out).to_pylist()}
    assert sorted(rows) == [str(photo) for photo in photos]
    segments = 0
    for photo in photos:
        row = rows[str(photo)]
        with Image.open(photo) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        assert (row["height"], row["width"]) == (height, width)
        masks: Any = [{"size": [height, width], "counts": counts} for counts in row["counts"]]
        areas: Any = mask.area(masks)
        assert list(areas) == row["area"]
        assert sum(row["area"]) <= height * width
        segments += len(masks)
    assert segments > len(photos) / 2


def test_a_job_whose_weights_are_replaced_before_its_workers_load_them_writes_no_row(
    scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "level").write_text("128")
    with pytest.raises(UserError, match=r"level-129.*was started with sha256 .*level-128"):
        run_segment(
            scenes / "images",
            tmp_path / "run",
            tmp_path / "level",
            model="tests.night_model:load_replaced",
        )
    assert shard_files(tmp_path / "run") == {}


@pytest.mark.timeout(120)
def test_a_job_finds_the_cpus_of_one_that_failed_free_however_long_its_error_is_kept(
    scenes: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "level").write_text("128")
    gc.collect()
    gc.disable()  # Python may collect the frames of the error at any time, or never
    try:
        with pytest.raises(UserError) as kept:
            run_segment(
                scenes / "images",
                tmp_path / "failed",
                tmp_path / "level",
                model="tests.night_model:load_replaced",
            )
        summary = run_segment(scenes / "images", tmp_path / "run", tiny_weights)
    finally:
        gc.enable()
    assert (summary.images, kept.value.exit_code) == (23, 2)
