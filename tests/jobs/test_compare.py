"""The compare verb: tables for people, JSON for machines, an exit code for gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import run as panoptic
from tests.factories import damaged, evaluated_run, made_scenes, make_run, shard_row

TRUTH = made_scenes(8)
BETTER = {name: damaged(true, i) for i, (name, true) in enumerate(TRUTH.items())}
WORSE = {name: damaged(damaged(true, i), i + 50) for i, (name, true) in enumerate(TRUTH.items())}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(better, worse)"""
    folder = tmp_path_factory.mktemp("runs")
    made = [evaluated_run(folder / name, own, TRUTH) for name, own in (("a", BETTER), ("b", WORSE))]
    return made[0].storage.url, made[1].storage.url


def test_prints_the_change_of_every_group(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert panoptic(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == ["All", "Things", "Stuff"]
    assert "8 images scored in both against gt" in " ".join(printed.split())
    assert "verdict" not in printed


@pytest.mark.parametrize(
    ("order", "limits", "code"),
    [
        ((0, 1), ["--max-pq-drop", "1"], 3),
        ((1, 0), ["--max-pq-drop", "1"], 0),
        ((0, 0), ["--max-pq-drop", "0", "--max-class-drop", "0"], 0),
        ((0, 1), ["--max-pq-drop", "90"], 0),
        ((0, 1), ["--max-class-drop", "1", "--min-class-segments", "1000"], 0),
        ((0, 1), ["--max-class-drop", "1", "--min-class-segments", "1"], 3),
        ((0, 1), ["--max-pq-drop", "1", "--decide-by", "estimate"], 3),
    ],
)
def test_the_verdict_is_the_exit_code(
    runs: tuple[str, str],
    order: tuple[int, int],
    limits: list[str],
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["compare", *(runs[i] for i in order), *limits, "--json"]
    assert panoptic(arguments) == code
    verdict = json.loads(capsys.readouterr().out)["verdict"]
    assert verdict["passed"] == (code == 0)
    assert bool(verdict["reasons"]) == (code == 3)


def test_runs_without_truth_are_compared_by_their_segments(
    runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {name: shard_row(name, own) for name, own in WORSE.items()}
    other = make_run(tmp_path / "c", rows).storage.url
    assert panoptic(["compare", runs[0], other]) == 0
    printed = capsys.readouterr().out
    assert "PQ of B with A as truth" in printed
    assert "worth labelling" in printed
    assert panoptic(["compare", *runs, "--without-truth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 8
    assert found["disagreements"][0]["file_name"] in TRUTH
    assert found["drift"]["images"] == [8, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{a}", "{a}/nothing"], "is not a run folder"),
        (["{a}/snapshots/0009.parquet", "{b}"], "has no snapshot 9"),
        (["{a}", "{b}", "--name", "other"], "has no evaluation other (it has: gt)"),
        (["{a}", "{b}", "--decide-by", "luck"], "must be interval or estimate"),
        (["{a}", "{b}", "--without-truth", "--max-pq-drop", "1"], "need ground truth"),
    ],
)
def test_a_mistake_is_one_sentence(
    runs: tuple[str, str],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = [word.format(a=runs[0], b=runs[1]) for word in arguments]
    assert panoptic(["compare", *places]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
