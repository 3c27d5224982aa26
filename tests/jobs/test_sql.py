"""`panoptic sql` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from jobs.sql import sql
from pipeline.errors import UserError
from tests.factories import named_images, publish_run

app = typer.Typer()
app.command()(sql)
COUNT = "select category, count(*) as n from segments group by 1 order by 1"


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.fixture
def out(tmp_path: Path) -> str:
    publish_run(tmp_path / "out", named_images([f"{n}.jpg" for n in range(5)]))
    return str(tmp_path / "out")


def test_the_answer_is_a_table(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(out, COUNT)
    words = capsys.readouterr().out.split()
    assert words == ["category", "n", "person", "5", "sky-other-merged", "5"]


def test_long_answers_are_cut_and_say_so(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(out, "from images", "--limit", "2")
    assert "... and 3 more rows" in capsys.readouterr().out


def test_json_holds_columns_and_rows(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(out, COUNT, "--json")
    assert json.loads(capsys.readouterr().out) == {
        "columns": ["category", "n"],
        "rows": [["person", 5], ["sky-other-merged", 5]],
        "total": 2,
    }


def test_every_row_goes_to_a_file(out: str, tmp_path: Path) -> None:
    call(out, "from segments", "--output", str(tmp_path / "all.parquet"), "--limit", "1")
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 10
    call(out, COUNT, "--output", str(tmp_path / "all.csv"))
    assert (tmp_path / "all.csv").read_text().splitlines()[1] == '"person",5'
    with pytest.raises(UserError, match=r"must end in \.parquet or \.csv"):
        call(out, COUNT, "--output", "all.xlsx")


def test_without_a_query_the_views_are_listed(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    call(out)
    printed = capsys.readouterr().out
    assert "segments" in printed
    assert "category_id  integer" in printed
    assert "panoptic evaluate" in printed
