"""`panoptic demo` whole: the committed weights segment made scenes, and its report opens."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from benchmarks.demo_weights import training
from jobs.cli import run
from jobs.demo import DEMO_RECORD, beside_record, make_demo_scenes
from pipeline.errors import UserError
from tests.browser import opened
from tests.run_rows import live_rows

IMAGES, BROKEN = 60, 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The folder of a demo that ran with its defaults; read only."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    said = io.StringIO()
    with redirect_stdout(said):
        assert run(["demo", "--folder", str(folder)]) == 0
    (folder / "said.txt").write_text(said.getvalue())
    return folder


def test_the_demo_weights_segment_as_well_as_their_record_says(demo: Path) -> None:
    record = json.loads(DEMO_RECORD.read_text())
    [scores] = (demo / "run/evaluation").rglob("pq.json")
    result = json.loads(scores.read_text())
    assert result["images"]["scored"] == IMAGES
    for group in ("All", "Things", "Stuff"):
        assert result[group]["pq"] == pytest.approx(record[group]["pq"], abs=0.05), group


def test_it_says_that_its_figure_is_near_the_record(demo: Path) -> None:
    record = json.loads(DEMO_RECORD.read_text())
    recorded = f"{100 * record['All']['pq']:.1f} recorded on 500 others"
    said = " ".join((demo / "said.txt").read_text().split())
    assert f"is within 5 points of the {recorded}" in said
    assert "PQ 75.3 is NOT within 5 points" in beside_record(0.753, record)


def test_the_record_tells_the_training_that_the_makefile_runs() -> None:
    assert json.loads(DEMO_RECORD.read_text())["training"] == training()


def test_every_file_has_a_row_and_the_broken_ones_say_why(demo: Path) -> None:
    rows = live_rows(demo / "run")
    files = {path.name for path in (demo / "scenes/images").iterdir()}
    assert sorted(rows["file_name"].to_pylist()) == sorted(files)
    broken = [row for row in rows.to_pylist() if row["status"] == "error"]
    assert len(broken) == BROKEN
    assert all(row["error_message"] for row in broken)


@pytest.mark.slow(seconds=40)
def test_another_number_of_images_makes_scenes_and_run_anew(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (5, 3):
        assert run(["demo", "--folder", str(tmp_path), "--images", str(count), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == count + BROKEN
        files = {path.name for path in (tmp_path / "scenes/images").iterdir()}
        assert len(files) == count + BROKEN
        assert set(live_rows(tmp_path / "run")["file_name"].to_pylist()) == files


@pytest.mark.parametrize("name", ["scenes", "run"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    own = tmp_path / name / "panoptic.json"
    own.parent.mkdir()
    own.write_text('{"images": []}')
    with pytest.raises(UserError, match=f"{name} was not made by this demo: choose another"):
        make_demo_scenes(tmp_path, 3, print)
    assert own.exists()


def test_its_report_opens_from_disk_and_asks_for_nothing(demo: Path) -> None:
    with opened(demo / "run/report/0001.html") as seen:
        headings = ("Quality", "Classes", "Worst", "Best", "Errors", "Speed", "Provenance")
        for heading in headings:
            assert seen.page.get_by_role("heading", name=heading, exact=True).is_visible()
        assert (seen.errors, len(seen.requests)) == ([], 1)
        assert (seen.overflow(400), seen.overflow(1400)) == (0, 0)
        assert seen.low_contrasts() == []
