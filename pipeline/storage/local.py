"""A local disk as an object store: whole objects, atomic writes, listings that stream.

A name on Linux is any bytes, a name in a table is text. One that isn't UTF-8 is listed with `\\xNN`
for each odd byte, and read by that name.

A write is a temporary file and a rename, so a reader sees all of it or nothing; what a killed
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

from pipeline.storage.entry import Entry, Fetched

TEMPORARY: Final = ".tmp-"


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

    def put_if_absent(self, key: str, data: bytes) -> bool:
        temporary = self._write_temporary(key, data)
        try:
            os.link(temporary, key)  # unlike rename, refuses an existing name
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace `old` by `new`; False if the content is another by now."""
        with _locked(Path(key).parent):
            with suppress(FileNotFoundError):
                if self.get(key).data == old:
                    self.put(key, new)
                    return True
            return False

    def _write_temporary(self, key: str, data: bytes) -> Path:
        target = Path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            temporary.write_bytes(data)
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
        found = [entry.path for entry in _files(prefix) if entry.name.startswith(TEMPORARY)]
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


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that swap in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
