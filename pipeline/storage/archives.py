"""Zip and tar archives: their members listed with offset, length and CRC32, and one member read.

A member is read by one ranged GET. The range of a zip member begins at the member's own header,
since only this header says where the member's data begin (APPNOTE.TXT, 4.3.7). The range of a tar
member holds its data alone.

A zip has a directory at its end, so listing it takes two or three GETs. A tar has none, so listing
it reads all of it once. Both listings go by Python's `zipfile` and `tarfile`.
"""

from __future__ import annotations

import io
import itertools
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

from pipeline.storage.entry import Entry
from pipeline.storage.storage import Storage

Wanted = Callable[[str], bool]
KINDS: Final = ("zip", "tar")
# A suffix of a tar that is compressed as a whole: no range of it can be read alone.
COMPRESSED_TARS: Final = (
    *("tgz", "tbz", "tbz2", "txz", "tzst", "tlz"),
    *("tar.gz", "tar.bz2", "tar.xz", "tar.zst", "tar.lz4", "tar.lzma", "tar.z"),
)
LARGEST_MEMBER: Final = 1 << 30  # bytes; a larger one would fill a worker's memory
_TAIL: Final = 256 << 10  # bytes at the end of a zip that are read at once
CHUNK: Final = 8 << 20  # bytes of a tar that are read at once
# Of a zip member's own header (30 bytes, name, extra field) and what may follow its data.
_LARGEST_FRAME: Final = 30 + 2 * 0xFFFF + 24
# Tar headers whose data `tarfile` reads into memory: long names and PAX records.
_RECORDS: Final = (b"L", b"K", b"x", b"g", b"X")
_LARGEST_RECORD: Final = 1 << 20  # bytes
# First bytes of gzip, bzip2, xz, zstd, lz4.
_MAGICS: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_ENCRYPTED: Final = 0x1
_PATCH: Final = 0x20


class Member(NamedTuple):
    """A file within an archive.

    offset, length: the bytes of the archive to GET. size: bytes of the file. crc32: of the file.
    """

    name: str
    offset: int
    length: int
    size: int
    crc32: int


@dataclass
class Listing:
    """The members of an archive, in the order in which they lie there.

    skipped: other members by kind, such as links. fault: why members may be missing; None if the
    archive is whole. code: the error code of `fault`.
    """

    members: list[Member] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    code: str | None = None
    fault: str | None = None


class BadMemberError(Exception):
    """A member that can't be read; `code` of `schema.ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def kind_of(path: str) -> str | None:
    """`zip` or `tar` by the suffix of a path, else None."""
    suffix = path.rpartition(".")[2].lower()
    return suffix if suffix in KINDS and "." in path.rpartition("/")[2].lstrip(".") else None


def is_compressed_tar(path: str) -> bool:
    return path.lower().endswith(tuple(f".{suffix}" for suffix in COMPRESSED_TARS))


def list_members(storage: Storage, entry: Entry, wanted: Wanted = lambda name: True) -> Listing:
    """The members of the archive `entry`, listed in `storage`. Raises what the client raises.

    wanted: whether the member of a name is to be listed; data of other members are not read. A
    damaged archive lists what is whole, and has a `fault`. Of several members of one name the last
    one counts, as when the archive is unpacked.
    """
    lister = {"zip": _list_zip, "tar": _list_tar}[str(kind_of(entry.path))]
    listing = Listing()
    lister(storage, entry, listing, wanted)
    last = {member.name: member for member in listing.members}
    if len(last) < len(listing.members):
        listing.skipped["of a name that comes again"] = len(listing.members) - len(last)
        listing.members = sorted(last.values(), key=lambda member: member.offset)
    return listing


# -- zip


def _list_zip(storage: Storage, entry: Entry, listing: Listing, wanted: Wanted) -> None:
    try:
        archive = zipfile.ZipFile(RangedFile(storage, entry, _TAIL))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        listing.code, listing.fault = _zip_fault(storage, entry, error)
        return
    infos = archive.infolist()
    starts = sorted({info.header_offset for info in infos} | {archive.start_dir})
    after = dict(itertools.pairwise(starts))
    for info in infos:
        if info.is_dir() or not wanted(info.filename):
            continue
        if info.header_offset not in after:
            listing.skipped["outside the archive"] += 1
            continue
        most = info.compress_size + _LARGEST_FRAME
        length = min(after[info.header_offset] - info.header_offset, most)
        listing.members.append(
            Member(info.filename, info.header_offset, length, info.file_size, info.CRC)
        )
    listing.members.sort(key=lambda member: member.offset)


def _zip_fault(storage: Storage, entry: Entry, error: Exception) -> tuple[str, str]:
    if not entry.size:  # S3 has no range of an empty object
        return "empty", "the archive is empty"
    if storage.read_range(entry.path, 0, 2, entry.etag) == b"PK":
        return "truncated", "the zip has no directory at its end: it is cut off, or one of several"
    return "corrupt", f"not a zip: {error}"


class RangedFile(io.RawIOBase):
    """An object as a file: a read is a ranged GET, and the last `tail` bytes are one GET."""

    def __init__(self, storage: Storage, entry: Entry, tail: int = 0) -> None:
        self._storage, self._entry, self._position = storage, entry, 0
        self._tail_start = max(0, entry.size - tail)
        self._tail: bytes | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        if base + offset < 0:
            raise OSError("a seek before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), self._entry.size - self._position)
        if length <= 0:
            return 0
        if self._position < self._tail_start:
            data = self._get(self._position, length)
        else:
            if self._tail is None:
                self._tail = self._get(self._tail_start, self._entry.size - self._tail_start)
            start = self._position - self._tail_start
            data = self._tail[start : start + length]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _get(self, start: int, length: int) -> bytes:
        return self._storage.read_range(self._entry.path, start, length, self._entry.etag)


# -- tar


def _list_tar(storage: Storage, entry: Entry, listing: Listing, wanted: Wanted) -> None:
    file = io.BufferedReader(RangedFile(storage, entry), CHUNK)
    if not entry.size:
        listing.code, listing.fault = "empty", "the archive is empty"
        return
    if file.peek(8).startswith(_MAGICS):
        listing.code = "unsupported"
        listing.fault = "the tar is compressed, so no member can be read alone: unpack it to a .tar"
        return
    offset = 0
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else all headers are kept
                if kind := _skipped_kind(info):
                    listing.skipped[kind] += kind != "folders"
                elif wanted(name := _text(info.name)):
                    crc = _crc32(file, info.offset_data, info.size)
                    member = Member(name, info.offset_data, info.size, info.size, crc)
                    listing.members.append(member)
            offset = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        whole = f"; {len(listing.members):,} members before are whole" if listing.members else ""
        cut = file.tell() >= entry.size
        listing.code = "truncated" if cut else "corrupt"
        listing.fault = f"the tar is cut off{whole}" if cut else f"not a whole tar: {error}{whole}"
        return
    _look_at_end(file, offset, listing)


def _look_at_end(file: io.BufferedReader[RangedFile], offset: int, listing: Listing) -> None:
    """Find damage where `tarfile` stops without a word. offset: of the first header not read."""
    file.seek(offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        listing.code, listing.fault = "truncated", "the tar is cut off before the mark at its end"
    elif mark.strip(b"\0"):
        listing.code, listing.fault = "corrupt", f"the tar is damaged at byte {offset:,}"
    elif any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(CHUNK), b"")):
        listing.code = "corrupt"
        listing.fault = "data follow the mark at the tar's end: two tars in one file, or damage"


class _Header(tarfile.TarInfo):
    """A header whose long name or PAX records are bounded; `tarfile` reads them into memory."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _RECORDS and header.size > _LARGEST_RECORD:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _skipped_kind(info: tarfile.TarInfo) -> str | None:
    """A plural for members that are no plain files, None for plain files."""
    if info.isdir():
        return "folders"
    if info.issym() or info.islnk():
        return "links"
    if info.issparse():
        return "sparse files"
    return None if info.isreg() else "devices"


