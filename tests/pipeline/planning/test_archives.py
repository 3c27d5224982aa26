"""The manifest rows of archives, wherever a source names them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.planning.source import Source
from pipeline.storage.archives import extract
from tests.archive_files import tarred, zipped
from tests.odd_files import encode, picture

DOCS = Path(__file__).parents[3] / "docs"
ZIP = {"val/0.jpg": b"zero", "val/1.JPG": b"one", "readme.txt": b"no photo", "__MACOSX/0.jpg": b"x"}
TAR = {"2.jpg": b"two", "2.cls": b"no photo", "3.png": b"three"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    (root / "val.zip").write_bytes(zipped(ZIP))
    (root / "more" / "shard.tar").write_bytes(tarred(TAR))
    (root / "loose.jpg").write_bytes(b"loose")
    return root


def rows(source: Source) -> dict[str, dict[str, Any]]:
    listed = [row for table in source.tables() for row in table.to_pylist()]
    assert len({row["file_name"] for row in listed}) == len(listed)
    return {row["file_name"]: row for row in listed}


def content(row: dict[str, Any]) -> bytes:
    """What the row's range and its CRC32 give."""
    archive = Path(row["uri"].partition("#")[0]).read_bytes()
    start, length = row["member_offset"], row["member_length"]
    body = archive[start : start + length]
    return extract(row["member_archive"], body, row["size"], row["member_crc32"])


def test_members_stand_beside_loose_photos(folder: Path) -> None:
    source = Source(str(folder))
    listed = rows(source)
    assert set(listed) == {
        *("loose.jpg", "val.zip/val/0.jpg", "val.zip/val/1.JPG"),
        *("more/shard.tar/2.jpg", "more/shard.tar/3.png"),
    }
    assert listed["val.zip/val/0.jpg"]["uri"] == f"{folder}/val.zip#val/0.jpg"
    assert listed["loose.jpg"]["member_archive"] is None
    found = {name: content(row) for name, row in listed.items() if row["member_archive"]}
    assert found == {
        "val.zip/val/0.jpg": b"zero",
        "val.zip/val/1.JPG": b"one",
        "more/shard.tar/2.jpg": b"two",
        "more/shard.tar/3.png": b"three",
    }
    said = source.left_out.sentence()
    assert said is not None
    assert "1 .txt" in said
    assert "1 .cls" in said
    assert "1 companion file" in said


@pytest.mark.parametrize("path", ["val.zip", "more/shard.tar"])
def test_an_archive_is_a_source(folder: Path, path: str) -> None:
    listed = rows(Source(str(folder / path)))
    name = Path(path).name
    assert all(key.startswith(f"{name}/") for key in listed)
    assert len(listed) == 2


def test_a_list_of_archives_and_photos(folder: Path) -> None:
    (folder / "list.txt").write_text("loose.jpg\nval.zip\nmore/shard.tar\n")
    assert set(rows(Source(str(folder / "list.txt")))) == {
        *("loose.jpg", "val.zip/val/0.jpg", "val.zip/val/1.JPG"),
        *("more/shard.tar/2.jpg", "more/shard.tar/3.png"),
    }


def test_a_list_of_archives_keeps_no_columns(folder: Path) -> None:
    table = pa.table({"uri": ["val.zip"], "camera": ["left"]})
    pq.write_table(table, folder / "list.parquet")
    source = Source(str(folder / "list.parquet"), keep_columns=("camera",))
    with pytest.raises(UserError, match="--keep-columns"):
        rows(source)


def test_a_coco_json_over_a_zip(folder: Path) -> None:
    images = [{"id": n, "file_name": name} for n, name in enumerate(["0.jpg", "1.JPG", "gone.jpg"])]
    (folder / "coco.json").write_text(json.dumps({"images": images}))
    source = Source(str(folder / "coco.json"), image_root=str(folder / "val.zip"))
    listed = rows(source)
    assert set(listed) == {"0.jpg", "1.JPG", "gone.jpg"}
    assert content(listed["1.JPG"]) == b"one"
    assert listed["gone.jpg"]["member_fault"].startswith("not_found: ")


def test_patterns_choose_members_and_archives(folder: Path) -> None:
    assert set(rows(Source(str(folder), include=("*.png", "val.zip/*/0.jpg")))) == {
        "more/shard.tar/3.png",
        "val.zip/val/0.jpg",
    }
    left = rows(Source(str(folder), exclude=("*.tar", "val.zip/val/0*")))
    assert set(left) == {"loose.jpg", "val.zip/val/1.JPG"}


@pytest.mark.parametrize(
    ("name", "data", "code", "members"),
    [
        ("bad.zip", zipped(ZIP)[:-5], "truncated", 0),
        ("bad.zip", b"", "empty", 0),
        ("bad.tar", tarred(TAR)[:1600], "truncated", 1),
        ("bad.tar", b"not a tar at all" * 100, "corrupt", 0),
    ],
)
def test_a_damaged_archive_is_a_row_of_its_own_beside_what_is_whole(
    folder: Path, name: str, data: bytes, code: str, members: int
) -> None:
    before = rows(Source(str(folder)))
    (folder / name).write_bytes(data)
    listed = rows(Source(str(folder)))
    assert listed[name]["member_fault"].startswith(f"{code}: ")
    assert len(listed) == len(before) + 1 + members


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.TAR.XZ"])
def test_a_compressed_tar_is_refused_with_the_mend(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=r"unpack it to a plain \.tar"):
        rows(Source(str(folder / name)))
    source = Source(str(folder))
    assert len(rows(source)) == 5
    assert "1 compressed tar" in str(source.left_out.sentence())


def test_a_run_that_is_older_than_archives_goes_on_without_them(folder: Path) -> None:
    config = make_config({"source": str(folder), "out": str(folder.parent / "run"), "weights": "x"})
    recorded = {"suffixes": ["jpg", "png"]}
    assert set(rows(Source.of(config, recorded))) == {"loose.jpg"}
    assert len(rows(Source.of(config, {**recorded, "archives": True}))) == 5


def test_a_folder_may_be_named_as_an_archive(tmp_path: Path) -> None:
    (tmp_path / "set.zip").mkdir()
    (tmp_path / "set.zip" / "a.jpg").write_bytes(b"a")
    assert set(rows(Source(str(tmp_path)))) == {"set.zip/a.jpg"}
    assert set(rows(Source(str(tmp_path / "set.zip")))) == {"a.jpg"}


@pytest.mark.parametrize("nested", [False, True])
def test_images_in_parquet_are_refused_and_the_recipe_of_the_docs_unpacks_them(
    tmp_path: Path, nested: bool
) -> None:
    pictures = [encode(Image.fromarray(picture()), kind) for kind in ("JPEG", "PNG")]
    values = [{"bytes": data, "path": None} for data in pictures] if nested else pictures
    pq.write_table(pa.table({"image": values, "label": [1, 2]}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=r"holds the images themselves.*docs/sources\.md"):
        rows(Source(str(tmp_path / "train.parquet")))
    recipe = (DOCS / "sources.md").read_text().partition("```python\n")[2].partition("```")[0]
    command = [sys.executable, "-c", recipe, "train.parquet", "train.tar"]
    subprocess.run(command, cwd=tmp_path, check=True)
    listed = rows(Source(str(tmp_path / "train.tar")))
    assert [content(row) for row in listed.values()] == pictures
