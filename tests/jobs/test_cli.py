"""The command line: help that is documentation, and every mistake one sentence with exit code 2."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
import torch

from detr.categories import Categories
from jobs.cli import run
from jobs.options import refuse_absent
from jobs.verbs import VERBS, help_text, load_verb
from pipeline.config import RunConfig, make_config
from pipeline.errors import UserError
from tests.factories import MadeImage, named_images, publish_run


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_each_one_s_own_help_says(verb: str) -> None:
    documentation = inspect.cleandoc(load_verb(verb).__doc__ or "")
    assert documentation.splitlines()[0] == VERBS[verb][1]
    assert f"panoptic {verb}" in documentation  # an example


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_its_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    assert VERBS[verb][1].split()[0] in capsys.readouterr().out


def test_segment_has_a_flag_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    run(["segment", "--help"])
    shown = capsys.readouterr().out
    for name in RunConfig.model_fields:
        flag = {"source": "SOURCE", "source_options": "--source-option"}.get(name)
        assert (flag or "--" + name.replace("_", "-").removesuffix("s"))[:20] in shown


def test_the_version_comes_with_ray_torch_and_the_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["--version"]) == 0
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    libraries = f"ray {ray.__version__}, torch {torch.__version__}, device {device}"
    assert capsys.readouterr().out == f"panoptic {version('detr-panoptic')} ({libraries})\n"


def test_help_loads_neither_ray_nor_torch() -> None:
    code = "import sys; from jobs.cli import run; run(['--help']); "
    code += "print({'ray', 'torch'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "set()"


def test_paragraphs_flow_and_examples_keep_their_lines() -> None:
    assert help_text("One\ntwo.\n\n    panoptic x \\\n      --y\n\nThree\nfour.") == (
        "One two.\n\n    panoptic x \\\n      --y\n\nThree four."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("segment X --oops", "No such option: --oops"),
        ("segment {scenes}", "--out is needed"),
        ("segment {scenes} --out {out} --threshold 2", "--threshold 2.0"),
        ("segment {scenes} --out {out} --weights {out}/w.pth", "no such file (give r50, r50-dc5"),
        ("segment {scenes} --out {out} --weights {scenes}/../panoptic.json", "panoptic.json"),
        ("segment /nowhere --out {out} --weights {weights}", "SOURCE /nowhere does not exist"),
        ("segment {empty} --out {out} --weights {weights}", "no images found in"),
        ("segment {scenes} --out {out} --weights {weights} --device cuda", "finds no GPU"),
        ("segment {scenes} --out {out} --model no.such:load", "can't be imported"),
        ("segment {scenes} --out {out} --config {out}.toml", "no such file"),
        ("segment {scenes} --out {out} --out-option profile", "must be KEY=VALUE"),
        ("segment {scenes} --out {weights}/run --weights {weights}", "can't write"),
        ("status {empty}", "is not a run folder"),
        ("errors {empty}", "is not a run folder"),
        ("errors {empty} --code nonsense", "'nonsense' is no error code"),
        ("retry {empty}", "is not a run folder"),
        ("plan /nowhere --out {out}", "SOURCE /nowhere does not exist"),
        ("export {empty} --to {out}", ""),
        ("nonsense", "No such command 'nonsense'"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments: str,
    message: str,
    scenes: Path,
    tiny_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "scenes": scenes / "images",
        "weights": tiny_weights,
        "out": tmp_path / "out",
        "empty": tmp_path / "empty",
    }
    code = run([word.format(**places) for word in arguments.split()])
    said = capsys.readouterr()
    assert code == 2
    assert message in said.err
    assert len(said.err.strip().splitlines()) <= 2  # the listing's count may stand before it
    assert not (tmp_path / "out").exists()


def test_doctor_tells_a_line_a_check(
    scenes: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [str(scenes / "images"), str(tmp_path / "out")]
    assert run(["doctor", *places, "--weights", str(tiny_weights), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"]
    names = [check["name"] for check in result["checks"]]
    assert names == ["python", "device", "disk", "images", "run folder", "weights"]
    assert not (tmp_path / "out").exists()


def test_doctor_fails_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "does not exist" in capsys.readouterr().out


def device_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of doctor, and what it says of the device."""
    code = run(["doctor", str(folder), str(folder / "out"), "--json"])
    checks = json.loads(capsys.readouterr().out)["checks"]
    return code, next(check["found"] for check in checks if check["name"] == "device")


