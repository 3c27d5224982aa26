"""`--categories FILE`: the list, or any COCO JSON that has one; else a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detr.models.detr import DetrPanoptic
from pipeline.errors import UserError
from pipeline.segmentation.model_spec import ModelSpec, read_categories
from tests.random_weights import tiny_config

LISTED = [{"id": 7, "name": "leaf"}, {"id": 9, "name": "soil", "isthing": 0}]


@pytest.mark.parametrize(
    "content",
    [LISTED, {"categories": LISTED}, {"images": [{"id": 1}], "categories": LISTED, "info": {}}],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_and_a_whole_json_are_the_same(tmp_path: Path, content: object, mark: bytes) -> None:
    (tmp_path / "c.json").write_bytes(mark + json.dumps(content).encode())
    labels = read_categories(str(tmp_path / "c.json"))
    assert [(c.id, c.name, c.isthing) for c in labels] == [(7, "leaf", True), (9, "soil", False)]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"[]", b"{}", b"caf\xe9", b'[{"id": 1}]', b"\xff\xfe[\0]\0"]
)
def test_whatever_is_no_label_set_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(UserError, match="--categories") as caught:
        read_categories(str(tmp_path / "c.json"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_categories(str(tmp_path / "none.json"))


def test_an_upstream_file_with_own_classes_takes_them(tmp_path: Path) -> None:
    weights = tmp_path / "own.pth"
    sizes = {"hidden_dim": 128, "nheads": 8, "mask_groups": 8, "num_classes": 2}
    model = DetrPanoptic(replace(tiny_config(), **sizes))
    torch.save({"model": model.state_dict()}, weights)
    (tmp_path / "c.json").write_text(json.dumps(LISTED))
    spec = ModelSpec(*("detr:load", str(weights), "fp32", 0.5, 1, "cpu"))
    with pytest.raises(ValueError, match="--categories"):
        spec.describe()
    named = ModelSpec(
        *("detr:load", str(weights), "fp32", 0.5, 1, "cpu"), categories=str(tmp_path / "c.json")
    )
    assert [category.name for category in named.describe().categories] == ["leaf", "soil"]
