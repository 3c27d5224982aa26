"""What is listed, from a folder, a list and a COCO JSON, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.planning.source import Source
from pipeline.sharding import name_hash
from tests.servers import S3Server


def listed(source: Source) -> pa.Table:
    return pa.concat_tables(source.tables())


def names(source: Source) -> list[str]:
    return sorted(listed(source)["file_name"].to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "B.PNG", "deep/er/c.webp", "notes.txt", "raw.xyz", "sp ace#1.jpeg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "images"


def test_a_folder_gives_its_images_of_any_depth_and_case(folder: Path) -> None:
    table = listed(Source(str(folder)))
    assert sorted(table["file_name"].to_pylist()) == [
        "B.PNG",
        "a.jpg",
        "deep/er/c.webp",
        "sp ace#1.jpeg",
    ]
    for row in table.to_pylist():
        assert row["uri"] == f"{folder}/{row['file_name']}"
        assert row["size"] == len(row["file_name"])
        assert row["hash"] == name_hash(row["file_name"])


def test_a_run_folder_that_is_the_source_is_refused(folder: Path) -> None:
    config = make_config({"source": str(folder), "out": f"{folder}/"})
    with pytest.raises(UserError, match=r"--out is SOURCE itself.*such as .*/images/panoptic"):
        names(Source.of(config))


def test_include_replaces_the_suffixes_and_exclude_wins(folder: Path) -> None:
    assert names(Source(str(folder), include=("*.xyz",))) == ["raw.xyz"]
    assert names(Source(str(folder), include=("deep/*",))) == ["deep/er/c.webp"]
    assert names(Source(str(folder), exclude=("deep/*", "*#*"))) == ["B.PNG", "a.jpg"]


def test_a_run_folder_inside_the_source_is_not_listed(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "overlay.png").write_bytes(b"x")
    (folder / "runner.jpg").write_bytes(b"x")
    config = make_config({"source": str(folder), "out": str(folder / "run")})
    told = Source.of(config)
    assert "runner.jpg" in names(told)
    assert f"the run folder {folder / 'run'}, which lies in SOURCE" in str(told.left_out.sentence())
    found = names(Source.of(config))
    assert "runner.jpg" in found
    assert "run/overlay.png" not in found


def test_a_bucket_is_listed_with_sizes_and_etags(rclone: S3Server) -> None:
    assert rclone.folder is not None
    (rclone.folder / "bucket/in").mkdir(parents=True)
    for number in range(1_003):  # more than one page
        (rclone.folder / f"bucket/in/{number:04d}.jpg").write_bytes(b"x" * (number % 7))
    counts: list[int] = []
    table = pa.concat_tables(Source("s3://bucket/in").tables(counts.append))
    assert table.num_rows == 1_003
    assert counts[-1] == 1_003
    assert table["uri"][0].as_py() == "s3://bucket/in/0000.jpg"
    assert table["size"].to_pylist() == [number % 7 for number in range(1_003)]
    assert None not in table["etag"].to_pylist()


def test_a_text_list_names_images_by_uri(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("s3://b/x 1.jpg\n\n/abs/y.jpg\nrel/z.jpg\n")
    table = listed(Source(str(listing)))
    assert table["file_name"].to_pylist() == ["s3://b/x 1.jpg", "/abs/y.jpg", "rel/z.jpg"]
    assert table["uri"].to_pylist() == ["s3://b/x 1.jpg", "/abs/y.jpg", f"{tmp_path}/rel/z.jpg"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_keeps_the_users_columns(tmp_path: Path, suffix: str) -> None:
    listing = tmp_path / f"list.{suffix}"
    table = pa.table({"url": ["/a.jpg", "/b.jpg"], "key": ["a", "b"], "shelf": [3, 4]})
    if suffix == "csv":
        listing.write_text("url,key,shelf\n/a.jpg,a,3\n/b.jpg,b,4\n")
    else:
        pq.write_table(table, listing)
    found = listed(Source(str(listing), name_column="key", keep_columns=("shelf",)))
    assert found["file_name"].to_pylist() == ["a", "b"]
    assert found["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]
    # A CSV holds text; Parquet says what its columns are.
    assert found["shelf"].to_pylist() == (["3", "4"] if suffix == "csv" else [3, 4])


def test_a_coco_json_gives_its_file_names(tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    for mark in ("", "\ufeff"):  # a BOM, as editors of Windows write it
        path.write_text(mark + json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}]}))
        table = listed(Source(str(path), image_root="s3://b/val"))
        assert table["file_name"].to_pylist() == ["1.jpg"]
        assert table["uri"].to_pylist() == ["s3://b/val/1.jpg"]


def test_what_can_t_be_a_source_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "bad.json").write_text('{"pictures": []}')
    cases = [
        (Source(str(tmp_path / "nowhere")), "does not exist"),
        (Source(str(tmp_path / "a.jpg")), "is one file"),
        (Source(str(tmp_path / "list.csv")), "which column holds the images"),
        (Source(str(tmp_path / "list.csv"), uri_column="c"), "no column 'c' (it has: a, b)"),
        (Source(str(tmp_path / "list.csv"), uri_column="a", keep_columns=("z",)), "no column 'z'"),
        (Source(str(tmp_path / "bad.json")), "no list `images`"),
        (Source(str(tmp_path / "missing.txt")), "does not exist"),
    ]
    for source, message in cases:
        with pytest.raises(UserError) as caught:
            listed(source)
        assert message in str(caught.value)


def test_a_kept_column_may_not_hide_one_of_the_shards(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("uri,score\n/a.jpg,2\n")
    with pytest.raises(UserError, match="'score' is the name of a column of the shards"):
        listed(Source(str(tmp_path / "list.csv"), keep_columns=("score",)))


SIGNATURE = "X-Amz-Signature=pl4nted"


def signed_list(tmp_path: Path, suffix: str = "csv") -> Path:
    """Two images, each by a URL that was signed."""
    urls = [f"https://host/{name}.jpg?X-Amz-Date=1&{SIGNATURE}" for name in "ab"]
    path = tmp_path / f"list.{suffix}"
    if suffix == "txt":
        path.write_text("\n".join(urls))
    elif suffix == "csv":
        path.write_text("uri,name\n" + "".join(f'"{url}",{n}\n' for n, url in enumerate(urls)))
    else:
        pq.write_table(pa.table({"uri": urls, "name": ["0", "1"]}), path)
    return path


@pytest.mark.parametrize("suffix", ["txt", "csv", "parquet"])
def test_signed_urls_are_refused_with_what_to_do(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UserError, match=r"--name-column; or .*--keep-signed-urls") as refused:
        listed(Source(str(signed_list(tmp_path, suffix))))
    assert "https://host/a.jpg" in str(refused.value)
    assert "pl4nted" not in str(refused.value)


def test_signed_urls_that_are_kept_name_images_without_their_signature(tmp_path: Path) -> None:
    table = listed(Source(str(signed_list(tmp_path)), keep_signed_urls=True))
    assert table["file_name"].to_pylist() == ["https://host/a.jpg", "https://host/b.jpg"]
    assert table["hash"].to_pylist() == [name_hash(n) for n in table["file_name"].to_pylist()]
    assert all(SIGNATURE in uri for uri in table["uri"].to_pylist())
    named = listed(Source(str(signed_list(tmp_path)), keep_signed_urls=True, name_column="name"))
    assert named["file_name"].to_pylist() == ["0", "1"]


def test_a_kept_column_of_signed_urls_is_refused_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"uri,thumbnail\n/a.jpg,https://host/t.jpg?{SIGNATURE}\n")
    with pytest.raises(UserError, match="thumbnail"):
        listed(Source(str(path), keep_signed_urls=True, keep_columns=("thumbnail",)))


def test_user_info_in_a_listed_url_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://u:pl4nted@host/a.jpg\n")
    with pytest.raises(UserError, match="credentials don't belong in") as refused:
        listed(Source(str(tmp_path / "list.txt"), keep_signed_urls=True))
    assert "pl4nted" not in str(refused.value)


def test_a_list_below_a_folder_named_like_a_column_keeps_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "uri=x"
    folder.mkdir()
    pq.write_table(pa.table({"uri": ["/a.jpg"]}), folder / "list.parquet")
    (folder / "list.csv").write_text("uri\n/a.jpg\n")
    for name in ("list.parquet", "list.csv"):
        assert listed(Source(str(folder / name)))["uri"].to_pylist() == ["/a.jpg"]
