"""`panoptic scenes`: a dataset that the other verbs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import run
from pipeline.train.synthetic import SCENE_CATEGORIES


def test_writes_a_coco_panoptic_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scenes"
    assert run(["scenes", str(folder), "--images", "3", "--broken", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    truth = json.loads(Path(said["truth"]).read_text())
    assert [image["file_name"] for image in truth["images"]] == [f"00000{i}.jpg" for i in range(3)]
    assert truth["categories"] == SCENE_CATEGORIES.to_json()
    assert len(list((folder / "images").iterdir())) == 5
    assert all((folder / "panoptic" / a["file_name"]).exists() for a in truth["annotations"])


def test_a_folder_with_files_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["scenes", str(tmp_path)]) == 2
    assert "is not empty: name a new one" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
