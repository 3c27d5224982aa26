"""Members of zips and tars: listed by ranges, read alone, against `zipfile` and `tarfile`."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.storage.archives import (
    BadMemberError,
    Listing,
    extract,
    is_compressed_tar,
    kind_of,
    list_members,
    member_uri,
    split_member,
)
from pipeline.storage.storage import Storage
from tests.archive_files import tarred, zipped

RANDOM = np.random.default_rng(0)
FILES = {
    "a.jpg": b"",
    "folder/b.png": RANDOM.bytes(70_000),
    "folder/\u00e4 \u65e5.jpg": b"x" * 300_000,
    "../../x.jpg": b"outside",
    "c" * 180 + "/" + "d" * 120 + ".jpg": b"a long name",
}


WITH_FOLDER = {"folder/": b"", **FILES}
ARCHIVES = {
    "stored.zip": zipped(WITH_FOLDER),
    "deflated.zip": zipped(WITH_FOLDER, zipfile.ZIP_DEFLATED),
    "gnu.tar": tarred(FILES),
    "pax.tar": tarred(FILES, tarfile.PAX_FORMAT),
}


def listed(tmp_path: Path, name: str, data: bytes) -> Listing:
    (tmp_path / name).write_bytes(data)
    storage = Storage(tmp_path)
    return list_members(storage, storage.info(name))


def read(data: bytes, name: str, listing: Listing) -> dict[str, bytes]:
    kind = kind_of(name)
    assert kind is not None
    return {
        m.name: extract(kind, data[m.offset : m.offset + m.length], m.size, m.crc32)
        for m in listing.members
    }


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_member_is_listed_and_read_by_its_range(tmp_path: Path, name: str) -> None:
    listing = listed(tmp_path, name, ARCHIVES[name])
    assert listing.fault is None
    assert read(ARCHIVES[name], name, listing) == FILES
    assert [m.crc32 for m in listing.members] == [zlib.crc32(data) for data in FILES.values()]


def test_a_zip_that_is_written_as_a_stream_has_its_sizes_behind_the_data(tmp_path: Path) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.data = bytearray()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.data += data
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        for name, data in FILES.items():
            archive.writestr(name, data)
    listing = listed(tmp_path, "a.zip", bytes(pipe.data))
    assert read(bytes(pipe.data), "a.zip", listing) == FILES


def test_zip64_of_more_than_65535_members(tmp_path: Path) -> None:
    files = {f"{number:06}.jpg": b"%d" % number for number in range(66_000)}
    data = zipped(files)
    listing = listed(tmp_path, "a.zip", data)
    assert len(listing.members) == 66_000
    assert read(data, "a.zip", listing) == files


@pytest.mark.parametrize("name", ["stored.zip", "gnu.tar"])
def test_of_two_members_of_one_name_the_last_counts(tmp_path: Path, name: str) -> None:
    sink = io.BytesIO()
    if name.endswith("zip"):
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("a.jpg", b"old")
            archive.writestr("b.jpg", b"other")
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr("a.jpg", b"new")
    else:
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for member, data in (("a.jpg", b"old"), ("b.jpg", b"other"), ("a.jpg", b"new")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    listing = listed(tmp_path, name, sink.getvalue())
    assert read(sink.getvalue(), name, listing) == {"a.jpg": b"new", "b.jpg": b"other"}
    assert listing.skipped.total() == 1


def test_links_devices_and_sparse_files_of_a_tar_are_counted(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("soft.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("disk.jpg", tarfile.BLKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("a.jpg"))
    listing = listed(tmp_path, "a.tar", sink.getvalue())
    assert [m.name for m in listing.members] == ["a.jpg"]
    assert dict(+listing.skipped) == {"links": 2, "devices": 2}


@pytest.mark.parametrize("name", ["gnu.tar", "pax.tar"])
def test_a_tar_cut_anywhere_lists_what_is_whole(tmp_path: Path, name: str) -> None:
    data = ARCHIVES[name]
    whole = listed(tmp_path, name, data).members
    ends = [m.offset + m.size for m in whole]
    for length in [*range(512, len(data), 7_168), *ends, *(end - 1 for end in ends)]:
        listing = listed(tmp_path, name, data[:length])
        kept = [m for m in whole if m.offset + m.size <= length]
        # An empty file counts once the header that follows it is there.
        assert kept[: len(listing.members)] == listing.members
        assert len(kept) - len(listing.members) <= 1, length
        if length < ends[-1] + 1024:
            assert listing.code == "truncated", (length, listing.fault)


def test_a_damaged_header_of_a_tar_is_no_silent_end(tmp_path: Path) -> None:
    data = bytearray(ARCHIVES["gnu.tar"])
    third = listed(tmp_path, "a.tar", bytes(data)).members[2].offset - 512
    data[third + 148 : third + 156] = b"\xff" * 8
    listing = listed(tmp_path, "a.tar", bytes(data))
    assert [m.name for m in listing.members] == list(FILES)[:2]
    assert listing.code == "corrupt"


def test_two_tars_in_one_file_are_no_silent_half(tmp_path: Path) -> None:
    listing = listed(tmp_path, "a.tar", ARCHIVES["gnu.tar"] * 2)
    assert listing.code == "corrupt"
    assert "two tars" in str(listing.fault)


def test_a_tar_header_that_promises_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header)
        file.truncate(9 << 30)  # takes no space
    storage = Storage(tmp_path)
    listing = list_members(storage, storage.info("a.tar"))
    assert listing.code == "corrupt"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.zip", b"", "empty"),
        ("a.tar", b"", "empty"),
        ("a.zip", ARCHIVES["stored.zip"][:-10], "truncated"),
        ("a.zip", ARCHIVES["stored.zip"][:1000], "truncated"),
        ("a.zip", b"<html>not here</html>", "corrupt"),
        ("a.tar", b"<html>not here</html>" * 100, "corrupt"),
        ("a.tar", zlib.compress(b"x" * 9000, wbits=31), "unsupported"),
    ],
)
def test_what_is_no_whole_archive_has_a_code_and_a_sentence(
    tmp_path: Path, name: str, data: bytes, code: str
) -> None:
    listing = listed(tmp_path, name, data)
    assert listing.code == code
    assert listing.fault
    assert not listing.members


def test_an_archive_without_members_is_whole(tmp_path: Path) -> None:
    for name, data in (("a.zip", zipped({})), ("a.tar", tarred({}))):
        listing = listed(tmp_path, name, data)
        assert not listing.members
        assert listing.fault is None


def test_members_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    reads: list[int] = []

    class Counting(Storage):
        def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
            reads.append(length)
            return super().read_range(path, start, length, etag)

    data = tarred({"big.bin": bytes(40 << 20), "a.jpg": b"a"})
    (tmp_path / "a.tar").write_bytes(data)
    storage = Counting(tmp_path)
    listing = list_members(storage, storage.info("a.tar"), lambda name: name.endswith(".jpg"))
    assert [m.name for m in listing.members] == ["a.jpg"]
    assert sum(reads) < 20 << 20


@pytest.mark.parametrize("name", ["stored.zip", "deflated.zip"])
def test_a_zip_is_listed_by_at_most_four_reads(tmp_path: Path, name: str) -> None:
    reads: list[int] = []

    class Counting(Storage):
        def read_range(self, path: str, start: int, length: int, etag: str | None = None) -> bytes:
            reads.append(length)
            return super().read_range(path, start, length, etag)

    files = {f"{number:06}.jpg": RANDOM.bytes(20) for number in range(20_000)}
    (tmp_path / name).write_bytes(zipped(files))
    storage = Counting(tmp_path)
    assert len(list_members(storage, storage.info(name)).members) == 20_000
    assert len(reads) <= 4


def test_an_encrypted_member_and_other_methods_are_unsupported(tmp_path: Path) -> None:
    for change, words in ((b"\x01\x00", "encrypted"), (None, "bzip2")):
        data = bytearray(zipped(FILES, zipfile.ZIP_BZIP2 if change is None else zipfile.ZIP_STORED))
        (member, *_) = [m for m in listed(tmp_path, "a.zip", bytes(data)).members if m.size]
        if change:
            data[member.offset + 6 : member.offset + 8] = change
        body = bytes(data[member.offset : member.offset + member.length])
        with pytest.raises(BadMemberError, match=words) as caught:
            extract("zip", body, member.size, member.crc32)
        assert caught.value.code == "unsupported"


def test_a_member_that_inflates_beyond_its_size_is_stopped(tmp_path: Path) -> None:
    data = zipped({"a.jpg": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    (member,) = listed(tmp_path, "a.zip", data).members
    body = data[member.offset : member.offset + member.length]
    with pytest.raises(BadMemberError, match="has 101 bytes"):
        extract("zip", body, 100, member.crc32)


@pytest.mark.parametrize("name", ["stored.zip", "deflated.zip", "gnu.tar"])
def test_a_flipped_bit_is_no_member(tmp_path: Path, name: str) -> None:
    data = ARCHIVES[name]
    member = listed(tmp_path, name, data).members[1]
    body = bytearray(data[member.offset : member.offset + member.length])
    body[len(body) // 2] ^= 4
    with pytest.raises(BadMemberError) as caught:
        extract(str(kind_of(name)), bytes(body), member.size, member.crc32)
    assert caught.value.code in ("unavailable", "corrupt", "changed")


def test_uris_of_members() -> None:
    uri = member_uri("s3://bucket/a#b/val.ZIP", "val/1#2.jpg")
    assert split_member(uri) == ("s3://bucket/a#b/val.ZIP", "val/1#2.jpg")
    assert split_member("s3://bucket/a.jpg#x") is None
    assert split_member("/data/zip#1/a.jpg") is None


@pytest.mark.parametrize(
    ("path", "kind", "compressed"),
    [
        ("a.zip", "zip", False),
        ("b/a.TAR", "tar", False),
        ("a.tar.gz", None, True),
        ("a.tgz", None, True),
        ("zip", None, False),
        ("a.zip/b.jpg", None, False),
    ],
)
def test_archives_are_known_by_their_suffix(path: str, kind: str | None, compressed: bool) -> None:
    assert kind_of(path) == kind
    assert is_compressed_tar(path) == compressed
