"""Each verb that takes a file says what is wrong with it in one sentence, and exits with 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import run
from pipeline.errors import EXIT_USAGE
from tests.image_corpus import Picture, corpus
from tests.jobs.test_label_files import one_sentence
from tests.pipeline.planning.test_lists import BAD

REFUSED = [entry for entry in corpus() if isinstance(entry.expected, str)][::4]


@pytest.mark.parametrize("verb", ["view", "inspect"])
@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.name)
def test_a_photo_that_is_none(
    verb: str,
    entry: Picture,
    tmp_path: Path,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(entry.data)
    command = [verb, str(photo), "--weights", str(tiny_weights), "--device", "cpu"]
    assert run([*command, "--output", str(tmp_path / "out.png")]) == EXIT_USAGE
    one_sentence(capsys.readouterr().err, str(entry.expected))


@pytest.mark.parametrize(
    ("verb", "name", "content", "words"),
    [("segment" if place % 3 else "plan", *each) for place, each in enumerate(BAD)],
)
def test_a_list_that_is_none(
    verb: str,
    name: str,
    content: bytes,
    words: str,
    tmp_path: Path,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    command = [verb, str(tmp_path / name), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert run([*command, "--weights", str(tiny_weights)]) == EXIT_USAGE
    one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--config", "--categories"])
@pytest.mark.parametrize("content", [b"", b"caf\xe9", b"\xff\xfea\0", b"{", b"\0", b"[1, 2"])
def test_a_file_of_settings_that_is_none(
    flag: str,
    content: bytes,
    tmp_path: Path,
    tiny_weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "photos").mkdir()
    command = ["segment", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    command += ["--device", "cpu", "--weights", str(tiny_weights), flag, str(tmp_path / "file")]
    assert run(command) == EXIT_USAGE
    text = capsys.readouterr().err
    empty_toml = flag == "--config" and not content
    one_sentence(text, "no images found" if empty_toml else flag)


@pytest.mark.parametrize(
    "pair", ["secret=x", "aws_access_key_id=x", "regoin=x", "anon=perhaps", "addressing_style=up"]
)
@pytest.mark.parametrize("verb", ["segment", "plan"])
def test_an_option_of_a_store_that_is_none(
    verb: str, pair: str, tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [verb, "s3://bucket/photos", "--out", str(tmp_path / "run"), "--device", "cpu"]
    command += ["--weights", str(tiny_weights), "--source-option", pair]
    assert run(command) == EXIT_USAGE
    one_sentence(capsys.readouterr().err, "storage option")
