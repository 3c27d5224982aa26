"""The commands of the README in an empty folder, in its order, with its names; then the documents'.

`s3://bucket` is a folder here (tests/integration/test_s3.py has the servers), the weights are tiny,
a training takes two steps. Left to other tests: `make`, and what needs a cluster (`submit`,
`jobs`).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import run
from pipeline.run.folder import read_pointer
from pipeline.storage.storage import Storage
from pipeline.train.synthetic import write_scenes
from tests.browser import opened
from tests.documents import README, blocks
from tests.run_rows import live_rows

NOT_HERE = ("submit", "jobs")
QUICK = ("--steps", "2", "--size", "64", "--batch-size", "2", "--validate-images", "2")


def commands(text: str = README) -> Iterator[list[str]]:
    """The words of every command in a shell block, in order."""
    for block in blocks("sh", text):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["panoptic"] and words[1] not in NOT_HERE:
                yield [*words[1:], *(QUICK if words[1] == "train" else ())]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for what the README says that one has: photos, and their truth."""
    made = tmp_path / "made"
    write_scenes(made, 40, seed=3, broken=1)
    home = tmp_path / "home"
    shutil.copytree(made / "images", home / "bucket" / "images")
    for name in ("PHOTO_FOLDER", "photos"):
        shutil.copytree(made / "images", home / name, ignore=shutil.ignore_patterns("b*"))
    shutil.copytree(made, home / "data")
    for name in ("panoptic_val2017", "gt", "pred"):
        shutil.copy(made / "panoptic.json", home / f"{name}.json")
        shutil.copytree(made / "panoptic", home / name)
    monkeypatch.chdir(home)
    nobody = webbrowser.GenericBrowser(["true", "%s"])  # there is nobody to show anything to
    webbrowser.register("nobody", None, nobody, preferred=True)
    return home


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_works_in_the_order_written(
    newcomer: Path, tiny_weights: Path, ray_session: None
) -> None:
    names = {"r50": str(tiny_weights), "PHOTO": "PHOTO_FOLDER/000000.jpg"}
    done = []
    for words in commands():
        if words[0] == "compare":  # the README's "before": the run as it was evaluated
            shutil.copytree("runs/mine", "runs/before")
        words = [names.get(word, word.replace("s3://bucket", "bucket")) for word in words]
        assert run(words) == 0, words
        if not done:  # it says which images --limit took
            names["FILE_NAME"] = live_rows(Path("runs/mine"))["file_name"][0].as_py()
        done.append(words[0])
    assert done[:2] == ["segment", "report"]
    with opened(Path("report.html").absolute()) as seen:  # of a whole job, scored
        for heading in ("Quality", "Classes", "Worst", "Best", "Errors", "Speed", "Provenance"):
            assert seen.page.get_by_role("heading", name=heading, exact=True).is_visible()
        table = seen.page.get_by_role("region", name="Calls")
        assert table.get_by_text("fp32").is_visible()
        assert (seen.errors, len(seen.requests), seen.overflow(400)) == ([], 1, 0)
    for written in re.findall(r"--output (\S+\.html)", README):
        assert Path(written).exists()
    assert Path("runs/mine/report/0001.html").exists()
    assert Path(names["FILE_NAME"]).with_suffix(".panoptic.png").exists()
    assert Path("predictions.json").exists()
    assert done.count("train") == 2
    assert live_rows(Path("runs/photos")).num_rows == 40


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_documents_works(
    newcomer: Path, tiny_weights: Path, ray_session: None
) -> None:
    shutil.copy("gt.json", "truth.json")
    shutil.copytree("gt", "pngs")
    shutil.copytree("gt", "truth")
    Path("vehicles.toml").write_text("[truth]\n[model]\n")
    shutil.copy("PHOTO_FOLDER/000000.jpg", "photo.jpg")
    for name in ("panoptic_val2017.json", "panoptic_val2017"):
        (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, f"bucket/{name}")
    truth = ("--truth", "panoptic_val2017.json")
    for limit in (("--limit", "20"), ("--refresh",)):  # OUT: two snapshots
        words = ["segment", "photos", "--out", "OUT", "--weights", str(tiny_weights), *limit]
        assert run(words) == 0
        assert run(["evaluate", "OUT", *truth]) == 0
    for copy in ("runs/photos", "runs/old", "runs/new", "runs/a", "runs/b"):
        shutil.copytree("OUT", copy)
    for copy in ("out", "old", "new"):
        shutil.copytree("OUT", f"bucket/{copy}")
    put_nights(Path("OUT"), Path("bucket/nights"))
    names = {"r50": str(tiny_weights)}
    files = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    done = set()
    for words in [words for file in files for words in commands(file.read_text())]:
        words = [names.get(word, word.replace("s3://bucket", "bucket")) for word in words]
        assert run(words) == 0, words
        done.add(words[0])
    assert done == {
        *("compare", "doctor", "evaluate", "export", "inspect", "prune", "report", "rollback"),
        *("segment", "sql", "train", "verify", "view"),
    }
    live = read_pointer(Storage("bucket/nights/run-0123456789abcdef"))
    assert live is not None
    assert live["snapshot"] == 12  # rolled back from 2, then forward by its number


def put_nights(run_folder: Path, nights: Path) -> None:
    """A folder of nights, as if they had made this run and its twelfth snapshot."""
    name = "run-0123456789abcdef"
    shutil.copytree(run_folder, nights / name)
    newest = nights / name / "snapshots/0002.parquet"
    shutil.copy(newest, newest.with_name("0012.parquet"))
    (nights / "latest.json").write_text(json.dumps({"run": name}))
