"""Lists: text stays text, columns keep their names, and what can't be read is said by its line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import EXIT_USAGE, UserError
from pipeline.evaluation.truth_join import resolve
from pipeline.panoptic.per_image import PER_IMAGE_SCHEMA
from pipeline.planning.generations import stage_listing
from pipeline.planning.lists import TAKEN
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.schema import MANIFEST_SCHEMA, SHARD_SCHEMA
from pipeline.segmentation.fetch import FETCHED_FIELDS, UNIT_FIELDS
from pipeline.segmentation.segmenter import error_row, shard_table
from pipeline.segmentation.sink import UNIT_COLUMN

TRICKY = [
    *("000042", "1.10", "1e5", "0x1F", "+7", "1_000", "1,000", "true", "NULL", "NA", "nan", "inf"),
    *("2026-11-27", "12:30", "#1.jpg", "'a'", ' "q" ', " leading", "trailing ", "a\tb", "é", "0"),
]


def table(source: Source) -> pa.Table:
    return pa.concat_tables(source.tables())


def write_csv(path: Path, rows: list[list[str]], delimiter: str = ",") -> Source:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return Source(str(path))


def with_columns(source: Source, **columns: Any) -> Source:
    return Source(source.url, **columns)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_what_looks_like_a_number_stays_text(tmp_path: Path, delimiter: str) -> None:
    for value in TRICKY:  # alone: among others each would stay text anyway
        rows = [["id", "path", "kept"], [value, "a.jpg", value]]
        source = write_csv(tmp_path / "list.csv", rows, delimiter)
        found = table(with_columns(source, name_column="id", keep_columns=("kept",)))
        assert found["file_name"].to_pylist() == [value]
        assert found["kept"].to_pylist() == [value]
        assert found["kept"].type == pa.string()


def test_late_lines_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.lists.CSV_BLOCK", 1 << 14)  # the first holds numbers
    names = [str(number) for number in range(100_000, 125_000)] + ["000042", "x"]
    rows = [["path", "n"], *([name, name] for name in names)]
    found = table(with_columns(write_csv(tmp_path / "a.csv", rows), keep_columns=("n",)))
    assert found["file_name"].to_pylist() == names
    assert found["n"].to_pylist() == names


FIELD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(FIELD, FIELD | st.just("")), min_size=1, max_size=20))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_through_a_csv(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    rows = [["path", "kept"], *map(list, pairs)]
    found = table(with_columns(write_csv(tmp_path / "any.csv", rows), keep_columns=("kept",)))
    assert found["file_name"].to_pylist() == [name for name, _ in pairs]
    assert [value or "" for value in found["kept"].to_pylist()] == [kept for _, kept in pairs]


@given(st.lists(FIELD.filter(str.strip), min_size=1, max_size=20), st.booleans(), st.booleans())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_through_a_txt(
    tmp_path: Path, names: list[str], mark: bool, windows: bool
) -> None:
    names = [name for name in names if name.splitlines() == [name] and "\ufeff" not in name]
    end = "\r\n" if windows else "\n"
    text = ("\ufeff" if mark else "") + "".join(name + end for name in names)
    (tmp_path / "any.txt").write_bytes(text.encode())
    tables = list(Source(str(tmp_path / "any.txt")).tables())
    assert [name for t in tables for name in t["file_name"].to_pylist()] == names


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["007", "1e5"]),
        pa.array([b"007", b"1e5"]),
        pa.array(["007", "1e5"]).dictionary_encode(),
        pa.array(["007", "1e5"], pa.large_string()),
    ],
)
def test_parquet_s_text_of_any_kind(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"url": column, "n": [7, 8]}), tmp_path / "a.parquet")
    found = table(Source(str(tmp_path / "a.parquet"), keep_columns=("n",)))
    assert found["file_name"].to_pylist() == ["007", "1e5"]
    assert found["n"].to_pylist() == [7, 8]


BAD: list[tuple[str, bytes, str]] = [
    ("a.txt", "b.jpg\ncaf\xe9.jpg\n".encode("latin-1"), "line 2"),
    ("a.csv", "path\nb.jpg\ncaf\xe9.jpg\n".encode("latin-1"), "line 3"),
    ("a.csv", "path\nb.jpg\n".encode("utf-16"), "UTF-16"),
    ("a.txt", "b.jpg\n".encode("utf-16"), "UTF-16"),
    ("a.txt", b"\xff\xd8\xff\xe0\0\x10JFIF", "zero bytes"),
    ("a.csv", b"", "empty"),
    ("a.csv", b"path,b\n1.jpg,2\n1.jpg,2,3\n", "3"),
    ("a.csv", b"path,path\n1.jpg,2.jpg\n", "2 columns 'path'"),
    ("a.csv", b"photo,b\n1.jpg,2\n", "--uri-column"),
    ("a.csv", b"path,b\n,2\n", "empty name or URI"),
    ("a.csv", b'path,b\n1.jpg,2\n"2.jpg,3\n3.jpg,4\n', "line 3: a quote is not closed"),
    ("a.csv", b'path,b\n1.jpg,"2\n' + b"3.jpg,4\n" * 30_000, "line 2: a quote is not closed"),
    ("a.csv", b'path,b\nc.jpg,3\n"a\\"b.jpg",2\n', "line 3: text follows a closing quote"),
    ("a.csv", b'path,b\n1.jpg,"\\"2\\" wide"\n', "line 2: text follows a closing quote"),
    ("a.csv", "path,caf\xe9\n1.jpg,2\n".encode("latin-1"), "line 1"),
    ("a.parquet", b"PAR1 no", "Parquet"),
    ("a.parquet", b"", "Parquet"),
    ("a.json", b'{"sourceBucket": "b", "fileFormat": "Parquet"}', "it lacks 'files'"),
    ("a.json", b"{", "line 1"),
    ("a.json", b'{"images": [{"file_name": "\xff"}]}', "UTF-8"),
    ("a.json", b'{"images": [{"file_name": "\\ud800.jpg"}]}', "half a character"),
    ("a.json", b'{"images": [{"file_name": "a"}\n{"id": 2}]}', "line 2"),
    ("a.json", b'{"images": ' + b"[" * 5000, "nested"),
    ("a.json", b'{"images": [' + b"9" * 5000 + b"]}", "line 1"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD)
def test_what_can_t_be_read_is_said_of_the_file(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(Source(str(tmp_path / name)).tables())
    assert caught.value.exit_code == EXIT_USAGE
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)
    assert "network" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet", "json"])
@given(st.binary(max_size=300))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_read_or_refused_in_a_sentence(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    (tmp_path / f"any.{suffix}").write_bytes(content)
    said = ""
    try:
        list(Source(str(tmp_path / f"any.{suffix}")).tables())
    except UserError as error:
        said = str(error)
    assert "network" not in said


def test_a_folder_may_be_named_like_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "photos.csv"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"x")
    assert table(Source(str(folder)))["file_name"].to_pylist() == ["a.jpg"]


OURS = sorted(
    {
        *SHARD_SCHEMA.names,
        *MANIFEST_SCHEMA.names,
        *PER_IMAGE_SCHEMA.names,
        *UNIT_FIELDS,
        UNIT_COLUMN,
        "segments",
        *(field.name for field in FETCHED_FIELDS),
    }
)


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("name", OURS)
def test_our_names_are_refused_in_any_case(
    tmp_path: Path, name: str, change: Callable[[str], str]
) -> None:
    column = change(name)
    source = write_csv(tmp_path / "a.csv", [["path_of", column], ["a.jpg", "1"]])
    wanted = with_columns(source, uri_column="path_of", keep_columns=(column,))
    with pytest.raises(UserError, match="rename it"):
        list(wanted.tables())


def test_two_kept_columns_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "a.csv", [["path", "Label", "label"], ["a.jpg", "1", "2"]])
    for kept in (("Label", "label"), ("label", "label")):
        with pytest.raises(UserError, match="rename it"):
            list(with_columns(source, keep_columns=kept).tables())
    found = table(with_columns(source, keep_columns=("Label",)))
    assert found["Label"].to_pylist() == ["1"]


@given(FIELD.filter(lambda name: name.lower() not in {*TAKEN, "path"}))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_other_name_reaches_the_shard(tmp_path: Path, name: str) -> None:
    source = write_csv(tmp_path / "a.csv", [["path", name], ["a.jpg", "00007"]])
    unit = table(with_columns(source, keep_columns=(name,)))
    unit = unit.append_column("generation", pa.array([1], pa.int32()))
    shard = shard_table(unit, [error_row("empty", "x")], "1")
    assert shard[name].to_pylist() == ["00007"]
    assert len(set(shard.column_names)) == len(shard.column_names)


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "image_id",
        "base",
        "failed",
        "manifest",
        "listing",
        "old",
        "new",
        "images",
        "a b",
        'q"x',
    ],
)
def test_names_of_our_tables_and_views_are_kept(tmp_path: Path, name: str) -> None:
    source = write_csv(tmp_path / "a.csv", [["path", name], ["a.jpg", "7"], ["b.jpg", "8"]])
    with Staging() as staging:
        stage_listing(staging, with_columns(source, keep_columns=(name,)), None, lambda n: None)
        staging.connection.execute("create view manifest as from listing")
        staging.connection.execute("create table truth as select 'a.jpg' as name, '1' as image_id")
        staging.connection.execute("create table annotations as select '1' as image_id")
        resolve(staging, "truth.json")
        [rows] = staging.in_order("listing")
        assert sorted(rows[name].to_pylist()) == ["7", "8"]
        assert staging.count("select count(*) from resolved") == 1


def test_a_list_of_nothing_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"path,b\n")
    with Staging() as staging, pytest.raises(UserError, match="it lists none"):
        stage_listing(staging, Source(str(tmp_path / "a.csv")), None, lambda count: None)


def test_quotes_within_a_field_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'path\n12" disc.jpg\n"a ""b"" c.jpg"\n"C:\\d\\"\ne\\"f"\n')
    assert table(Source(str(tmp_path / "a.csv")))["file_name"].to_pylist() == [
        '12" disc.jpg',
        'a "b" c.jpg',
        "C:\\d\\",
        'e\\"f"',
    ]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_gap_among_numbers_is_no_name(tmp_path: Path, kind: pa.DataType) -> None:
    ids = pa.array([1.0, float("nan"), 3.0]).cast(kind)
    pq.write_table(
        pa.table({"path": ["a.jpg", "b.jpg", "c.jpg"], "id": ids}), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match="empty name"):
        table(Source(str(tmp_path / "a.parquet"), name_column="id"))


KEPT = {
    "text": pa.array(["a", None, "c"], pa.large_string()).dictionary_encode(),
    "bytes": pa.array([b"\xff\0", b"", None], pa.binary()),
    "instant": pa.array([1, 2, None], pa.timestamp("ns")),
    "day": pa.array([1, 2, None], pa.date32()),
    "price": pa.array([Decimal("1.10"), None, Decimal("9" * 36 + ".99")], pa.decimal128(38, 2)),
    "large": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "half": pa.array([1.5, 2, None], pa.float16()),
    "flag": pa.array([True, None, False]),
    "nothing": pa.nulls(3),
    "deep": pa.array([{"a": [1], "b": {"c": "x"}}, None, {"a": None, "b": None}]),
    "pairs": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    "four": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_values_of_any_type_come_through(tmp_path: Path, name: str) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["0.jpg", "1.jpg", "2.jpg"], name: KEPT[name]}), path)
    with Staging() as staging:
        stage_listing(staging, Source(str(path), keep_columns=(name,)), None, lambda count: None)
        rows = pa.concat_tables(staging.in_order("listing")).sort_by("file_name")
    assert rows[name].to_pylist() == KEPT[name].to_pylist()


@pytest.mark.parametrize(
    "kind", [pa.duration("us"), pa.decimal256(60, 2), pa.list_(pa.duration("s"))]
)
def test_kept_values_that_would_change_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": ["0.jpg"], "kept": pa.nulls(1, kind)}), path)
    with pytest.raises(UserError, match=r"--keep-columns 'kept'.*cast it"):
        table(Source(str(path), keep_columns=("kept",)))
