"""Keys as clients write them: each object is listed once, by its own name, and fetched by it."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.planning.source import Source
from pipeline.storage.entry import classify
from pipeline.storage.local import LocalObjects
from pipeline.storage.objects import Gets, info_uri, open_object, place_of, read_named
from pipeline.storage.storage import Storage
from tests.servers import S3Server

ODD_KEYS = [
    "/a.jpg",
    "a.jpg",
    "//a.jpg",
    "a//b.jpg",
    "./a.jpg",
    "a/./b.jpg",
    "tab\t.jpg",
    "carriage\rreturn.jpg",
    "bell\x07.jpg",
    "delete\x7f.jpg",
    " leading and trailing ",
    "a+b c%20d.jpg",
    "100%.jpg",
    "<&>\"'.jpg",
    "&amp;.jpg",
    "&#13;.jpg",
    "back\\slash.jpg",
    "back\\xe9slash.jpg",
    "photo.jpg/",
    unicodedata.normalize("NFC", "café.jpg"),
    unicodedata.normalize("NFD", "café.jpg"),
    unicodedata.normalize("NFKC", "ﬁ①.jpg"),
    "ﬁ①.jpg",
    "\u200b\u202e\ufeff.jpg",
    "写真/猫.jpg",
    "😀.jpg",
    "a" * 900 + ".jpg",
]


def stays(key: str) -> bool:
    """Whether the tests' server takes this key: it resolves `..` itself, and has no line feeds."""
    return ".." not in key.split("/") and "\n" not in key


def fetch(url: str) -> bytes:
    return asyncio.run(Gets({}).get(url)).data


def put(server: S3Server, bucket: str, keys: list[str]) -> None:
    client = server.client()
    client.create_bucket(Bucket=bucket)
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())


def test_every_odd_key_of_a_bucket_is_listed_and_fetched(moto: S3Server) -> None:
    put(moto, "oddkeys", ODD_KEYS)
    moto.client().put_object(Bucket="oddkeys", Key="folder/", Body=b"")
    storage = Storage("s3://oddkeys")
    entries = list(storage.list())
    assert sorted(entry.path for entry in entries) == sorted(ODD_KEYS)
    for entry in entries:
        assert entry.size == len(entry.path.encode())
        uri = storage.join(entry.path)
        assert fetch(uri) == entry.path.encode()
        assert storage.info(entry.path).size == entry.size


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    keys=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
            min_size=1,
            max_size=30,
        )
        | st.lists(st.sampled_from(["a", "", ".", "..", "+", "%41", "é", "\t"]), min_size=1).map(
            "/".join
        ),
        min_size=1,
        max_size=4,
        unique=True,
    ).map(lambda keys: [key for key in keys if key and stays(key)])
)
def test_any_keys_come_back(moto: S3Server, keys: list[str]) -> None:
    client = moto.client()
    client.create_bucket(Bucket="any")
    storage = Storage("s3://any")
    for entry in storage.list():  # of the example before
        client.delete_object(Bucket="any", Key=entry.path)
    for key in keys:
        client.put_object(Bucket="any", Key=key, Body=key.encode())
    assert sorted(entry.path for entry in storage.list()) == sorted(keys)
    for key in keys:
        assert fetch(storage.join(key)) == key.encode()


def test_a_folder_with_a_leading_slash_is_that_folder(moto: S3Server) -> None:
    put(moto, "leading", ["/im/a.jpg", "im/b.jpg", "//im/c.jpg", "imx/d.jpg"])
    for url, expected in (
        ("s3://leading//im", ["a.jpg"]),
        ("s3://leading/im", ["b.jpg"]),
        ("s3://leading/im/", ["b.jpg"]),
        ("s3://leading///im", ["c.jpg"]),
    ):
        storage = Storage(url)
        assert [entry.path for entry in storage.list()] == expected
        assert storage.read(expected[0]).endswith(expected[0].encode())


@pytest.mark.parametrize("key", ["/run", "a//run", "a/./run", "a/../run", "a/run\x07"])
def test_nothing_is_written_where_a_key_would_become_another_s(moto: S3Server, key: str) -> None:
    put(moto, "exact", [f"{plain}/lease.json" for plain in ("run", "a/run")])
    storage = Storage(f"s3://exact/{key}")
    before = sorted(entry.path for entry in Storage("s3://exact").list())
    assert storage.look("lease.json") is None
    for write in (
        lambda: storage.write("lease.json", b"x"),
        lambda: storage.write_if_absent("lease.json", b"x"),
        lambda: storage.create_shard("lease.json", b"x"),
        lambda: storage.delete("lease.json"),
    ):
        with pytest.raises(UserError, match=r"can't be written.* such as s3://exact/(a/)?run$"):
            write()
    assert sorted(entry.path for entry in Storage("s3://exact").list()) == before
    assert Storage("s3://exact/run").read("lease.json") == b"run/lease.json"


