"""Scores under a map of categories are those of files that were relabelled by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detr.categories import Categories
from jobs.cli import run as panoptic
from pipeline.errors import UserError
from pipeline.evaluation.category_map import CategoryMap, read_map
from pipeline.evaluation.coco_files import evaluate_files
from pipeline.evaluation.compare import OtherTruthError, compare
from pipeline.run.snapshots import open_snapshot
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests.factories import Predicted, damaged, made_scenes, make_run, shard_row, write_coco

TRUTH = made_scenes(12)
# The model's own label set: other ids and names.
MODEL = Categories.from_json(
    [{**c, "id": c["id"] + 100, "name": f"my {c['name']}"} for c in SCENE_CATEGORIES.to_json()]
)
MAP = """
[truth]
tent = "box"
crate = "box"
star = ""
grass = "ground"
sand = "ground"

[model]
"my ball" = "ball"
"my crate" = "box"
"my tent" = "box"
"my cross" = "cross"
"my sky" = "sky"
"my water" = "water"
"my grass" = "ground"
"my sand" = "ground"
"*" = ""
"""
BY_HAND = {  # what MAP makes of the names of the truth, and of the model without their "my "
    "ball": "ball", "crate": "box", "tent": "box", "cross": "cross", "sky": "sky",
    "water": "water", "grass": "ground", "sand": "ground",
}  # fmt: skip
STUFF = ("sky", "water", "ground")


def predicted() -> dict[str, Predicted]:
    """In the model's own ids."""
    found = {}
    for number, (name, true) in enumerate(TRUTH.items()):
        segment_map, segments = damaged(true, number)
        found[name] = (
            segment_map,
            [{**segment, "category_id": segment["category_id"] + 100} for segment in segments],
        )
    return found


def relabelled(images: dict[str, Predicted], names: dict[int, str]) -> dict[str, Predicted]:
    """By hand: pixels of what is left out are void, stuff that is merged has one id."""
    ids = {name: number for number, name in enumerate(dict.fromkeys(BY_HAND.values()), 1)}
    found = {}
    for name, (segment_map, segments) in images.items():
        own, listed, stuff = segment_map.copy(), [], {}
        for segment in segments:
            new = BY_HAND.get(names[segment["category_id"]])
            here = segment_map == segment["id"]
            if new is None:
                own[here] = 0
            elif new in stuff:
                own[here] = stuff[new]
            else:
                listed.append({"id": segment["id"], "category_id": ids[new]})
                if new == "ground":
                    stuff[new] = segment["id"]
        found[name] = (own, listed)
    return found


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("by-hand")
    names = {c.id: c.name for c in SCENE_CATEGORIES}
    common = Categories.from_json(
        [
            {"id": number, "name": name, "isthing": int(name not in STUFF)}
            for number, name in enumerate(dict.fromkeys(BY_HAND.values()), 1)
        ]
    )
    model_names = {number + 100: name for number, name in names.items()}
    truth = write_coco(folder, "gt", relabelled(TRUTH, names), categories=common)
    mine = write_coco(folder, "pred", relabelled(predicted(), model_names), categories=common)
    return evaluate_files(str(mine), str(truth))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """(predictions, truth, map) with the label set that each side has."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "fewer.toml").write_text(MAP)
    return (
        str(write_coco(folder, "pred", predicted(), categories=MODEL)),
        str(write_coco(folder, "gt", TRUTH)),
        str(folder / "fewer.toml"),
    )


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the ids of the common label set, nor on the order of its classes."""
    classes = {
        entry["name"]: {count: entry[count] for count in ("pq", "sq", "tp", "fp", "fn")}
        for entry in result["per_class"].values()
    }
    groups = {group: result[group] for group in ("All", "Things", "Stuff")}
    return json.loads(json.dumps({"classes": classes, **groups}), parse_float=_rounded)


def _rounded(text: str) -> float:
    """The mean of classes in another order differs in the last bit."""
    return round(float(text), 12)


