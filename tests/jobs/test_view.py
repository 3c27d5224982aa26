"""`panoptic view` on a photo with weights, and on one image or several of a run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from detr.categories import COCO_PANOPTIC
from detr.panoptic import Panoptic, Segment
from jobs.view import view
from pipeline.errors import UserError
from pipeline.run.run import open_run
from tests.factories import (
    MadeImage,
    evaluate_rows,
    made_scenes,
    make_run,
    publish_run,
    shard_row,
)
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
    expected = picture()[24, 20] * 0.65 + person * 0.35  # its own colours prevail
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


def test_several_images_are_files_and_one_contact_sheet(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    photos = many_photos(folder)
    names = ["0.png", "sub/0.png", "sub_0.png"]
    call(str(photos), *names, "--folder", "seen", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert [image["file_name"] for image in facts["images"]] == names
    files = ["0.panoptic.png", "sub_0.panoptic.png", "sub_0-2.panoptic.png"]
    assert [image["output"] for image in facts["images"]] == [f"seen/{file}" for file in files]
    assert {path.name for path in (folder / "seen").iterdir()} == {*files, "contact-sheet.jpg"}
    sheet = Image.open(facts["contact_sheet"])
    assert sheet.width > 3 * 320
    assert sheet.height < 2 * 320


def test_images_at_random_are_segmented_ones_and_the_same_for_a_seed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = many_photos(folder)

    def drawn(*more: str) -> list[str]:
        call(str(run), "--random", "4", "--json", *more)
        facts = json.loads(capsys.readouterr().out)
        return [image["file_name"] for image in facts["images"]]

    names = drawn()
    assert len(set(names)) == 4
    assert "broken.png" not in drawn("--random", "100")
    assert drawn() == names
    assert any(drawn("--seed", str(seed)) != names for seed in range(1, 5))


def test_the_worst_images_are_those_of_the_lowest_pq(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    truth = made_scenes(6)
    rows = {name: shard_row(name, scene) for name, scene in truth.items()}
    for name in list(rows)[:2]:  # another class everywhere: PQ 0
        rows[name]["category_id"] = [1 + kind % 5 for kind in rows[name]["category_id"]]
    for name, row in rows.items():
        row["uri"] = str(tmp_path / name)
        Image.fromarray(picture(*truth[name][0].shape)).save(row["uri"])
    run = make_run(tmp_path / "out", rows)
    evaluate_rows(run, truth)
    call(str(tmp_path / "out"), "--worst", "2", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert {image["file_name"] for image in facts["images"]} == set(list(rows)[:2])


def test_a_picture_never_lands_among_the_photos(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(str(folder / "out"))
    info = json.loads(run.storage.read("run.json"))
    info["source"]["source"] = str(folder / "photos")
    run.storage.write("run.json", json.dumps(info).encode())
    write_tiny(folder / "tiny.safetensors")
    (folder / "photos/below").mkdir()
    for here in (folder / "photos", folder / "photos/below"):
        monkeypatch.chdir(here)
        before = set((folder / "photos").rglob("*"))
        call(str(folder / "out"), "a [1].png")
        call(str(folder / "out"), "--random", "2")
        call(str(folder / "photos/b.png"), "--weights", str(folder / "tiny.safetensors"))
        assert set((folder / "photos").rglob("*")) == before
        assert f"{tempfile.gettempdir()}/b.panoptic.png" in capsys.readouterr().out


def many_photos(folder: Path) -> Path:
    """A run folder of eight images: two share a name but for their folders, one is an error."""
    names = ["sub/0.png", "sub_0.png", *(f"{number}.png" for number in range(5))]
    photo = str(folder / "photos/b.png")
    half = Panoptic(np.ones(picture().shape[:2], np.uint8), (Segment(1, 1, True, 0.99),))
    images = [MadeImage(name, photo, half) for name in names]
    publish_run(folder / "many", [*images, MadeImage("broken.png", photo, "truncated")], shards=3)
    return folder / "many"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out", "b.png"], "could not be segmented: made \\(truncated\\)"),
        (["out", "changed.png"], "changed since the run"),
        (["out", "absent.png"], "no image 'absent.png'; nearest are '"),
        (["out", "holiday/b.png"], "nearest are 'b.png', "),
        (["out", "--worst", "2"], "no evaluation to say which images are worst"),
        (["out", "a [1].png", "--random", "2"], "one of them at a time"),
        (["out", "--random", "2", "--output", "x.png"], "--output is for one image"),
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