def _text(name: str) -> str:
    """A member's name as text: `\\xNN` for each byte that isn't UTF-8, as for files on a disk."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _crc32(file: io.BufferedReader[RangedFile], offset: int, size: int) -> int:
    """Raises EOFError if the file ends within the member."""
    file.seek(offset)
    crc = 0
    while size:
        if not (chunk := file.read(min(size, CHUNK))):
            raise EOFError
        crc, size = zlib.crc32(chunk, crc), size - len(chunk)
    return crc


# -- one member


def extract(kind: str, body: bytes, size: int, crc32: int) -> bytes:
    """The file within the bytes that `Member.offset` and `length` name.

    size, crc32: of the listing. Raises BadMemberError.
    """
    if size > LARGEST_MEMBER:
        raise BadMemberError("too_large", f"the member has {size:,} bytes")
    data = _unzipped(body, size) if kind == "zip" else body
    if len(data) != size:
        raise BadMemberError("changed", f"the member has {len(data)} bytes, had {size} when listed")
    if zlib.crc32(data) != crc32:
        raise BadMemberError(
            "unavailable", f"body was damaged: its CRC32 is {zlib.crc32(data):08x}, not {crc32:08x}"
        )
    return data


def _unzipped(body: bytes, size: int) -> bytes:
    if len(body) < 30 or not body.startswith(b"PK\x03\x04"):
        raise BadMemberError(
            "changed", "the zip has no member here: it was replaced, or is damaged"
        )
    flags, method = struct.unpack_from("<HH", body, 6)
    name_length, extra_length = struct.unpack_from("<HH", body, 26)
    if flags & _ENCRYPTED:
        raise BadMemberError("unsupported", "the member is encrypted")
    start = 30 + name_length + extra_length
    if method == zipfile.ZIP_STORED:
        return body[start : start + size]
    if method != zipfile.ZIP_DEFLATED or flags & _PATCH:
        name = zipfile.compressor_names.get(method, str(method))  # type: ignore[attr-defined]
        raise BadMemberError("unsupported", f"the member is packed by {name}, not by deflate")
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return decompressor.decompress(body[start:], size + 1)
    except zlib.error as error:
        raise BadMemberError("corrupt", f"the member can't be inflated: {error}") from error


# -- URIs


def member_uri(archive: str, name: str) -> str:
    """The URI of a member: that of its archive with the name as fragment."""
    return f"{archive}#{name}"


def split_member(uri: str) -> tuple[str, str] | None:
    """(URI of the archive, name of the member) of a `member_uri`; None for any other URI."""
    for kind in KINDS:
        at = uri.lower().find(f".{kind}#")
        if at > 0:
            end = at + len(kind) + 1
            return uri[:end], uri[end + 1 :]
    return None
