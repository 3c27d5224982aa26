"""What the README and the docs show works: queries and snippets are run, commands are parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.main import get_command

from jobs.cli import VERBS, make_app
from pipeline.config import make_config
from pipeline.job import segment
from pipeline.run import Run, open_run

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """Every line that calls the program, in any block of the README, the docs and the recipes."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    files += sorted((ROOT / "jobs/configs").glob("*.toml"))
    lines = "\n".join(path.read_text() for path in files).splitlines()
    bare = (line.strip().removeprefix("# ").removeprefix("#").strip() for line in lines)
    return sorted({line.split(" #")[0].strip() for line in bare if line.startswith("panoptic ")})


@pytest.fixture(scope="module")
def run(
    scenes: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Run:
    out = tmp_path_factory.mktemp("readme") / "run"
    settings = {"source": str(scenes / "images"), "out": str(out), "weights": str(tiny_weights)}
    segment(make_config({**settings, "max_error_rate": 0.2}))
    return open_run(str(out))


def test_the_query_by_class_name_counts_every_segment(run: Run) -> None:
    [query] = blocks("sql")
    rows = duckdb.execute(query.replace("RUN", run.storage.url)).fetchall()
    tables = [run.read_shard(shard.path) for shard in run.snapshot().shards]
    areas = [area for table in tables for row in table["area"].to_pylist() for area in row]
    names = {category.name for category in run.info.categories}
    assert {name for name, _, _ in rows} <= names
    assert sum(count for _, count, _ in rows) == len(areas)
    assert sum(pixels for _, _, pixels in rows) == sum(areas) > 0


def test_the_snippets_run_as_written(run: Run, scenes: Path, tiny_weights: Path) -> None:
    shard = run.storage.join(run.snapshot().shards[0].path)
    names: dict[str, Any] = {
        "SHARD": shard,
        "WEIGHTS": str(tiny_weights),
        "PHOTO": str(scenes / "images" / "000000.jpg"),
    }
    for snippet in blocks("python"):
        exec(snippet, names)
    assert names["pixels"].shape == (names["row"]["height"], names["row"]["width"])
    assert names["panoptic"].segments


@pytest.mark.parametrize("command", commands())
def test_every_command_has_a_verb_and_flags_that_exist(command: str) -> None:
    words = shlex.split(command)[1:]
    assert words[0] in VERBS
    verb: Any = get_command(make_app(words)).commands[words[0]]  # type: ignore[attr-defined]
    known = {flag for option in verb.params for flag in (*option.opts, *option.secondary_opts)}
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    assert flags <= known


def test_the_file_tree_names_files_that_exist() -> None:
    tree = README.split("## Where everything is")[1]
    folder = ""
    for line in tree.splitlines():
        top = re.match(r"    (\w+)/ ", line)
        folder = top[1] if top else folder
        for name in re.findall(r"\b([a-z_0-9]+\.py)\b", line):
            assert (ROOT / folder / name).exists(), f"{folder}/{name}"