def test_files_score_as_if_they_had_been_relabelled(
    files: tuple[str, str, str], by_hand: dict[str, Any]
) -> None:
    mine, truth, table = files
    result = evaluate_files(mine, truth, map_categories=table)
    assert figures(result) == figures(by_hand)
    assert 0.2 < result["All"]["pq"] < 0.9  # nothing trivial


@pytest.mark.usefixtures("ray_session")
def test_a_run_scores_as_if_it_had_been_relabelled_and_is_compared_with_its_like_alone(
    files: tuple[str, str, str],
    by_hand: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, truth, table = files
    rows = {name: shard_row(name, own) for name, own in predicted().items()}
    run = make_run(tmp_path / "a", rows, categories=MODEL)
    out = run.storage.url
    assert panoptic(["evaluate", out, "--truth", truth]) == 2
    assert "doesn't have" in capsys.readouterr().err
    assert panoptic(["evaluate", out, "--truth", truth, "--map-categories", table, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["name"], figures(result)) == ("gt-fewer", figures(by_hand))

    page = tmp_path / "page.html"
    assert panoptic(["report", out, "--output", str(page)]) == 0
    assert all(name in page.read_text() for name in ("ground", "box"))
    assert "my grass" not in page.read_text()

    assert panoptic(["compare", out, out]) == 0
    other = tmp_path / "b"
    shutil.copytree(tmp_path / "a", other)
    file = other / "evaluation/0001/gt-fewer/pq.json"
    changed = json.loads(file.read_text())
    changed["category_map"]["names"]["model"]["my ball"] = ""
    for kept in (changed, {k: v for k, v in changed.items() if k != "category_map"}):
        file.write_text(json.dumps(kept))
        with pytest.raises(OtherTruthError, match="different --map-categories"):
            compare(open_snapshot(out), open_snapshot(str(other)))


def test_two_label_sets_are_compared_by_the_one_that_a_file_makes_of_them(
    files: tuple[str, str, str],
) -> None:
    maps = [
        read_map(files[2], truth=SCENE_CATEGORIES, model=model).identity("t")
        for model in (MODEL, Categories(reversed(list(MODEL))))
    ]
    assert maps[0] == maps[1] != "t"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[truth]\ntrees = "x"', "the truth has no category 'trees'; nearest are"),
        ('[model]\n"my bal" = "ball"', "has no category 'my bal'; nearest are 'my ball'"),
        ('[truth]\nball = "sky"', "'sky' is made of things and of stuff of the truth"),
        ('[model]\n"my sky" = "ball"\n"*" = ""', "'my sky' is stuff of the model"),
        ('[model]\n"my ball" = "ball"', "the truth has no 'my crate', 'my tent'"),
        ('[truth]\n"*" = ""', "leaves out every category of the truth"),
        ("[truths]\n", "'truths' is neither the table"),
        ("[truth]\nball = 3", "must be a name"),
        ("[truth", "can't be read as TOML"),
    ],
)
def test_a_map_that_can_t_be_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "map.toml"
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        read_map(str(path), truth=SCENE_CATEGORIES, model=MODEL)
    assert sentence in str(refused.value)
    assert "--map-categories" in str(refused.value)


def test_a_map_is_read_back_from_an_evaluation(files: tuple[str, str, str]) -> None:
    made = read_map(files[2], truth=SCENE_CATEGORIES, model=MODEL)
    again = CategoryMap.of_result({"category_map": json.loads(json.dumps(made.to_json()))})
    assert again == made
    assert CategoryMap.of_result({}) is None


def test_a_mask_that_is_none_is_left_for_the_scoring_to_name(files: tuple[str, str, str]) -> None:
    made = read_map(files[2], truth=SCENE_CATEGORIES, model=MODEL)
    segment_map = np.repeat(np.array([[1, 2]]), 4, axis=0)
    segments = [{"id": 1, "category_id": 107}, {"id": 2, "category_id": 109}]  # grass, sand
    whole = shard_row("a", (segment_map, segments))
    assert made.row(whole, "model")["area"] == [8]
    broken = {**whole, "counts": [whole["counts"][0], "0" * 50]}
    assert made.row(broken, "model")["segment_id"] == [1, 2]