def test_listing_reads_every_page(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.s3_listing.PAGE", 7)
    keys = [f"{number:03d}+ &.jpg" for number in range(30)]
    put(moto, "pages", keys)
    assert [entry.path for entry in Storage("s3://pages").list()] == keys


def test_a_missing_key_says_so_at_once(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="none")
    for key in ("a.jpg", "/a.jpg", "a//b\t.jpg"):
        with pytest.raises(Exception) as caught:
            fetch(f"s3://none/{key}")
        assert classify(caught.value)[0] == "not_found"


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.jpg", b"\xff\xfe", b"\x81\x40.jpg", b"tab\t\n.jpg", b"back\\xe9.jpg", b" a ", b"\\"],
)
def test_any_name_on_a_disk_is_listed_and_read(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    folder = os.fsencode(tmp_path) + b"/d\xfc"
    os.mkdir(folder)
    with open(folder + b"/" + name, "wb") as file:
        file.write(b"content")
    storage = Storage(str(tmp_path))
    entries = {entry.path: entry.size for entry in storage.list()}
    assert entries.pop("a.jpg") == 1
    [(path, size)] = entries.items()
    path.encode()
    assert size == 7
    assert fetch(storage.join(path)) == b"content"
    assert info_uri(storage.join(path), {}).size == 7


@given(
    st.binary(min_size=1, max_size=40).filter(
        lambda b: not {0, 47} & set(b) and b not in (b".", b"..")
    )
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_a_name_on_a_disk(tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / str(time.time_ns())
    folder.mkdir()
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(name)
    storage = Storage(str(folder))
    listed = [entry.path for entry in storage.list()]
    if name.startswith(b".tmp-"):
        assert not listed
    else:
        assert fetch(storage.join(listed[0])) == name


def test_what_is_no_plain_file_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink(tmp_path / "loop.jpg", tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    began = time.monotonic()
    for path in ("pipe.jpg", "loop.jpg", "folder.jpg", "a" * 300, "pipe.jpg/x", "nul\0.jpg"):
        with pytest.raises((OSError, ValueError)) as caught:
            fetch(f"{tmp_path}/{path}")
        assert classify(caught.value)[0] == "not_found"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.jpg", "s3://b/c/a.jpg"),
        ("./a.jpg", "s3://b/c/a.jpg"),
        (".//./a.jpg", "s3://b/c/a.jpg"),
        ("../d/a.jpg", "s3://b/d/a.jpg"),
        ("/abs/a.jpg", "/abs/a.jpg"),
        ("https://h/a.jpg?x=1", "https://h/a.jpg?x=1"),
        ("..a.jpg", "s3://b/c/..a.jpg"),
        (" a.jpg", "s3://b/c/ a.jpg"),
    ],
)
def test_a_name_in_a_list_has_one_place(name: str, place: str) -> None:
    assert place_of("s3://b/c", name) == place


NOBODY = 65534


def codes_of(folder: str) -> dict[str, str]:
    """What reading each listed name gives: "ok", or the code of its error."""
    [table] = Source(folder).tables()
    codes = {}
    for name, uri in zip(table["file_name"].to_pylist(), table["uri"].to_pylist(), strict=True):
        try:
            LocalObjects().get(uri)
        except OSError as error:
            codes[name] = classify(error)[0]
        else:
            codes[name] = "ok"
    return codes


def codes_for_nobody(folder: str) -> dict[str, str]:
    """The same in a process of another user."""
    read, write = os.pipe()
    if not (child := os.fork()):
        answer = "{}"
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = json.dumps(codes_of(folder))
        finally:
            os.write(write, answer.encode())
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        codes = json.load(pipe)
    os.waitpid(child, 0)
    return codes


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_read_is_a_row() -> None:
    with tempfile.TemporaryDirectory() as name:  # one that every user may pass through
        root = Path(name)
        for folder, mode in (("open", 0o755), ("closed", 0o700), ("lost+found", 0o700)):
            (root / folder).mkdir()
            (root / folder / "a.jpg").write_bytes(b"a")
            (root / folder).chmod(mode)
        root.chmod(0o755)
        assert codes_for_nobody(name) == {"open/a.jpg": "ok", "closed/": "forbidden"}


def test_an_odd_key_is_read_by_its_own_name_wherever_it_is_named(moto: S3Server) -> None:
    keys = ["/a.jpg", "a.jpg", "a//b.jpg", "b.jpg/", "b.jpg", " c.jpg"]
    put(moto, "named", keys)
    for key in keys:
        storage, name = open_object(f"s3://named/{key}")
        assert storage.read(name) == key.encode()
        assert info_uri(f"s3://named/{key}", {}).size == len(key)
        assert read_named(Storage("s3://other"), f"s3://named/{key}") == key.encode()
