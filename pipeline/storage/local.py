"""A local disk as an object store: whole objects, atomic writes, listings that stream.

A Linux file name is bytes, a name in a table is text. A file name that isn't UTF-8 is listed with
`\\xNN` for each invalid byte, and can be read by that name.

A write is a temporary file and a rename, both on the disk (fsync) before the write returns: a
reader sees the whole file or none, also after a loss of power. Temporary files begin with `.tmp-`
and are never listed; `sweep` deletes those of killed writers.
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
from typing import IO, Final, NamedTuple

from pipeline.storage.conditional import Limits
from pipeline.storage.entry import Entry, Fetched

TEMPORARY: Final = ".tmp-"
LOCK_FILE: Final = f"{TEMPORARY}lock"  # in the folder of a file that is being replaced
LIMITS: Final = Limits(tries=5, seconds=1.0, each=0.0)


class LocalObjects:
    """Files by absolute path."""

    def get(self, key: str) -> Fetched:
        with _opened(key) as file:
            return Fetched(file.read(), None)

    async def get_async(self, key: str) -> Fetched:
        return await asyncio.to_thread(self.get, key)

    def get_range(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        """Bytes from `start`, fewer at the end of the file."""
        with _opened(key) as file:
            file.seek(start)
            return Fetched(file.read(length), None)

    async def get_range_async(self, key: str, start: int, length: int, etag: str | None) -> Fetched:
        return await asyncio.to_thread(self.get_range, key, start, length, etag)

    def put(self, key: str, data: bytes) -> None:
        os.replace(self._write_temporary(key, data), key)
        _to_disk(Path(key).parent)

    # -- requests of conditional.py: no retries

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
            os.link(temporary, key)  # unlike rename, refuses an existing name, also on NFS
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
        """True unless file locks are private to this host."""
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
        except BaseException:  # such as a full disk
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def info(self, key: str) -> Entry:
        return _entry(key, os.stat(_path(key)))

    def delete(self, key: str) -> None:
        os.unlink(key)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every file under the folder, in no order. Links are followed, a loop of links once.

        A folder within, or a file, that can't be read has size -1; such a folder ends in `/`.
        """
        for entry in _files(prefix):
            if entry.name.startswith(TEMPORARY):
                continue
            path = entry.path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            if isinstance(entry, ClosedFolder):
                yield Entry(f"{path}/", -1, None, None)
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # deleted meanwhile, or a link to nowhere
                continue
            except OSError:  # reading the file fails alike, and becomes its error row
                yield Entry(path, -1, None, None)
            else:
                yield _entry(path, status)

    def sweep(self, prefix: str) -> int:
        """Delete temporary files of killed writers under the folder; returns their number."""
        paths = [
            entry.path
            for entry in _files(prefix)
            if entry.name.startswith(TEMPORARY) and entry.name != LOCK_FILE
        ]
        for path in paths:
            Path(path).unlink(missing_ok=True)
        return len(paths)


@contextmanager
def _opened(key: str) -> Iterator[IO[bytes]]:
    """Raises OSError for anything but a plain file: reading a pipe would never end."""
    descriptor = os.open(_path(key), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a plain file", key)
        yield file


_ODD_BYTE: Final = re.compile(rb"\\x([0-9a-f]{2})")


def _path(key: str) -> str | bytes:
    """The file that is listed as `key`: `\\xNN` is a byte where no file has this literal name."""
    if "\0" in key:
        raise FileNotFoundError(errno.ENOENT, "no name of a file holds a zero byte", key)
    if "\\x" not in key or os.path.lexists(key):
        return key
    path = b""
    for part in os.fsencode(key).split(b"/"):
        odd = _ODD_BYTE.sub(lambda match: bytes([int(match[1], 16)]), part)
        literal = path + part
        path = (literal if os.path.lexists(literal) else path + odd) + b"/"
    return path[:-1]


class ClosedFolder(NamedTuple):
    """A folder, below the listed one, that this user may not read."""

    name: str
    path: str


def _files(folder: str) -> Iterator[os.DirEntry[str] | ClosedFolder]:
    pending, seen = [folder], set[tuple[int, int]]()
    while pending:
        path = pending.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if not _is_folder(entry):
                        yield entry
                        continue
                    if entry.is_symlink():
                        status = entry.stat()
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            if path == folder:
                raise
            yield ClosedFolder(os.path.basename(path), path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that may not be followed: reading it raises
        return False


def _entry(path: str, status: os.stat_result) -> Entry:
    return Entry(path, status.st_size, None, datetime.fromtimestamp(status.st_mtime, UTC))


def _make_folder(folder: Path) -> None:
    """Make a folder and its parents, each on the disk (fsync) before the next."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _to_disk(folder.parent)


def _to_disk(folder: Path) -> None:
    """Make the names in a folder outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from replacing files in this folder within the block.

    The lock is on a file that is open for writing: NFS sends only such locks to its server. The
    holder deletes the file; a process that waited for its lock then makes a new file.
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
    """True on an NFS mount whose locks are private to this host (`nolock`, `local_lock=flock`)."""
    best, private = Path("/"), False
    with suppress(OSError):
        for line in Path(mounts).read_text().splitlines():
            _, where, kind, options = line.split(" ")[:4]
            mount = Path(where.replace("\\040", " "))
            if folder.is_relative_to(mount) and len(mount.parts) >= len(best.parts):
                given = set(options.split(","))
                local = {"nolock", "local_lock=flock", "local_lock=all"} & given
                best, private = mount, kind.startswith("nfs") and bool(local)
    return private
