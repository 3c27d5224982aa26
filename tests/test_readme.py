"""What the README and the docs show works: queries and snippets are run, commands are parsed."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.main import get_command

from jobs.verbs import VERBS, make_app
from pipeline.run.run import Run, open_run
from tests.documents import CONTRIBUTING, DOCUMENTS, READING, README, ROOT, blocks


def commands() -> list[str]:
    """Every line that calls the program, in any block of the README, the docs and the recipes."""
    files = list(DOCUMENTS)
    files += sorted((ROOT / "jobs/configs").glob("*.toml"))
    lines = "\n".join(path.read_text() for path in files).splitlines()
    bare = (line.strip().removeprefix("# ").removeprefix("#").strip() for line in lines)
    return sorted({line.split(" #")[0].strip() for line in bare if line.startswith("panoptic ")})


@pytest.fixture
def run(segmented: Path) -> Run:
    return open_run(str(segmented))


def test_the_query_by_class_name_counts_every_segment(run: Run) -> None:
    [query] = blocks("sql", READING)
    rows = duckdb.execute(query.replace("RUN", run.storage.url)).fetchall()
    tables = [run.read_shard(shard.path) for shard in run.snapshot().shards]
    areas = [area for table in tables for row in table["area"].to_pylist() for area in row]
    names = {category.name for category in run.info.categories}
    assert {name for name, _, _ in rows} <= names
    assert sum(count for _, count, _ in rows) == len(areas)
    assert sum(pixels for _, _, pixels in rows) == sum(areas) > 0


def test_the_snippets_run_as_written(run: Run, scenes: Path, tiny_weights: Path) -> None:
    names: dict[str, Any] = {
        "WEIGHTS": str(tiny_weights),
        "PHOTO": str(scenes / "images" / "000000.jpg"),
        "RUN": run.storage.url,
    }
    for snippet in blocks("python"):
        exec(snippet, names)
    assert names["panoptic"].segments
    assert len(names["frame"]) == run.snapshot().rows


def test_the_snippets_on_reading_run_as_written(run: Run) -> None:
    shard = run.storage.join(run.snapshot().shards[0].path)
    names: dict[str, Any] = {"RUN": run.storage.url, "SHARD": shard}
    for snippet in blocks("python", READING):
        exec(snippet, names)
    assert names["pixels"].shape == (names["row"]["height"], names["row"]["width"])
    assert names["frame"]["area"].notna().sum() == sum(
        len(row["area"]) for row in run.table(["area"]).to_pylist()
    )


def test_the_recipe_for_supervision_runs_as_written(run: Run) -> None:
    [snippet] = blocks("python supervision", READING)
    names: dict[str, Any] = {"run": run}
    exec(snippet, names)
    image, detections = names["image"], names["detections"]
    assert detections.area.tolist() == [segment.area for segment in image.segments]
    for box, pixels in zip(detections.xyxy, image.masks, strict=True):
        rows, columns = pixels.nonzero()
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("command", commands())
def test_every_command_has_a_verb_and_flags_that_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    own, _, submitted = (" " + " ".join(words)).partition(" -- ")
    for part in filter(None, (own.split(), submitted.split())):
        assert part[0] in VERBS
        verb: Any = get_command(make_app(part)).commands[part[0]]  # type: ignore[attr-defined]
        known = {flag for option in verb.params for flag in (*option.opts, *option.secondary_opts)}
        flags = {word.split("=")[0] for word in part if word.startswith("--")}
        assert flags <= known


def scripts() -> list[tuple[str, str]]:
    """Every benchmark or test program that a document or the Makefile names, with its flags."""
    files = [*DOCUMENTS, ROOT / "Makefile"]
    named = r"(benchmarks/\w+\.py|python -m tests\.\w+)((?: +[-\w]+)*)"
    found = set()
    for name, words in [match for path in files for match in re.findall(named, path.read_text())]:
        module = name.removesuffix(".py").replace("/", ".").removeprefix("python -m ")
        found.add((module, " ".join(re.findall(r"--[-\w]+", words))))
    return sorted(found)


@pytest.mark.parametrize(("module", "flags"), scripts())
def test_every_script_is_there_and_knows_its_flags(
    module: str, flags: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = (ROOT / module.replace(".", "/")).with_suffix(".py")
    assert path.is_file()
    if flags:
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        monkeypatch.syspath_prepend(path.parent)  # as Python does for a script
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code == 0
        assert set(flags.split()) <= set(re.findall(r"--[-\w]+", capsys.readouterr().out))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_diagrams_are_what_their_script_draws() -> None:
    drawing = runpy.run_path(str(ROOT / "docs/draw_diagrams.py"))
    for name, draw in drawing["DIAGRAMS"].items():
        assert (ROOT / "docs/images" / name).read_text() == draw(), "python docs/draw_diagrams.py"


def test_the_file_tree_shows_every_room_and_names_files_that_exist() -> None:
    tree = CONTRIBUTING.split("## Where everything is")[1].split("\n## ")[0]
    package = room = ""
    shown: set[str] = set()
    for line in tree.splitlines():
        if folder := re.match(r"( {4}| {6})(\w+)/ ", line):
            package = package if len(folder[1]) == 6 else folder[2]
            room = folder[2] if len(folder[1]) == 4 else f"{package}/{folder[2]}"
            shown.add(room)
        for name in re.findall(r"\b([a-z_0-9]+\.py)\b", line):
            assert (ROOT / room / name).exists(), f"{room}/{name}"
    inits = [path for name in ("detr", "pipeline") for path in (ROOT / name).rglob("__init__.py")]
    assert {str(path.parent.relative_to(ROOT)) for path in inits} <= shown
    assert all((ROOT / name).is_dir() for name in shown)


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.split()) < 1_200
