"""A local disk as an object store: whole objects, atomic writes, listings that stream.

A name on Linux is any bytes, a name in a table is text. One that isn't UTF-8 is listed with `\\xNN`
for each odd byte, and read by that name.

A write is a temporary file and a rename, so a reader sees all of it or nothing, and both are on
the disk (fsync) before it returns: after a loss of power a file is whole or absent. What a killed
writer leaves begins with `.tmp-`, is never listed, and is swept by the next owner of the lease.
fsspec's local file system was rejected for listing: it holds a whole directory in memory and
passes over folders that it may not read without a word.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched

TEMPORARY: Final = ".tmp-"
LOCK_FILE: Final = f"{TEMPORARY}lock"  # in the folder of what is replaced, while it is
LIMITS: Final = Limits(tries=5, seconds=1.0, each=0.0)


class LocalObjects:
    """Files by absolute path."""

    def get(self, key: str) -> Fetched:
        """Raises OSError for what is no plain file: reading a pipe would never end."""
        path = _path(key)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", key)
            return Fetched(file.read(), None)

    async def get_async(self, key: str) -> Fetched:
        return await asyncio.to_thread(self.get, key)

    def put(self, key: str, data: bytes) -> None:
        os.replace(self._write_temporary(key, data), key)
        _to_disk(Path(key).parent)

    # -- conditional writes, each tried once

    def limits(self, *, large: bool) -> Limits:
        return LIMITS

    def look(self, key: str) -> Fetched | None:
        try:
            return self.get(key)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, key: str, data: bytes, *, large: bool) -> bool:
        temporary = self._write_temporary(key, data)
        try:
            os.link(temporary, key)  # refuses an existing name, unlike rename; on NFS, too
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _to_disk(Path(key).parent)
        return True

    def replace(self, key: str, old: Fetched, new: bytes) -> bool:
        with _locked(Path(key).parent):
            if self.look(key) != old:
                return False
            self.put(key, new)
            return True

    def refuses_stale(self, key: str) -> bool:
        """A lock keeps replacements apart, unless locks stay on this host."""
        return not has_private_locks(Path(key).parent)

    def _write_temporary(self, key: str, data: bytes) -> Path:
        target = Path(key)
        _make_folder(target.parent)
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # a full disk must not be filled further
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def info(self, key: str) -> Entry:
        return _entry(key, os.stat(_path(key)))

    def delete(self, key: str) -> None:
        os.unlink(key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every file under the folder; links are followed, a loop of them once."""
        for entry in _files(prefix):
            if entry.name.startswith(TEMPORARY):
                continue
            path = entry.path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            try:
                found = entry.stat()
            except FileNotFoundError:  # deleted meanwhile, or a link to nowhere
                continue
            except OSError:  # whoever reads it will meet the same, and say so of this file alone
                yield Entry(path, -1, None, None)
            else:
                yield _entry(path, found)

    def sweep(self, prefix: str) -> int:
        """Delete what killed writers left under the folder; returns how many files."""
        found = [
            entry.path
            for entry in _files(prefix)
            if entry.name.startswith(TEMPORARY) and entry.name != LOCK_FILE
        ]
        for path in found:
            Path(path).unlink(missing_ok=True)
        return len(found)


_ODD_BYTE: Final = re.compile(rb"\\x([0-9a-f]{2})")


def _path(key: str) -> str | bytes:
    """The file that is listed as `key`: a part that isn't there as it is written has odd bytes."""
    if "\\x" not in key or os.path.lexists(key):
        return key
    path = b""
    for part in os.fsencode(key).split(b"/"):
        odd = _ODD_BYTE.sub(lambda found: bytes([int(found[1], 16)]), part)
        literal = path + part
        path = (literal if os.path.lexists(literal) else path + odd) + b"/"
    return path[:-1]


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    pending, seen = [folder], set[tuple[int, int]]()
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        yield entry
                        continue
                    if entry.is_symlink():
                        place = entry.stat()
                        if (place.st_dev, place.st_ino) in seen:
                            continue
                        seen.add((place.st_dev, place.st_ino))
                    pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue


def _entry(path: str, found: os.stat_result) -> Entry:
    return Entry(path, found.st_size, None, datetime.fromtimestamp(found.st_mtime, UTC))


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before what is put into it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _to_disk(folder.parent)


def _to_disk(folder: Path) -> None:
    """The names in a folder, too, must outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that replace a file in this folder.

    A lock on a file that is open for writing, because NFS carries no other to its server. The file
    leaves with its lock; whoever waited for it finds that, and makes another.
    """
    path = folder / LOCK_FILE
    _make_folder(folder)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is(path, descriptor):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def has_private_locks(folder: Path, mounts: str = "/proc/self/mounts") -> bool:
    """True on an NFS mount whose options keep locks on this host (`nolock`, `local_lock=flock`)."""
    best, private = Path("/"), False
    with suppress(OSError):
        for line in Path(mounts).read_text().splitlines():
            _, where, kind, options = line.split(" ")[:4]
            place = Path(where.replace("\\040", " "))
            if folder.is_relative_to(place) and len(place.parts) >= len(best.parts):
                given = set(options.split(","))
                kept = {"nolock", "local_lock=flock", "local_lock=all"} & given
                best, private = place, kind.startswith("nfs") and bool(kept)
    return private
