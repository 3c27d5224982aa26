"""An archive as a read-only folder (`ArchiveFolder`): its members read and listed by name.

Whatever reads a photo or a PNG by a name (view, report, train, truth) takes members through this
class. `segment` reads millions of members by the ranges in the manifest instead.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, Final

from pipeline.errors import UserError
from pipeline.scratch import cache_folder
from pipeline.storage.archives import (
    CHUNK,
    BadMemberError,
    Member,
    RangedFile,
    extract,
    kind_of,
    list_members,
    split_member,
)
from pipeline.storage.entry import Entry
from pipeline.storage.local import TEMPORARY
from pipeline.storage.storage import Storage, normalize_url

KEPT_LISTINGS: Final = 8  # of archives, by a process


class ArchiveFolder(Storage):
    """The members of a zip or tar below `folder`. `url` is the archive's, `#` and the folder."""

    def __init__(
        self,
        archive: str,
        options: Mapping[str, str] | None = None,
        folder: str = "",
        nested_in: str | None = None,
    ) -> None:
        """nested_in: the URL for `folder_at` of an archive that is this node's copy of a member."""
        self.archive, self.folder, self._nested_in = normalize_url(archive), folder, nested_in
        parent, _, self.name = self.archive.rpartition("/")
        super().__init__(parent or "/", options)
        self._outer = Storage(self.url, options)
        self.url = nested_in or f"{self.archive}#{folder}"
        self._prefix = f"{folder}/" if folder else ""
        self._nested_options: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        if self._nested_in:
            return folder_at, (self._nested_in, self._nested_options)
        return ArchiveFolder, (self.archive, self.options, self.folder)

    def __repr__(self) -> str:
        return f"ArchiveFolder({self.url!r})"

    def join(self, path: str) -> str:
        return f"{self.url}{path}" if self.url.endswith("#") else f"{self.url}/{path}"

    def key(self, path: str) -> str:
        """Raises UserError: an archive is only read, and by its own methods."""
        raise UserError(f"{self.join(path)} lies in an archive, which is not written to")

    @cached_property
    def entry(self) -> Entry:
        """The object info of the archive, asked once. Raises FileNotFoundError."""
        return self._outer.info(self.name)

    @property
    def members(self) -> dict[str, Member]:
        """All members of the archive by name. Raises UserError for a damaged archive."""
        settings = tuple(sorted(self.options.items()))
        return _members(self.archive, settings, self.entry)

    def member(self, path: str) -> Member:
        """Raises FileNotFoundError."""
        try:
            return self.members[self._prefix + path]
        except KeyError:
            raise FileNotFoundError(self.join(path)) from None

    def read(self, path: str) -> bytes:
        """The content of a member. Raises FileNotFoundError, or UserError for a damaged one."""
        member = self.member(path)
        body = self._outer.read_range(self.name, member.offset, member.length, self.entry.etag)
        try:
            return extract(str(kind_of(self.name)), body, member.size, member.crc32)
        except BadMemberError as error:
            raise UserError(f"{self.join(path)} can't be read: {error} ({error.code})") from error

    def look(self, path: str) -> bytes | None:
        try:
            return self.read(path)
        except FileNotFoundError:
            return None

    def info(self, path: str) -> Entry:
        """Size and time of a member; the ETag is its CRC32, which is equal wherever it lies."""
        member = self.member(path)
        return Entry(path, member.size, f"{member.crc32:08x}", self.entry.last_modified)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        below = self._prefix + (f"{prefix}/" if prefix else "")
        time = self.entry.last_modified
        for name, member in self.members.items():
            if name.startswith(below):
                path = name.removeprefix(self._prefix)
                yield Entry(path, member.size, f"{member.crc32:08x}", time)

    def open(self, path: str) -> IO[bytes]:
        """A reader of a member from its beginning; bytes are inflated as they are read."""
        member = self.member(path)
        file = io.BufferedReader(RangedFile(self._outer, self.entry), CHUNK)
        if kind_of(self.name) == "zip":
            return zipfile.ZipFile(file).open(member.name)
        data = tarfile.open(fileobj=file, mode="r:").extractfile(  # noqa: SIM115
            _header(member)
        )
        assert data is not None
        return data

    def named(self, path: str) -> str | None:
        """The member `path`, or the only one whose path ends in `path`; None if there is none."""
        if self._prefix + path in self.members:
            return path
        last = path.rpartition("/")[2]
        ends = [name for name in self._by_last_part.get(last, ()) if name.endswith(f"/{path}")]
        return ends[0].removeprefix(self._prefix) if len(ends) == 1 else None

    @cached_property
    def _by_last_part(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self.members:
            names.setdefault(name.rpartition("/")[2], []).append(name)
        return names


def _header(member: Member) -> tarfile.TarInfo:
    info = tarfile.TarInfo(member.name)
    info.offset_data, info.size = member.offset, member.size
    return info


@lru_cache(maxsize=KEPT_LISTINGS)
def _members(archive: str, options: tuple[tuple[str, str], ...], entry: Entry) -> dict[str, Member]:
    listing = list_members(Storage(archive.rpartition("/")[0] or "/", dict(options)), entry)
    if listing.fault is not None:
        raise UserError(f"{archive} can't be read: {listing.fault} ({listing.code})")
    return {member.name: member for member in listing.members}


def is_archive(url: str, options: Mapping[str, str] | None = None) -> bool:
    """Whether a URL is that of a zip or tar, and not of a folder with such a name."""
    if kind_of(url) is None:
        return False
    path = normalize_url(url)
    if "://" not in path:
        return Path(path).is_file()
    parent, _, name = path.rpartition("/")
    return Storage(parent, options).exists(name)


def member_at(uri: str, options: Mapping[str, str] | None = None) -> tuple[Storage, str] | None:
    """(archive as a folder, name of the member) of a member's URI; None for any other URI."""
    parted = split_member(uri)
    if parted is None:
        return None
    folder = ArchiveFolder(parted[0], options)
    return folder, folder.named(parted[1]) or parted[1]


def folder_at(url: str, options: Mapping[str, str] | None = None) -> Storage:
    """The folder at a URL: a plain one, an archive, a folder in an archive, or a zip in a zip.

    `a.zip#b` is the zip `b.zip` in `a.zip` if there is one, else the folder `b`, as COCO ships its
    panoptic PNGs. A single folder at the top of a nested zip, named as the zip, is passed over.
    """
    parted = split_member(url)
    if parted is None:
        return ArchiveFolder(url, options) if is_archive(url, options) else Storage(url, options)
    archive, folder = parted
    outer = ArchiveFolder(archive, options)
    nested = outer.named(f"{folder}.zip") if folder else None
    if nested is None:
        return ArchiveFolder(archive, options, folder)
    copy, top = str(_unpacked(outer, nested)), folder.rpartition("/")[2]
    inner = ArchiveFolder(copy, None, top if any(ArchiveFolder(copy).list(top)) else "", url)
    inner._nested_options = dict(options or {})
    return inner


def _unpacked(outer: ArchiveFolder, path: str) -> Path:
    """A member as a file in this node's cache."""
    member, entry = outer.member(path), outer.entry
    name = f"{entry.etag or entry.last_modified}-{member.crc32:08x}-{member.size}"
    target = cache_folder() / uuid.uuid5(uuid.NAMESPACE_URL, f"{outer.join(path)} {name}").hex
    file = target / path.rpartition("/")[2]
    if file.exists():
        return file
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with outer.open(path) as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return file
