"""`panoptic export` as it is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer

from detr.panoptic import Panoptic, Segment
from jobs.export import export
from pipeline.errors import UserError
from tests.factories import MadeImage, publish_run

app = typer.Typer()
app.command()(export)


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    result = Panoptic(np.ones((4, 6), np.uint8), (Segment(1, 1, True, 0.9),))
    names = ["1.jpg", "2.jpg", "3.jpg"]
    images = [MadeImage(name, name, result) for name in names]
    publish_run(tmp_path / "out", [*images, MadeImage("4.jpg", "4.jpg", "corrupt")])
    return tmp_path


def test_counts_in_words_and_in_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(str(folder / "out"), str(folder / "p.json"))
    printed = capsys.readouterr().out
    assert "3 images, 3 segments" in printed
    assert "1 image failed in the run: left out" in printed
    call(str(folder / "out"), str(folder / "i.json"), "--format", "instances", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["segments"], facts["errors"]) == (3, 3, 1)


def test_names_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "names.txt").write_text("\ufeff1.jpg\n3.jpg\n")  # as editors of Windows write it
    call(str(folder / "out"), str(folder / "p.json"), "--files", f"@{folder / 'names.txt'}")
    assert {i["id"] for i in json.loads((folder / "p.json").read_text())["images"]} == {1, 3}
    with pytest.raises(UserError, match="can't be read as a list"):
        call(str(folder / "out"), str(folder / "q.json"), "--files", "@absent.txt")
