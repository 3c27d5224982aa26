"""Truth as it comes: JSON streams, PNGs, names, and every way to be wrong."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from detr.categories import COCO_PANOPTIC, Categories
from pipeline.errors import UserError
from pipeline.evaluation import truth
from pipeline.evaluation.truth_png import MaskError, read_png, row_of, write_png
from pipeline.panoptic import rle
from pipeline.panoptic.score import hashes_of
from pipeline.planning import coco_panoptic
from pipeline.planning.coco_panoptic import CocoFile, panoptic
from pipeline.run.run import Run
from pipeline.sharding import name_hash
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import made_scenes, make_run, shard_row, write_coco

TRUTH = made_scenes(6)


def one_by_one(conversions: Iterable[Callable[[], truth.TruthPart]]) -> Iterator[truth.TruthPart]:
    return (conversion() for conversion in conversions)


def run_of(folder: Path, names: Iterable[str], categories: Categories = SCENE_CATEGORIES) -> Run:
    rows = {name: shard_row(name, "empty") for name in names}
    return make_run(folder, rows, categories=categories)


def prepare(run: Run, path: Path, **options: Any) -> truth.Truth:
    return truth.prepare(run, "evaluation/0001/t", str(path), convert=one_by_one, **options)


def rows_of(prepared: truth.Truth, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    rows = prepared.rows(hashes_of(list(names))).to_pylist()
    return {row["file_name"]: row for row in rows}


def test_rows_hold_the_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "ROWS_PER_PART", 4)
    monkeypatch.setattr(truth, "ROWS_PER_GROUP", 2)
    prepared = prepare(run_of(tmp_path / "run", TRUTH), write_coco(tmp_path, "gt", TRUTH))
    assert (prepared.images, prepared.absent, prepared.mismatched, prepared.problems) == (
        6,
        0,
        0,
        0,
    )
    assert len(prepared.paths) == 2
    rows = rows_of(prepared, TRUTH)
    for name, (segment_map, segments) in TRUTH.items():
        row = rows[name]
        assert row["category_id"] == [s["category_id"] for s in segments]
        painted = rle.decode(row["counts"], row["height"], row["width"], row["segment_id"])
        assert (painted == segment_map).all()
    tables = [pq.read_table(tmp_path / "run/evaluation/0001/t" / p) for p in prepared.paths]
    hashes = [h for table in tables for h in table["hash"].to_pylist()]
    assert hashes == sorted(name_hash(name) for name in TRUTH)


def test_only_asked_for_rows_are_given(tmp_path: Path) -> None:
    prepared = prepare(run_of(tmp_path / "run", TRUTH), write_coco(tmp_path, "gt", TRUTH))
    wanted = ["000003.jpg", "no truth.jpg"]
    assert list(rows_of(prepared, wanted)) == ["000003.jpg"]


def test_is_converted_once_until_something_changes(tmp_path: Path) -> None:
    run, path = run_of(tmp_path / "run", TRUTH), write_coco(tmp_path, "gt", TRUTH)
    notes: list[str] = []
    prepare(run, path)
    prepare(run, path, note=notes.append)
    assert notes == ["ground truth: already converted"]
    segment_map = TRUTH["000000.jpg"][0].copy()
    segment_map[0] = 0
    (tmp_path / "gt/1.png").write_bytes(write_png(segment_map))
    notes.clear()
    prepared = prepare(run, path, note=notes.append)
    assert notes == ["ground truth: converting 6 images"]
    assert prepared.mismatched > 0


def test_a_json_without_areas_has_no_mismatches(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", TRUTH, areas=False)
    assert prepare(run_of(tmp_path / "run", TRUTH), path).mismatched == 0


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"val2017/{name}",
        lambda name: f"s3://bucket/a b/{name}",
    ],
)
def test_names_match_by_their_tail(tmp_path: Path, rename: Callable[[str], str]) -> None:
    names = [rename(name) for name in TRUTH]
    prepared = prepare(run_of(tmp_path / "run", names), write_coco(tmp_path, "gt", TRUTH))
    assert sorted(rows_of(prepared, names)) == sorted(names)


def test_a_longer_name_in_the_truth_matches_too(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", {f"val/{name}": t for name, t in TRUTH.items()})
    prepared = prepare(run_of(tmp_path / "run", TRUTH), path)
    assert prepared.images == 6


def test_an_exact_name_outranks_a_tail(tmp_path: Path) -> None:
    names = [*TRUTH, "other/000000.jpg"]
    prepared = prepare(run_of(tmp_path / "run", names), write_coco(tmp_path, "gt", TRUTH))
    assert sorted(rows_of(prepared, names)) == sorted(TRUTH)


def test_ambiguous_names_are_refused_by_name(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", TRUTH)
    run = run_of(tmp_path / "run", ["a/000000.jpg", "b/000000.jpg", "c/000001.jpg"])
    with pytest.raises(UserError, match=r"'000000.jpg' of truth is ambiguous: 2 .*'a/000000.jpg'"):
        prepare(run, path)


def test_two_truths_of_one_image_are_refused(tmp_path: Path) -> None:
    [first, second, *_] = TRUTH.values()
    path = write_coco(tmp_path, "gt", {"a/1.jpg": first, "b/1.jpg": second})
    with pytest.raises(UserError, match=r"'1.jpg' of the run is ambiguous"):
        prepare(run_of(tmp_path / "run", ["1.jpg"]), path)


def test_other_folders_do_not_match(tmp_path: Path) -> None:
    """Equal base names in different folders are different photos."""
    path = write_coco(tmp_path, "gt", {"train/000000.jpg": TRUTH["000000.jpg"]})
    with pytest.raises(UserError, match=r"no image of .* is in the run"):
        prepare(run_of(tmp_path / "run", ["val/000000.jpg"]), path)


def test_truth_of_absent_images_is_counted_and_named(tmp_path: Path) -> None:
    prepared = prepare(run_of(tmp_path / "run", list(TRUTH)[:4]), write_coco(tmp_path, "gt", TRUTH))
    assert (prepared.images, prepared.absent) == (4, 2)
    assert prepared.absent_names == ["000004.jpg", "000005.jpg"]


def test_a_broken_or_missing_png_is_a_problem_of_its_image(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", TRUTH)
    (tmp_path / "gt/1.png").unlink()
    (tmp_path / "gt/2.png").write_bytes((tmp_path / "gt/2.png").read_bytes()[:500])
    prepared = prepare(run_of(tmp_path / "run", TRUTH), path)
    rows = rows_of(prepared, TRUTH)
    assert prepared.problems == 2
    assert rows["000000.jpg"]["problem"].endswith("gt/1.png is missing")
    assert rows["000001.jpg"]["problem"].startswith("2.png: it is a broken PNG")


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(np.zeros((2, 3), np.uint8)), "8-bit grey PNG"),
        (png(np.zeros((2, 3), np.uint16)), "16-bit grey PNG"),
        (b"GIF89a" + bytes(40), "not a PNG"),
        (b"", "not a PNG"),
        (png(np.full((90, 90, 3), 7, np.uint8))[:80], "broken PNG"),
    ],
    ids=["grey", "grey16", "gif", "empty", "half"],
)
def test_pngs_that_are_no_maps_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        read_png(data)


def test_ids_are_r_256g_65536b() -> None:
    rgb = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [255, 255, 255]]], np.uint8)
    expected = [[1, 256, 65536, 2**24 - 1]]
    assert read_png(png(rgb)).tolist() == expected
    alpha = np.concatenate([rgb, np.full((1, 4, 1), 7, np.uint8)], axis=2)
    assert read_png(png(alpha)).tolist() == expected
    assert read_png(write_png(np.array(expected))).tolist() == expected


def annotation(segments: list[tuple[int, int]], **fields: Any) -> dict[str, Any]:
    return {
        "hash": 1,
        "file_name": "a.jpg",
        "image_id": "7",
        "png": "a.png",
        "segment_id": [s[0] for s in segments],
        "category_id": [s[1] for s in segments],
        "iscrowd": [False] * len(segments),
        "area": [None] * len(segments),
        **fields,
    }


def test_absent_segments_and_unlisted_pixels_are_kept_apart() -> None:
    made = np.array([[5, 5, 0], [9, 8, 0]])
    row = row_of(annotation([(3, 1), (5, 2)], area=[4, 3]), write_png(made), truth=True)
    assert row["area"] == [0, 2]
    assert row["area_mismatches"] == 2
    assert row["counts"][0] == rle.empty_counts(2, 3)
    unlisted = rle.decode([row["unlisted_counts"]], 2, 3, ids=[1])
    assert (unlisted == [[0, 0, 0], [1, 1, 0]]).all()


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([(5, 1), (6, 1)], "segment 6 of image 7 is in the JSON but not in the PNG"),
        ([], "segment 5 of image 7 is in the PNG but not in the JSON"),
    ],
)
def test_predictions_must_agree_in_json_and_png(
    segments: list[tuple[int, int]], message: str
) -> None:
    row = row_of(annotation(segments), write_png(np.array([[5, 0]])), truth=False)
    assert row["problem"] == f"a.png: {message}"


def test_zero_listed_in_a_prediction_is_a_segment() -> None:
    row = row_of(annotation([(0, 1), (5, 1)]), write_png(np.array([[5, 0]])), truth=False)
    assert row["area"] == [1, 1]


# -- the JSON


def file_of(folder: Path, data: Any) -> CocoFile:
    path = folder / "x.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return CocoFile(str(path))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_streams_what_json_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(coco_panoptic, "CHUNK", chunk)
    data = {
        "info": {"a": [1, {"b": 'ü\\u00e9" ]}'}]},
        "n": 12345.5e-1,
        "images": [{"id": i, "file_name": f"{'ß' * i}.jpg"} for i in range(30)],
        "empty": [],
        "categories": [1, 23, "x", None, [2, [3]]],
    }
    text = json.dumps(data, ensure_ascii=False, indent=1)
    file = file_of(tmp_path, text)
    found: dict[str, Any] = {key: [] for key in ("images", "empty", "categories")}
    for key, value in file.items():
        if key in found:
            found[key].append(value)
        else:
            found[key] = value
    assert found == data


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{", '{"a"', '{"a": [1, 2', '{"a": [1 2]}', '{"a": 1} x', '{"a": tru}', "{1: 2}"],
)
def test_refuses_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"x.json is not a COCO JSON"):
        list(file_of(tmp_path, text).items())


def test_a_missing_json_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't read .*gone.json"):
        list(CocoFile(str(tmp_path / "gone.json")).items())


def segments_json(*segments: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 3, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 3, "file_name": "a.png", "segments_info": list(segments)}],
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (segments_json({"id": 0, "category_id": 1}), "segment 0 of image 3: id 0 is void"),
        (segments_json({"id": 2**24, "category_id": 1}), "segment 16777216 of image 3 must"),
        (segments_json({"id": "5", "category_id": 1}), "segment '5' of image 3 must have an id"),
        (segments_json({"id": 5}), "segment 5 of image 3 has no category_id"),
        ({"annotations": [{"id": 1, "bbox": []}]}, "an entry of annotations has no image_id"),
        ({"annotations": [{"image_id": 4, "segmentation": []}]}, "the annotation of image 4 must"),
        ({"images": [{"id": 4}]}, "image 4 has no file_name"),
    ],
)
def test_refuses_bad_entries_by_image_and_segment(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(panoptic(file_of(tmp_path, data), truth=True))


def test_of_repeated_segment_ids_the_last_wins_in_the_first_place(tmp_path: Path) -> None:
    twice = [(5, 1), (6, 2), (5, 3)]
    data = segments_json(*({"id": i, "category_id": c} for i, c in twice))
    rows = dict(panoptic(file_of(tmp_path, data), truth=True))
    row = rows["annotation"]
    assert isinstance(row, dict)
    assert (row["segment_id"], row["category_id"]) == ([5, 6], [3, 2])


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    path = write_coco(tmp_path, "gt", TRUTH)
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_of_repeated_annotations_the_last_wins(tmp_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        data["annotations"].append({**data["annotations"][1], "image_id": 1})

    prepared = prepare(run_of(tmp_path / "run", TRUTH), edited(tmp_path, edit))
    assert prepared.images == 6
    rows = rows_of(prepared, TRUTH)
    assert rows["000000.jpg"]["counts"] == rows["000001.jpg"]["counts"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.pop("categories"), "the label set is empty"),
        (lambda data: data["images"].pop(0), r"image 1 \(1.png\) has an annotation but is not in"),
        (lambda data: data.update(annotations=[]), "has no annotations"),
    ],
)
def test_refuses_a_json_that_says_too_little(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(run_of(tmp_path / "run", TRUTH), edited(tmp_path, edit))


def test_masks_may_lie_elsewhere(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", TRUTH)
    shutil.move(tmp_path / "gt", tmp_path / "elsewhere")
    run = run_of(tmp_path / "run", TRUTH)
    assert prepare(run, path, masks_url=str(tmp_path / "elsewhere")).problems == 0


def test_real_truth_is_read_exactly(tmp_path: Path, coco_val100: Path) -> None:
    """Areas, boxes and ids of COCO's own annotations, recounted from its PNGs."""
    path = coco_val100 / "panoptic_val2017.json"
    data = json.loads(path.read_text())
    names = [image["file_name"] for image in data["images"]][:40]
    prepared = prepare(run_of(tmp_path / "run", names, COCO_PANOPTIC), path)
    assert prepared.mismatched == 0
    by_id = {str(a["image_id"]): a["segments_info"] for a in data["annotations"]}
    for row in rows_of(prepared, names).values():
        expected = by_id[row["image_id"]]
        assert row["area"] == [s["area"] for s in expected]
        assert row["bbox"] == [s["bbox"] for s in expected]
        assert row["unlisted_counts"] is None


@pytest.mark.usefixtures("moto")
def test_truth_lies_on_s3_too(tmp_path: Path) -> None:
    write_coco(tmp_path, "gt", TRUTH)
    boto3.client("s3").create_bucket(Bucket="truths")
    bucket = Storage("s3://truths/coco")
    for path in [tmp_path / "gt.json", *(tmp_path / "gt").iterdir()]:
        bucket.write(str(path.relative_to(tmp_path)), path.read_bytes())
    run = run_of(tmp_path / "run", TRUTH)
    prepared = truth.prepare(
        run, "evaluation/0001/t", "s3://truths/coco/gt.json", convert=one_by_one
    )
    assert (prepared.images, prepared.problems) == (6, 0)
