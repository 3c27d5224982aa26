"""`panoptic inspect` as a learner calls it, and its page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image

from jobs.cli import run
from jobs.inspect_photo import inspect
from pipeline.errors import UserError
from tests.browser import opened
from tests.random_weights import made_images

app = typer.Typer()
app.command()(inspect)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "<b>photo.png"
    Image.fromarray(made_images(1, 5, 120)[0]).save(path)
    return path


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_the_page_shows_every_stage_and_loads_nothing(
    photo: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "seen.html"
    call(str(photo), "--weights", str(tiny_weights), "--output", str(output), "--queries", "2")
    assert "attention maps" in capsys.readouterr().out
    with opened(output) as seen:
        page = seen.page
        assert page.get_by_role("heading", level=1).inner_text() == str(photo)
        assert page.locator("#stages ~ .wide tbody tr").count() == 35
        cards = page.locator(".card")
        assert 1 <= cards.count() <= 2
        for step in ("its box", "all heads", "enlarged + Res2", "mask logits"):
            assert cards.first.get_by_text(step, exact=True).is_visible()
        assert all(page.locator("figure img").evaluate_all("all => all.map(e => e.alt)"))
        assert seen.low_contrasts() == []
        assert (seen.overflow(400), seen.errors, len(seen.requests)) == (0, [], 1)


def test_shapes_as_json(
    photo: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "seen.html")
    call(str(photo), "--weights", str(tiny_weights), "--output", output, "--json")
    facts = json.loads(capsys.readouterr().out)
    shapes = {stage["stage"]: stage["shape"] for stage in facts["stages"]}
    assert shapes["photo"] == [120, 160, 3]
    assert shapes["attention maps"][:2] == [16, 2]


def test_absent_weights_are_named(photo: Path, tiny_weights: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        call(str(photo), "--weights", "absent.pth")


@pytest.mark.slow(seconds=12)
def test_a_coco_photo_with_r50_has_the_shapes_of_the_published_model(
    coco_val100: Path, official_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """640 x 480 at 800 x 1066. The weights are random, laid out as the official file."""
    photos = sorted((coco_val100 / "images").glob("*.jpg"))
    photo = next(path for path in photos if Image.open(path).size == (640, 480))
    arguments = ["--weights", str(official_weights), "--queries", "2", "--device", "cpu", "--json"]
    assert run(["inspect", str(photo), *arguments, "--output", str(tmp_path / "seen.html")]) == 0
    facts = json.loads(capsys.readouterr().out)
    shapes = {stage["stage"]: stage["shape"] for stage in facts["stages"]}
    for name, channels, size in (
        ("Res2", 256, [200, 267]),
        ("Res3", 512, [100, 134]),
        ("Res4", 1024, [50, 67]),
        ("Res5", 2048, [25, 34]),
    ):
        assert shapes[name] == [1, channels, *size]
        assert shapes[f"{name} mask"] == [1, *size]
        assert shapes[f"{name} position"] == [1, 256, *size]
    assert shapes["tokens"] == [1, 850, 256]
    assert shapes["encoded image"] == [1, 256, 25, 34]
    assert shapes["box embeddings"] == [1, 100, 256]
    assert shapes["attention maps"] == [100, 8, 25, 34]
    assert shapes["enlarged + Res4"][2:] == [50, 67]
    assert shapes["enlarged + Res3"][2:] == [100, 134]
    assert shapes["enlarged + Res2"][2:] == [200, 267]
    assert shapes["mask logits"] == [facts["kept"], 1, 200, 267]
    assert shapes["panoptic map"] == [480, 640]
    assert "Res5 position" in (tmp_path / "seen.html").read_text()
