"""Exports read back by the tools they are for: PIL and COCO's colour rule, and pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detr.categories import COCO_PANOPTIC
from detr.panoptic import Panoptic, Segment
from pipeline.errors import UserError
from pipeline.evaluation.coco_files import evaluate_files
from pipeline.report.coco_writer import ImageIds, json_lists
from pipeline.report.export import export_run
from pipeline.run.run import Run
from tests.factories import MadeImage, publish_run

NAMES = [f"val/{number:012d}.jpg" for number in (139, 285, 7, 1000, 42)]
BROKEN = "val/000000000099.jpg"


def panoptic(seed: int) -> Panoptic:
    """Four segments and void; the last is a second person."""
    rng = np.random.default_rng(seed)
    segment_map = np.kron(rng.integers(0, 5, (5, 6)), np.ones((7, 9), int)).astype(np.uint8)
    segment_map[0, :5] = range(5)
    kinds = [(1, True), (187, False), (3, True), (1, True)]
    return Panoptic(
        segment_map,
        tuple(
            Segment(k, category_id, isthing, 0.5 + k / 8)
            for k, (category_id, isthing) in enumerate(kinds, start=1)
        ),
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    images = [MadeImage(name, name, panoptic(seed)) for seed, name in enumerate(NAMES)]
    return publish_run(
        tmp_path / "out", [*images, MadeImage(BROKEN, BROKEN, "truncated")], shards=3
    )


def truth_of(names: dict[int, str], **size: int) -> dict[str, Any]:
    return {"images": [{"id": i, "file_name": name, **size} for i, name in names.items()]}


def written(path: Path, truth: dict[str, Any]) -> str:
    path.write_text(json.dumps(truth))
    return str(path)


def read_masks(target: Path) -> dict[int, np.ndarray[Any, Any]]:
    """Image id -> id map, by COCO's rule: id = R + 256 G + 256^2 B."""
    coco = json.loads(target.read_text())
    maps = {}
    for annotation in coco["annotations"]:
        rgb = np.asarray(Image.open(target.with_suffix("") / annotation["file_name"]))
        maps[annotation["image_id"]] = rgb.astype(np.int64) @ np.array([1, 256, 65536])
        assert set(np.unique(maps[annotation["image_id"]])) - {0} == {
            segment["id"] for segment in annotation["segments_info"]
        }
    return maps


