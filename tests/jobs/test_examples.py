"""The files that `--example` prints do what they say, as they stand."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from jobs.cli import run
from jobs.options import EXAMPLES
from pipeline.nightly.settings import load_nightly


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run([verb, "--example"]) == 0
    return capsys.readouterr().out


def test_the_example_of_a_night_is_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = here / "nightly.toml"
    text = printed("nightly", capsys)
    toml.write_text(text)
    config = load_nightly(str(toml))
    assert Path(config.weights).is_file()
    toml.write_text(re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE))
    whole = load_nightly(str(toml))  # with every line that is a comment there
    assert (whole.report[:2], whole.source_options) == (("python", "send.py"), {"profile": "prod"})


def test_the_example_of_a_training_names_what_is_missing_first(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("train.toml").write_text(printed("train", capsys))
    assert run(["train", "--config", "train.toml"]) == 2
    assert "scenes/panoptic.json" in capsys.readouterr().err


@pytest.mark.slow(seconds=60)
@pytest.mark.usefixtures("ray_session")
def test_the_examples_work_as_they_stand(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["scenes", "scenes", "--images", "30"]) == 0
    for verb in ("nightly", "train"):
        capfd.readouterr()
        assert run([verb, "--example"]) == 0
        Path(f"{verb}.toml").write_text(capfd.readouterr().out)
    shutil.copy(EXAMPLES / "send.py", here)
    report = f'report = ["{sys.executable}", "send.py", "{{run}}", "{{snapshot}}", "{{baseline}}"]'
    text = Path("nightly.toml").read_text()
    Path("nightly.toml").write_text(re.sub(r"^# report = .*", report, text, flags=re.MULTILINE))
    capfd.readouterr()
    assert run(["nightly", "nightly.toml", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["outcome"] == "published"
    assert "30 images, 0 failed" in said.err

    assert run(["train", "--config", "train.toml", "--steps", "2", "--validate-images", "2"]) == 0
    assert Path("runs/own/weights.safetensors").is_file()
    assert "is too little to segment with" in capfd.readouterr().out
