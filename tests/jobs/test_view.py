"""`panoptic view` on a photo with weights, and on an image of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from detr.categories import COCO_PANOPTIC
from detr.panoptic import Panoptic, Segment
from jobs.view import view
from pipeline.errors import UserError
from tests.factories import MadeImage, publish_run
from tests.odd_files import picture
from tests.random_weights import write_tiny

app = typer.Typer()
app.command()(view)


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run `out` over two photos, one of them an error, and a photo that changed since."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a [1].png", "b.png", "changed.png"):
        Image.fromarray(picture()).save(photos / name)
    segment_map = np.ones(picture().shape[:2], np.uint8)
    segment_map[:, 40:] = 2
    segments = (Segment(1, 1, True, 0.99), Segment(2, 187, False, 0.9))
    result = Panoptic(segment_map, segments)
    smaller = Panoptic(segment_map[:-1], segments)
    images = [
        MadeImage("a [1].png", str(photos / "a [1].png"), result),
        MadeImage("b.png", str(photos / "b.png"), "truncated"),
        MadeImage("changed.png", str(photos / "changed.png"), smaller),
    ]
    publish_run(tmp_path / "out", images)
    return tmp_path


def test_an_image_of_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    call(str(folder / "out"), "a [1].png", "--no-labels")
    drawn = np.asarray(Image.open(folder / "a [1].panoptic.png"))
    assert drawn.shape == (480, 640, 3)
    person = np.array(COCO_PANOPTIC.by_id(1).color)
    expected = picture()[24, 20] * 0.5 + person * 0.5
    assert np.abs(drawn[245, 205] - expected).max() < 8  # enlarged by 10: the photo is smoothed
    printed = capsys.readouterr().out
    assert "person" in printed
    assert "62.5 %" in printed
    assert "a [1].panoptic.png" in printed


def test_a_photo_with_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, output = folder / "tiny.safetensors", folder / "seen.jpg"
    write_tiny(weights)
    photo = folder / "photos" / "b.png"
    call(str(photo), "--weights", str(weights), "--output", str(output), "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] == str(output)
    assert (facts["height"], facts["width"]) == picture().shape[:2]
    assert sum(segment["area"] for segment in facts["segments"]) in (0, picture()[..., 0].size)
    assert Image.open(output).format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out", "b.png"], "could not be segmented: made \\(truncated\\)"),
        (["out", "changed.png"], "changed since the run"),
        (["out", "absent.png"], "no image 'absent.png'"),
        (["out", "a [1].png", "--snapshot", "7"], "no snapshot 7"),
        (["photos", "a [1].png"], "not a run folder"),
        (["out", "a [1].png", "--weights", "r50"], "--weights is for a photo"),
        (["photos/b.png"], "--weights"),
        (["photos/none.png", "--weights", "r50"], "no such file"),
        (["run.txt", "--weights", "r50"], "not_an_image"),
        (["out", "a [1].png", "--output", "x.gif"], "must end in .png"),
    ],
)
def test_mistakes_are_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "run.txt").write_text("no picture")
    with pytest.raises(UserError, match=words):
        call(*arguments)
    assert not list(folder.glob("*.panoptic.png"))
