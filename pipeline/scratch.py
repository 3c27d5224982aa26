"""Writable folders of this machine: for downloads, temporary files and compiled kernels.

A container may run as any user, with `/` as the home and code that root installed. Then neither the
home nor the code's folder can be written, and the temporary folder is used.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.errors import UserError

KERNELS: Final = "NUMBA_CACHE_DIR"


def cache_folder() -> Path:
    """The folder of downloads: `$PANOPTIC_CACHE`, else `~/.cache/panoptic`, else a temporary one.

    Raises UserError if `$PANOPTIC_CACHE` is set and can't be written.
    """
    if wanted := os.environ.get("PANOPTIC_CACHE"):
        try:
            Path(wanted).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"PANOPTIC_CACHE {wanted} can't be made: {error.strerror}") from error
        return Path(wanted)
    home = os.path.expanduser("~")  # "~" itself for a user whom the system doesn't know
    folder = Path(home, ".cache", "panoptic")
    if os.path.isabs(home) and _can_write(folder):
        return folder
    return _private("panoptic-cache")


def temporary_folder() -> str:
    """The system's folder for temporary files. Raises UserError if none can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            "there is no temporary folder that can be written: set TMPDIR to one with room"
        ) from error


def keep_kernels(code: str) -> None:
    """Set NUMBA_CACHE_DIR if numba can't keep compiled kernels in the folder `code`.

    Must be called before numba is imported; child processes inherit the variable. Without a
    writable folder, numba refuses to import a kernel.
    """
    beside = Path(code, "__pycache__")
    if KERNELS in os.environ or _can_write(beside):
        return
    wanted = os.environ.get("PANOPTIC_CACHE")
    folder = Path(wanted, "kernels") if wanted else None
    if folder is None or not _can_write(folder):
        folder = _private("panoptic-kernels")
    os.environ[KERNELS] = str(folder)


def _can_write(folder: Path) -> bool:
    """Whether the folder, or its nearest ancestor that exists, is a folder that may be written."""
    while not folder.exists():
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _private(name: str) -> Path:
    """A folder in the temporary folder that only this user can write."""
    folder = private_folder(temporary_folder(), name)
    return folder or Path(tempfile.mkdtemp(prefix=f"{name}-"))


def private_folder(parent: str, name: str) -> Path | None:
    """The folder PARENT/NAME-UID; None if it can't be made or others can write it."""
    folder = Path(parent, f"{name}-{os.getuid()}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        known = folder.lstat()
        if known.st_uid == os.getuid() and not known.st_mode & 0o022 and not folder.is_symlink():
            return folder
    return None
