"""`panoptic report` as a person calls it."""

from __future__ import annotations

import json
import platform
import re
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import ray
import typer

from detr.categories import Categories, Category
from jobs.report import report
from pipeline.errors import UserError
from pipeline.progress import Progress
from pipeline.report.page import points
from pipeline.run.stats import record_stats
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import SCENE_CATEGORIES
from tests import spoilt
from tests.factories import damaged, made_scenes, make_run, shard_row, write_coco

app = typer.Typer()
app.command()(report)


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.fixture
def out(tmp_path: Path) -> str:
    scenes = made_scenes(4)
    rows = {name: shard_row(name, made) for name, made in scenes.items()}
    return make_run(tmp_path / "out", rows).storage.url


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """The file that the browser of this test leaves, with the URL that it was asked to show."""
    program, said = tmp_path / "browser", tmp_path / "shown"
    program.write_text(f'#!/bin/sh\necho "$1" > {said}\n')
    program.chmod(0o755)
    browser = webbrowser.GenericBrowser([str(program), "%s"])
    webbrowser.register("of-a-test", None, browser, preferred=True)
    return said


def test_the_report_is_an_object_of_the_run_and_shown(
    out: str, shown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(out, "--open", "--gallery", "1")
    assert f"{out}/report/0001.html" in capsys.readouterr().out
    assert shown.read_text().strip() == Path(f"{out}/report/0001.html").as_uri()


def test_from_a_bucket_a_copy_is_shown(out: str, shown: Path) -> None:
    there = Storage("memory://bucket/out")
    here = Storage(out)
    for entry in here.list():
        there.write(entry.path, here.read(entry.path))
    call("memory://bucket/out", "--open", "--gallery", "0")
    copy = Path(unquote(urlsplit(shown.read_text().strip()).path))
    assert copy.read_bytes() == there.read("report/0001.html")


def test_json_names_the_file(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "elsewhere" / "a b.html"
    call(out, "--output", str(target), "--json", "--gallery", "0")
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"report": str(target), "bytes": target.stat().st_size}


def test_every_figure_has_its_interval_and_every_call_its_versions(tmp_path: Path) -> None:
    scenes = made_scenes(6)
    worse = {name: damaged(made, seed) for seed, (name, made) in enumerate(scenes.items())}
    json_file = write_coco(tmp_path / "truth", "gt", scenes)
    rows = {name: shard_row(name, made) for name, made in worse.items()}
    run = make_run(tmp_path / "run", rows)
    result = spoilt.evaluate(run, json_file)
    record_stats(run, 1, Progress(total=6, done=6, seconds=2.0), {})
    call(str(tmp_path / "run"), "--gallery", "0")
    page = (tmp_path / "run" / "report" / "0001.html").read_text()
    for group in ("All", "Things", "Stuff"):
        for key in ("pq", "sq", "rq"):
            low, high = result[group][f"{key}_interval"]
            assert f'<td class="n">{points(low)} to {points(high)}</td>' in page, (group, key)
    versions = f"python {platform.python_version()}, ray {ray.__version__}, torch "
    assert f"<dt>Versions</dt><dd>{versions}" in page


def test_galleries_share_the_room_for_pictures_and_say_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = made_scenes(6)
    rows = {name: shard_row(name, made) for name, made in scenes.items()}
    run = make_run(tmp_path / "run", rows)
    spoilt.evaluate(run, write_coco(tmp_path / "truth", "gt", scenes))
    words = "More were asked for: the 15 MB that a report may have"
    page = tmp_path / "run" / "report" / "0001.html"
    call(str(tmp_path / "run"), "--gallery", "6")
    whole = page.read_text()
    assert (whole.count('<article class="card">'), whole.count(words)) == (18, 0)
    pictures = sum(len(uri) for uri in re.findall(r'src="data:image/webp;base64,([^"]*)"', whole))
    monkeypatch.setattr("pipeline.report.page.PICTURE_BYTES", pictures * 3 // 4 // 2)
    call(str(tmp_path / "run"), "--gallery", "6")
    sections = re.split(r'<h2 id="(?:worst|best|random|errors)">', page.read_text())[1:4]
    for section in sections:
        assert words in section
        assert 1 <= section.count('<article class="card">') < 6
    monkeypatch.setattr("pipeline.report.page.PICTURE_BYTES", 0)
    call(str(tmp_path / "run"), "--gallery", "6")
    assert page.read_text().count(words) == 3


def test_truth_may_have_classes_that_the_model_never_learnt(tmp_path: Path) -> None:
    """They are named in the table, in what was missed and in what is taken for what."""
    scenes = made_scenes(4)
    more = Categories([*SCENE_CATEGORIES, Category(100, "<kite>", True, (0, 0, 0))])
    truth = {
        name: (made, [{**segments[0], "category_id": 100}, *segments[1:]])
        for name, (made, segments) in scenes.items()
    }
    json_file = write_coco(tmp_path / "truth", "more", truth, categories=more)
    for name in ("now", "before"):
        rows = {name: shard_row(name, made) for name, made in scenes.items()}
        spoilt.evaluate(make_run(tmp_path / name, rows), json_file)
    call(str(tmp_path / "now"), "--compare", str(tmp_path / "before"))
    page = (tmp_path / "now" / "report" / "0001.html").read_text()
    assert page.count('<th scope="row" data-value="&lt;kite&gt;">') == 2  # classes, compared
    assert "<td>&lt;kite&gt;</td>" in page  # confusion
    assert "missed: &lt;kite&gt;" in page
    assert "Truth: " in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--evaluation", "mine"], "has no evaluation 'mine' \\(there are: none\\)"),
        (["--compare", "{out}"], "run `panoptic evaluate` on both"),
        (["--compare", "{out}/nowhere"], "is not a run folder"),
    ],
)
def test_mistakes_are_sentences(out: str, arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call(out, *(argument.replace("{out}", out) for argument in arguments))
