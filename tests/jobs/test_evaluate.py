"""The evaluate verb: through shards and through COCO files, for people and for machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr.categories import COCO_PANOPTIC
from jobs.cli import run as panoptic
from pipeline.evaluation.coco_files import evaluate_files
from pipeline.evaluation.truth_png import read_png
from pipeline.panoptic.score import InvalidError
from tests.factories import damaged, made_scenes, make_run, shard_row, write_coco
from tests.servers import S3Server

TRUTH = made_scenes(8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(predictions, truth) as COCO files."""
    folder = tmp_path_factory.mktemp("files")
    predicted = {name: damaged(true, i) for i, (name, true) in enumerate(TRUTH.items())}
    return str(write_coco(folder, "pred", predicted)), str(write_coco(folder, "gt", TRUTH))


def test_prints_tables_for_people(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert panoptic(["evaluate", "--predictions", files[0], "--truth", files[1]]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == ["All", "Things", "Stuff"]
    assert "8 images scored" in printed
    assert "tent" in printed


def test_prints_one_json_object_for_machines(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert panoptic(["evaluate", "--predictions", files[0], "--truth", files[1], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["All"]) >= {"pq", "sq", "rq", "n"}
    assert set(result["per_class"]["1"]) >= {"pq", "sq", "rq", "iou", "tp", "fp", "fn"}
    assert result["images"]["scored"] == 8


def test_files_in_a_bucket_are_read_with_its_options(
    files: tuple[str, str],
    moto: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moto.client().create_bucket(Bucket="data")
    folder = Path(files[1]).parent
    for path in folder.rglob("*.*"):
        moto.client().upload_file(str(path), "data", str(path.relative_to(folder)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # only the option says where
    words = ["--predictions", "s3://data/pred.json", "--truth", "s3://data/gt.json", "--json"]
    assert panoptic(["evaluate", *words, "--source-option", f"endpoint_url={moto.url}"]) == 0
    assert json.loads(capsys.readouterr().out)["images"]["scored"] == 8


@pytest.mark.usefixtures("ray_session")
def test_scores_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {name: shard_row(name, true) for name, true in TRUTH.items()}
    rows["without truth.jpg"] = shard_row("without truth.jpg", TRUTH["000000.jpg"])
    rows["000001.jpg"] = shard_row("000001.jpg", "truncated")
    run = make_run(tmp_path / "run", rows)
    truth = write_coco(tmp_path, "gt", TRUTH)
    assert panoptic(["evaluate", run.storage.url, "--truth", str(truth), "--name", "mine"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "7 images scored" in printed
    assert "1 image failed, scored as missing all of their truth: 000001.jpg" in printed
    assert "1 image without ground truth: without truth.jpg" in printed
    folder = tmp_path / "run/evaluation/0001/mine"
    assert {entry.name for entry in folder.iterdir()} == {
        "truth",
        "per_image",
        "per_class.parquet",
        "pq.json",
    }
    again = ["evaluate", run.storage.url, "--truth", str(folder / "truth"), "--json"]
    assert panoptic(again) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "mine"


@pytest.mark.usefixtures("ray_session")
def test_real_truth_as_predictions_is_perfect(tmp_path: Path, coco_val100: Path) -> None:
    """COCO's own annotations scored as a run's shards and as COCO files: PQ 1, 28 without truth."""
    path = coco_val100 / "panoptic_val2017.json"
    data = json.loads(path.read_text())
    names = {image["id"]: image["file_name"] for image in data["images"]}
    rows: dict[str, dict[str, Any]] = {}
    for entry in data["annotations"]:
        segment_map = read_png((path.with_suffix("") / entry["file_name"]).read_bytes())
        segments = [s for s in entry["segments_info"] if not s["iscrowd"]]
        name = names[entry["image_id"]]
        rows[name] = shard_row(name, (segment_map, segments))
    for photo in sorted((coco_val100 / "images").iterdir()):
        rows.setdefault(photo.name, shard_row(photo.name, (np.zeros((4, 4), np.uint8), [])))
    run = make_run(tmp_path, rows, categories=COCO_PANOPTIC, per_shard=16)
    assert panoptic(["evaluate", run.storage.url, "--truth", str(path)]) == 0
    result = json.loads((tmp_path / "evaluation/0001/panoptic_val2017/pq.json").read_text())
    assert (result["images"]["scored"], result["images"]["without_truth"]) == (100, 28)
    for scored in (result, evaluate_files(str(path), str(path))):
        assert {scored[group]["pq"] for group in ("All", "Things", "Stuff")} == {1.0}
        live = [c for c in scored["per_class"].values() if c["tp"] + c["fp"] + c["fn"]]
        assert all(c["pq"] == 1.0 for c in live)
        assert sum(c["tp"] for c in live) > 1000


def drop_annotation(data: dict[str, Any], masks: Path) -> None:
    data["annotations"].pop(2)


def unlist_segment(data: dict[str, Any], masks: Path) -> None:
    data["annotations"][2]["segments_info"].pop(0)


def add_segment(data: dict[str, Any], masks: Path) -> None:
    data["annotations"][2]["segments_info"].append({"id": 77, "category_id": 1})


def other_category(data: dict[str, Any], masks: Path) -> None:
    data["annotations"][2]["segments_info"][0]["category_id"] = 500


def other_size(data: dict[str, Any], masks: Path) -> None:
    shutil.copy(masks / "1.png", masks / "3.png")
    data["annotations"][2]["segments_info"] = data["annotations"][0]["segments_info"]


def no_png(data: dict[str, Any], masks: Path) -> None:
    (masks / "3.png").unlink()


Edit = Callable[[dict[str, Any], Path], None]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop_annotation, "image id 3 has no prediction"),
        (unlist_segment, "of image 3 is in the PNG but not in the JSON"),
        (add_segment, "segment 77 of image 3 is in the JSON but not in the PNG"),
        (other_category, "its category 500 is not in the truth's categories"),
        (other_size, "(height x width), the truth"),
        (no_png, "3.png is missing"),
    ],
)
def test_what_panopticapi_refuses_is_named_and_the_rest_scored(
    tmp_path: Path, edit: Edit, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = write_coco(tmp_path, "gt", TRUTH)
    path = write_coco(tmp_path, "pred", TRUTH)
    data = json.loads(path.read_text())
    edit(data, tmp_path / "pred")
    path.write_text(json.dumps(data))
    code = panoptic(["evaluate", "--predictions", str(path), "--truth", str(truth), "--json"])
    captured = capsys.readouterr()
    assert code == 2
    assert words in captured.err
    assert "image '000002.jpg'" in captured.err
    result = json.loads(captured.out)
    assert (result["images"]["scored"], result["images"]["invalid"]) == (7, 1)
    assert result["All"]["pq"] == 1.0


def test_a_prediction_without_truth_is_ignored(tmp_path: Path) -> None:
    truth = write_coco(tmp_path, "gt", {name: TRUTH[name] for name in list(TRUTH)[:5]})
    result = evaluate_files(str(write_coco(tmp_path, "pred", TRUTH)), str(truth))
    assert (result["images"]["scored"], result["images"]["without_truth"]) == (5, 3)


def test_two_images_may_have_one_name(tmp_path: Path) -> None:
    path = write_coco(tmp_path, "gt", TRUTH)
    data = json.loads(path.read_text())
    for image in data["images"]:
        image["file_name"] = "frame.jpg"
    path.write_text(json.dumps(data))
    assert evaluate_files(str(path), str(path))["images"]["scored"] == 8


def test_crowds_listed_as_predictions_are_no_error(tmp_path: Path) -> None:
    truth = {
        name: (segment_map, [{**s, "iscrowd": int(k == 0)} for k, s in enumerate(segments)])
        for name, (segment_map, segments) in TRUTH.items()
    }
    path = str(write_coco(tmp_path, "gt", truth))
    result = evaluate_files(path, path)
    assert result["All"]["pq"] == 1.0
    matched = sum(c["tp"] for c in result["per_class"].values())
    assert matched == sum(len(segments) - 1 for _, segments in truth.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out"], "--truth is missing"),
        (["--truth", "x.json"], "give either a run folder OUT or --predictions"),
        (["out", "--truth", "x.json", "--predictions", "p.json"], "give either a run folder"),
        (["--predictions", "p.json", "--truth", "x.json", "--snapshot", "1"], "--snapshot has no"),
        (["--predictions", "p.json", "--truth", "x.json", "--follow"], "--follow has no meaning"),
        (["out", "--truth", "x.json"], "out is not a run folder"),
        (["--predictions", "gone.json", "--truth", "gone.json"], "can't read"),
        (["--predictions", "p.json", "--truth", "x.zip"], "x.zip is not a panoptic JSON by its"),
    ],
)
def test_wrong_use_is_a_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert panoptic(["evaluate", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_error_carries_the_figures(tmp_path: Path) -> None:
    truth = write_coco(tmp_path, "gt", TRUTH)
    path = write_coco(tmp_path, "pred", {name: TRUTH[name] for name in list(TRUTH)[:6]})
    with pytest.raises(InvalidError) as caught:
        evaluate_files(str(path), str(truth))
    assert caught.value.result["named"]["without_prediction"] == ["000006.jpg", "000007.jpg"]
    assert "(and 1 more" in str(caught.value)
