"""The label set of a Hugging Face folder: its own names, and COCO's only where it says them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detr.categories import COCO_PANOPTIC
from detr.config import ModelError
from detr.weights.hf_labels import COCO_CLASSES, own_labels

COCO_NAMES = {category.id: category.name for category in COCO_PANOPTIC}


def folder(path: Path, names: dict[int, str] | None, **metadata: Any) -> Path:
    content = {"id2label": {str(k): v for k, v in names.items()}} if names is not None else {}
    (path / "config.json").write_text(json.dumps(content))
    (path / "preprocessor_config.json").write_text(json.dumps(metadata))
    return path


def test_own_classes_go_by_their_names(tmp_path: Path) -> None:
    labels = own_labels(folder(tmp_path, {0: "leaf", 1: "stem", 2: "soil"}), 3)
    assert labels is not None
    assert [(c.id, c.name, c.isthing) for c in labels] == [
        (0, "leaf", True),
        (1, "stem", True),
        (2, "soil", True),
    ]
    assert labels.class_ids(3) == (0, 1, 2)


@pytest.mark.parametrize(
    "names",
    [
        {i: f"LABEL_{i}" for i in range(COCO_CLASSES)},
        {i: COCO_NAMES.get(i, f"LABEL_{i}") for i in range(COCO_CLASSES)},
        {i: COCO_NAMES.get(i, "N/A") for i in range(COCO_CLASSES)},
        {i: name.removesuffix("-merged") for i, name in COCO_NAMES.items()},
        None,
        {},
    ],
)
def test_coco_s_names_are_coco_s(tmp_path: Path, names: dict[int, str] | None) -> None:
    assert own_labels(folder(tmp_path, names), COCO_CLASSES) is None


@pytest.mark.parametrize(
    "names",
    [
        {i: f"part_{i}" for i in range(COCO_CLASSES)},
        {**COCO_NAMES, 1: "worker"},
        {**COCO_NAMES, 12: "a class where COCO has none"},
        {0: "cat", 1: "dog"},
    ],
)
def test_other_names_are_never_coco_s(tmp_path: Path, names: dict[int, str]) -> None:
    labels = own_labels(folder(tmp_path, names), COCO_CLASSES)
    assert labels is not None
    assert {c.id: c.name for c in labels} == names
    assert labels.class_ids(COCO_CLASSES)[1] == 1


@given(
    st.dictionaries(st.integers(0, COCO_CLASSES - 1), st.sampled_from(["a", "person", "LABEL_3"]))
)
@settings(max_examples=50, deadline=None)
def test_a_class_is_called_as_the_folder_says_or_the_set_is_coco_s(
    tmp_path_factory: pytest.TempPathFactory, names: dict[int, str]
) -> None:
    labels = own_labels(folder(tmp_path_factory.mktemp("hf"), names), COCO_CLASSES)
    if labels is None:
        said = {i: name for i, name in names.items() if not name.startswith("LABEL_")}
        assert all(COCO_NAMES.get(i) == name for i, name in said.items())
    else:
        assert all(names[category.id] == category.name for category in labels)


@pytest.mark.parametrize(
    "metadata",
    [
        {"thing_ids": [0]},
        {"thing_ids": [0.0]},
        {"thing_ids": ["0"]},
        {"thing_ids": None, "label_ids_to_fuse": ["1", "2"]},
        {"metadata": {"thing_ids": [0]}},
        {"label_ids_to_fuse": [1, 2]},
    ],
)
def test_metadata_says_what_is_a_thing(tmp_path: Path, metadata: dict[str, Any]) -> None:
    labels = own_labels(folder(tmp_path, {0: "car", 1: "road", 2: "wall"}, **metadata), 3)
    assert labels is not None
    assert [category.isthing for category in labels] == [True, False, False]


@pytest.mark.parametrize("listed", [["car"], [0.5], [True], {"0": "car"}, "0,1", 0])
@pytest.mark.parametrize("key", ["thing_ids", "label_ids_to_fuse"])
def test_a_list_of_things_that_is_none_is_refused(tmp_path: Path, key: str, listed: object) -> None:
    with pytest.raises(ModelError, match=rf"{key} must be a list of class indices.*--categories"):
        own_labels(folder(tmp_path, {0: "car", 1: "road"}, **{key: listed}), 2)


@pytest.mark.parametrize(
    "config",
    [
        {"id2label": ["leaf", "stem"]},
        {"label2id": {"leaf": 0, "stem": 1}},
        {"id2label": None, "label2id": {"leaf": "0", "stem": "1"}},
        {"id2label": {"0": "leaf", "1": "stem", "2": "N/A"}},
    ],
)
def test_names_in_other_forms(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    labels = own_labels(tmp_path, 2)
    assert labels is not None
    assert {category.id: category.name for category in labels} == {0: "leaf", 1: "stem"}


@pytest.mark.parametrize(
    "id2label",
    [
        {str(i): i for i in range(COCO_CLASSES)},
        {f"part {i}": str(i) for i in range(COCO_CLASSES)},
        {str(i + 1): f"part {i}" for i in range(COCO_CLASSES)},
        "part",
    ],
)
def test_names_that_can_t_be_read_are_not_coco_s(tmp_path: Path, id2label: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": id2label}))
    with pytest.raises(ModelError, match=r"id2label names no class.*--categories"):
        own_labels(tmp_path, COCO_CLASSES)


def test_odd_config_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {}}')
    (tmp_path / "preprocessor_config.json").write_text("no JSON")
    assert own_labels(tmp_path, 2) is None
    assert own_labels(tmp_path / "none", 2) is None