def test_panoptic_files_hold_the_same_maps(run: Run, tmp_path: Path) -> None:
    done = export_run(run, tmp_path / "coco" / "pred.json")
    assert (done.images, done.segments, done.errors) == (5, 20, 1)
    maps = read_masks(tmp_path / "coco" / "pred.json")
    assert set(maps) == {139, 285, 7, 1000, 42}
    coco = json.loads((tmp_path / "coco" / "pred.json").read_text())
    assert coco["categories"] == COCO_PANOPTIC.to_json()
    for seed, name in enumerate(NAMES):
        expected = panoptic(seed)
        number = int(Path(name).stem)
        np.testing.assert_array_equal(maps[number], expected.segment_map)
        [annotation] = [a for a in coco["annotations"] if a["image_id"] == number]
        for info, segment in zip(annotation["segments_info"], expected.segments, strict=True):
            inside = expected.segment_map == segment.id
            rows, columns = np.nonzero(inside)
            x, y = int(columns.min()), int(rows.min())
            assert info["category_id"] == segment.category_id
            assert info["area"] == inside.sum()
            assert info["bbox"] == [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            assert info["iscrowd"] == 0
        [image] = [i for i in coco["images"] if i["id"] == number]
        assert (image["height"], image["width"]) == expected.segment_map.shape


def test_instances_load_in_pycocotools(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "things.json"
    export_run(run, target, format="instances")
    coco = COCO(str(target))
    assert {category["id"] for category in coco.loadCats(coco.getCatIds())} == {
        category.id for category in COCO_PANOPTIC if category.isthing
    }
    for seed, name in enumerate(NAMES):
        expected = panoptic(seed)
        annotations: list[Any] = coco.loadAnns(coco.getAnnIds(imgIds=[int(Path(name).stem)]))
        assert [a["score"] for a in annotations] == [0.625, 0.875, 1.0]
        for annotation, number in zip(annotations, (1, 3, 4), strict=True):
            expected_mask = (expected.segment_map == number).astype(np.uint8)
            np.testing.assert_array_equal(coco.annToMask(annotation), expected_mask)
            assert annotation["area"] == expected_mask.sum()
    assert len(set(coco.anns)) == 15


def test_results_load_as_results(run: Run, tmp_path: Path) -> None:
    export_run(run, tmp_path / "things.json", format="instances")
    export_run(run, tmp_path / "results.json", format="results")
    results = COCO(str(tmp_path / "things.json")).loadRes(str(tmp_path / "results.json"))
    assert len(results.anns) == 15
    for annotation in results.anns.values():
        assert results.annToMask(annotation).sum() == annotation["area"]


def test_ids_come_from_the_truth_and_failures_become_void(run: Run, tmp_path: Path) -> None:
    names = {1: "000000000139.jpg", 2: Path(BROKEN).name, 3: "000000000555.jpg"}
    truth = truth_of(names, height=35, width=54)
    ids = ImageIds.of_truth(written(tmp_path / "truth.json", truth))
    done = export_run(run, tmp_path / "pred.json", ids=ids)
    assert (done.images, done.errors, done.without_truth, done.without_prediction) == (2, 1, 4, 1)
    maps = read_masks(tmp_path / "pred.json")
    np.testing.assert_array_equal(maps[1], panoptic(0).segment_map)
    assert not maps[2].any()
    assert maps[2].shape == (35, 54)


def test_limit_and_files_choose(run: Run, tmp_path: Path) -> None:
    done = export_run(run, tmp_path / "two.json", format="results", limit=2)
    assert done.images == 2
    chosen = [NAMES[2], NAMES[4]]
    export_run(run, tmp_path / "chosen.json", file_names=chosen)
    assert set(read_masks(tmp_path / "chosen.json")) == {7, 42}
    with pytest.raises(UserError, match="no image 'absent'"):
        export_run(run, tmp_path / "none.json", file_names=[NAMES[2], "absent"])
    assert not (tmp_path / "none.json").exists()


def test_one_shard_at_a_time_is_held(run: Run, tmp_path: Path) -> None:
    """With a limit, shards behind the last one needed are never read."""
    last = run.snapshot().shards[-1]
    run.storage.delete(last.path)
    export_run(run, tmp_path / "one.json", format="results", limit=1)
    with pytest.raises(UserError, match="is missing"):
        export_run(run, tmp_path / "all.json", format="results")
    assert list(tmp_path.glob("*.json")) == [tmp_path / "one.json"]
    assert not list(tmp_path.glob(".*"))


def one(tmp_path: Path, *names: str) -> Run:
    return publish_run(tmp_path / "one", [MadeImage(name, name, panoptic(0)) for name in names])


def test_names_that_give_no_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--truth"):
        export_run(one(tmp_path / "a", "holiday.jpg"), tmp_path / "x.json")
    twins = one(tmp_path / "b", "a/5.jpg", "b/05.jpg")
    with pytest.raises(UserError, match="2 images have the COCO id 5"):
        export_run(twins, tmp_path / "x.json", format="results")
    assert not (tmp_path / "x.json").exists()


def test_a_truth_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    other_size = truth_of({1: "000000000139.jpg"}, height=10, width=10)
    ids = ImageIds.of_truth(written(tmp_path / "size.json", other_size))
    with pytest.raises(UserError, match="54 x 35 in the run and 10 x 10 in the truth"):
        export_run(run, tmp_path / "x.json", ids=ids)
    twins = truth_of({1: "a/000000000139.jpg", 2: "b/000000000139.jpg"})
    ids = ImageIds.of_truth(written(tmp_path / "twins.json", twins))
    with pytest.raises(UserError, match="must tell them apart"):
        export_run(run, tmp_path / "x.json", ids=ids)
    with pytest.raises(UserError, match="no COCO JSON"):
        ImageIds.of_truth(written(tmp_path / "list.json", {"a": 1}))


@pytest.mark.parametrize(
    ("target", "words"),
    [("s3://bucket/p.json", "local"), ("p.txt", "end in .json"), ("taken.json", "exists already")],
)
def test_targets_that_can_t_be_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("mine")
    with pytest.raises(UserError, match=words):
        export_run(run, target)
    assert (tmp_path / "taken.json").read_text() == "mine"


def test_json_lists_are_json(tmp_path: Path) -> None:
    for members in ({}, {"info": {"a": 1}}):
        target = tmp_path / f"{len(members)}.json"
        with json_lists(target, members, ["x", "y"]) as lists:
            lists.append("x", {"id": 1})
            lists.append("x", {"id": 2})
        assert json.loads(target.read_text()) == {**members, "x": [{"id": 1}, {"id": 2}], "y": []}
    with json_lists(tmp_path / "bare.json", None, ["x"]) as lists:
        lists.append("x", {"id": 1})
    assert json.loads((tmp_path / "bare.json").read_text()) == [{"id": 1}]


def test_an_export_scores_one_against_itself(run: Run, tmp_path: Path) -> None:
    target = str(tmp_path / "pred.json")
    export_run(run, target)
    result = evaluate_files(target, target)
    assert result["All"]["pq"] == result["Things"]["pq"] == result["Stuff"]["pq"] == 1.0
    assert result["images"]["scored"] == 5
