"""Upload of a submitted job's local files to OUT/inputs/, under a hash of their contents.

A file that exists there is not uploaded again. A changed file gets another name, so the job's
settings, and with them the submission id, change with the file's contents.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.layout import input_folder
from pipeline.secrets import SIGNED, is_signed, texts
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import Storage

# Settings that may be one local file, or a local folder.
FILES: Final = ("weights", "categories", "truth", "map_categories", "source")
FOLDERS: Final = ("weights", "truth_masks")
# Settings whose local files are never uploaded: too large, or better used on this machine.
STAY: Final = ("image_root", "predictions", "prediction_masks", "dataset", "photo")
PLACES: Final = frozenset((*FILES, *FOLDERS, *STAY, "out"))


class Inputs:
    """Uploads local files of one job to its run folder `out`; `options` are storage options."""

    def __init__(self, out: str | None, options: Mapping[str, str]) -> None:
        self.out = out
        self.options = options

    def travel(self, name: str, value: str) -> str:
        """The value of setting `name` for the cluster: the URL of the uploaded local path.

        A URL or an unknown path stays as it is. Raises UserError for a path that can't travel.
        """
        if name not in PLACES or not value or "://" in value:
            return value
        if name == "out":
            self._refuse(name, value, "the nodes of a cluster write to a bucket")
        path = Path(value)
        if not path.exists():
            return value  # a name such as r50, or a path of the nodes
        folder = path.is_dir()
        if name in STAY or name not in (FOLDERS if folder else FILES):
            kind = "folder" if folder else "file"
            self._refuse(name, value, f"a {kind} of this machine is not there")
        if name == "source":
            _refuse_signed(path)
        together = [path]
        if name == "truth" and path.with_suffix("").is_dir():
            together.append(path.with_suffix(""))  # the folder of the truth's PNGs
        target = input_folder(content_hash(*together))
        for item in together:
            self._upload(item, f"{target}/{item.name}")
        return self._storage().join(f"{target}/{path.name}")

    def _upload(self, path: Path, target: str) -> None:
        storage = self._storage()
        for file in _files(path):
            name = f"{target}/{file.relative_to(path).as_posix()}".removesuffix("/.")
            try:
                if not storage.exists(name):
                    storage.write(name, file.read_bytes())
            except UserError:
                raise
            except Exception as error:
                message = f"can't upload {file} to {storage.join(name)}"
                raise as_user_error(error, message) from error

    def _storage(self) -> Storage:
        if not self.out or "://" not in self.out:
            raise UserError(
                "the job has local files but no bucket to put them in: give URLs that every node "
                "reaches, or --shared-files if local paths mean the same on every node"
            )
        return Storage(self.out, self.options)

    def _refuse(self, name: str, value: str, why: str) -> None:
        raise UserError(
            f"{name} {value!r}: {why}; give a URL that every node reaches, or --shared-files if "
            "local paths mean the same on every node"
        )


def _refuse_signed(path: Path) -> None:
    """Raises UserError for a list with signed URLs, which are credentials."""
    if path.suffix.lower() == ".parquet":
        rows = pq.read_table(path).to_pylist()
        signed = any(is_signed(text) for row in rows for text in texts(row))
    else:
        signed = re.search(SIGNED.encode(), path.read_bytes()) is not None
    if signed:
        raise UserError(
            f"source {str(path)!r} holds signed URLs, which don't travel: let the nodes have a "
            "role that reads the images, or put the list where the nodes reach it and name its URL"
        )


def content_hash(*paths: Path) -> str:
    """sha256 (hex) over names and contents of files; of a folder, over all files below it."""
    whole = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            with file.open("rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            whole.update(f"{file.relative_to(path).as_posix()}\0{digest}\n".encode())
    return whole.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
