"""Whatever is handed to any verb: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cli import run
from jobs.verbs import VERBS
from pipeline.errors import EXIT_ERROR_BUDGET, EXIT_TRY_AGAIN, EXIT_USAGE
from tests.factories import named_images, publish_run
from tests.jobs.test_label_files import one_sentence

WEIGHTS = ["--weights", "jobs/demo_weights/demo.safetensors", "--device", "cpu"]
DEAD = "http://127.0.0.1:9"  # nobody listens there

# What a verb that reads a run folder is given in its place.
READING = {
    "status": ["status", "{bad}"],
    "errors": ["errors", "{bad}"],
    "verify": ["verify", "{bad}"],
    "report": ["report", "{bad}", "--output", "{new}.html"],
    "view": ["view", "{bad}", "a.jpg", "--output", "{new}.png"],
    "sql": ["sql", "{bad}", "select count(*) from images"],
    "export": ["export", "{bad}", "{new}.json"],
    "rollback": ["rollback", "{bad}"],
    "prune": ["prune", "{bad}"],
    "retry": ["retry", "{bad}"],
    "evaluate": ["evaluate", "{bad}", "--truth", "{new}.json"],
    "compare": ["compare", "{bad}", "{bad}"],
    "plan": ["plan", "{photos}", "--out", "{bad}"],
    "segment": ["segment", "{photos}", "--out", "{bad}", *WEIGHTS],
}
SLOW = ("retry", "evaluate", "compare", "segment")  # they load Ray or torch first

Spoil = Callable[[Path], object]


def _put(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


# What has become of a run folder, and which verbs may do without what was lost.
SPOILT: dict[str, Spoil] = {
    "run.json is empty": _put("run.json", b""),
    "run.json is no object": _put("run.json", b"[]"),
    "run.json lacks fields": _put("run.json", b'{"schema_version": 1}'),
    "run.json is not UTF-8": _put("run.json", b"\xff\xfe{\0"),
    "latest.json is cut": _put("latest.json", b'{"snap'),
    "latest.json is null": _put("latest.json", b"null"),
    "latest.json lacks its number": _put("latest.json", b"{}"),
    "a generation is cut": _put("manifest/0001/generation.json", b'{"number": 1,'),
    "a generation lacks fields": _put("manifest/0001/generation.json", b"{}"),
    "a snapshot is cut": _put("snapshots/0001.parquet", b"PAR1"),
    "a snapshot is text": _put("snapshots/0001.parquet", b"not a table"),
    "a snapshot is gone": lambda folder: (folder / "snapshots/0001.parquet").unlink(),
    "the shards are text": lambda folder: [
        path.write_bytes(b"not a table") for path in (folder / "segments").rglob("*.parquet")
    ],
    "the shards are gone": lambda folder: shutil.rmtree(folder / "segments"),
}
NO_RUN: dict[str, Spoil] = {
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"{}")),
    "nothing": shutil.rmtree,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    publish_run(folder / "run", named_images(["a.jpg", "b.jpg"]))
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(b"no photo")
    return folder


def answers(verb: str, bad: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """The exit code; fails on anything but an answer."""
    places = {"bad": bad, "photos": made / "photos", "new": bad.parent / "new"}
    code = run([word.format(**places) for word in READING[verb]])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code:
        assert code in (EXIT_USAGE, EXIT_ERROR_BUDGET, EXIT_TRY_AGAIN)
        one_sentence(said.err, "")
    return code


@pytest.fixture(autouse=True)
def _one_ray(request: pytest.FixtureRequest) -> None:
    """The verbs that start Ray use that of all tests."""
    if request.node.get_closest_marker("ray"):
        request.getfixturevalue("ray_session")


def verbs() -> list[object]:
    return [
        pytest.param(verb, marks=(pytest.mark.slow(seconds=20), pytest.mark.ray))
        if verb in SLOW
        else verb
        for verb in READING
    ]


@pytest.mark.parametrize("verb", verbs())
def test_a_spoilt_run_folder(
    verb: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb in ("segment", "retry"):  # they mend what they can; the lease of a spoilt run is enough
        spoilt = {name: SPOILT[name] for name in list(SPOILT)[:9]}
    else:
        spoilt = SPOILT
    for number, spoil in enumerate(spoilt.values()):
        bad = tmp_path / str(number) / "run"
        shutil.copytree(made / "run", bad)
        spoil(bad)
        answers(verb, bad, made, capsys)


@pytest.mark.parametrize("verb", verbs())
def test_what_is_no_run_folder(
    verb: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, spoil) in enumerate(NO_RUN.items()):
        bad = tmp_path / str(number) / "run"
        shutil.copytree(made / "run", bad)
        spoil(bad)
        code = answers(verb, bad, made, capsys)
        may = verb in ("plan", "segment", "prune")  # a new run's folder; nothing to remove
        assert code == EXIT_USAGE or may, (verb, name)


OTHERS = {
    "demo": ["demo", "--folder", "{taken}"],
    "doctor": ["doctor", "{text}", "{text}"],
    "inspect": ["inspect", "{text}", *WEIGHTS[:2]],
    "scenes": ["scenes", "{taken}"],
    "nightly": ["nightly", "{text}"],
    "train": ["train", "{text}", "--out", "{new}"],
    "submit": ["submit", "--address", DEAD, "--wait-head", "0", "--", "status", "{text}"],
    "jobs": ["jobs", "--address", DEAD],
}


@pytest.mark.parametrize("verb", OTHERS)
def test_what_the_other_verbs_can_t_use(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, taken = tmp_path / "text.json", tmp_path / "taken"
    (taken / "scenes").mkdir(parents=True)
    for content in (b"", b"caf\xe9", b"\xff\xfe{\0", b"null"):
        text.write_bytes(content)
        places = {"text": text, "taken": taken, "new": tmp_path / "new"}
        assert run([word.format(**places) for word in OTHERS[verb]]) in (2, EXIT_TRY_AGAIN)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        if verb != "doctor":  # which says what it finds on stdout
            one_sentence(said.err, "")
        if verb not in ("doctor", "inspect", "nightly", "train"):
            break  # these read no file


def test_all_verbs_are_asked() -> None:
    assert {*READING, *OTHERS} == set(VERBS)