def test_doctor_says_of_a_gpu_what_it_computes_and_decodes(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "1 GPU: NVIDIA H200; driver 580.1; a bf16 convolution is right; nvJPEG decodes"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("detr.inference.check_gpu.check_gpu", lambda: said)
    assert device_line(scenes / "images", capsys) == (0, said)


def test_doctor_fails_where_the_driver_is_too_old(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "this machine has an NVIDIA GPU, but its driver is too old: update the driver"
    monkeypatch.setattr("detr.cuda_settings.why_no_gpu", lambda: reason)
    assert device_line(scenes / "images", capsys) == (2, reason)


def test_plan_counts_and_prices_without_writing(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", str(scenes / "images"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--rate", "2", "--price", "3600", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["shards"], facts["images_to_do"]) == (23, 1, 23)
    assert facts["hours"] == pytest.approx(23 / 2 / 3600)
    assert facts["cost"] == pytest.approx(23 / 2)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_gone_does_not_stop_a_run_that_is_there(
    tmp_path: Path,
) -> None:
    settings = make_config({"source": str(tmp_path / "gone"), "out": str(tmp_path), "weights": "w"})
    with pytest.raises(UserError, match="does not exist"):
        refuse_absent(settings)
    (tmp_path / "run.json").write_text("{}")
    refuse_absent(settings)
    with pytest.raises(UserError, match="does not exist"):
        refuse_absent(settings.model_copy(update={"refresh": True}))


NAMES = ["[/b].jpg", ":smile:.jpg", "[red]x.jpg", "\u5199\u771f.jpg"]


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose names, classes and folder hold what a console takes for styles."""
    folder = tmp_path_factory.mktemp("odd") / "[/bold] :smile:"
    classes = [(1, "[/red] :tree:", 1), (187, "ciel \u00e9", 0)]
    categories = Categories.from_json(
        [{"id": i, "name": name, "isthing": thing} for i, name, thing in classes]
    )
    bad = MadeImage("[/bad].jpg", "/photos/[/bad].jpg", "corrupt")
    publish_run(folder, [*named_images(NAMES), bad], categories=categories)
    return folder


def panoptic(arguments: list[str], *, shell: str = '"$@"', **environment: str) -> tuple[int, str]:
    """(exit code, stdout and stderr) of a command line within a shell's."""
    program = [sys.executable, "-m", "jobs.cli", *arguments]
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "panoptic", *program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode("latin-1")


def test_names_are_printed_as_they_are(odd_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb, words in (
        (["status"], [str(odd_run.parent)[-5:], "[/bold] :smile:"]),
        (["errors", "--limit", "0"], ["corrupt: [/bad].jpg:"]),
    ):
        assert run([verb[0], str(odd_run), *verb[1:]]) == 0
        said = capsys.readouterr()
        for word in words:
            assert word in said.out + said.err
    assert run(["sql", str(odd_run), "select distinct file_name, category from segments"]) == 0
    shown = capsys.readouterr().out
    for word in (*NAMES, "[/red] :tree:"):
        assert word in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_any_encoding_of_the_output_takes_any_name(
    encoding: str, flag: list[str], odd_run: Path
) -> None:
    query = ["sql", str(odd_run), "select file_name from images order by 1", *flag]
    code, shown = panoptic(query, PYTHONIOENCODING=encoding)
    assert code == 0, shown
    if flag:
        assert NAMES[-1] in str(json.loads(shown.encode("latin-1").decode(encoding)))


@pytest.mark.parametrize(
    ("shell", "expected", "words"),
    [
        ('"$@" | true', 128 + signal.SIGPIPE, ""),
        ('"$@" > /dev/full', 2, "panoptic: can't write on this machine"),
        ('"$@" >&-', 0, ""),
        ('"$@" >&- 2>&- <&-', 0, ""),
    ],
)
@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_wherever_the_output_goes_no_traceback_comes(
    shell: str, expected: int, words: str, flag: list[str], odd_run: Path
) -> None:
    code, shown = panoptic(["errors", str(odd_run), *flag], shell=shell)
    assert "Traceback" not in shown
    assert words in shown
    assert code in (expected, 0 if "true" in shell else expected)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["plan", "{odd}", "--out", "{out}"], ["plan", "{good}", "--out", "{odd}"]),
        *(["status", "{odd}"], ["sql", "{odd}", "select 1"], ["prune", "{odd}"]),
        ["view", "{odd}", "--weights", "{odd}"],
        ["evaluate", "--predictions", "{odd}/p.json", "--truth", "{odd}/t.json"],
        ["train", "{odd}", "--out", "{out}"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_path_that_is_not_utf8_is_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(odd)
    places = {"odd": odd, "good": str(tmp_path), "out": str(tmp_path / "out")}
    assert run([word.format(**places) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("panoptic: ") == 1
    assert "caf\\xe9" in said
    assert "is not UTF-8: rename it" in said
