"""The writer of large COCO JSON files, and the COCO image ids of file names.

A COCO file is one JSON object with several long lists, too long for the memory. Each list is
written to a file in a temporary folder beside the target. At the end the files are joined and
renamed to the target, so a stopped export leaves no JSON.
"""

from __future__ import annotations

import json
import re
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from detr.categories import Categories
from pipeline.errors import UserError
from pipeline.planning.coco_panoptic import category_names, renamed
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import open_file


class JsonLists:
    """The growing lists of a JSON file; made by `json_lists`."""

    def __init__(self, files: Mapping[str, IO[str]]) -> None:
        self._files = files
        self.counts = dict.fromkeys(files, 0)

    def append(self, name: str, item: Mapping[str, Any]) -> None:
        separator = ",\n" if self.counts[name] else ""
        self._files[name].write(separator + json.dumps(item, separators=(",", ":")))
        self.counts[name] += 1


@contextmanager
def json_lists(
    target: Path, members: Mapping[str, Any] | None, names: Sequence[str]
) -> Iterator[JsonLists]:
    """Write a JSON object of fixed members and growing lists, or one bare list.

    members: None writes one bare list, as COCO's results are.

        with json_lists(Path("pred.json"), {"info": {}}, ["images", "annotations"]) as lists:
            lists.append("images", {"id": 1})
    """
    assert members is not None or len(names) == 1
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        paths = {name: Path(folder, name) for name in names}
        with ExitStack() as opened:
            yield JsonLists({n: opened.enter_context(p.open("w")) for n, p in paths.items()})
        joined = Path(folder, "joined")
        with joined.open("wb") as out:
            if members is not None:
                fixed = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in members.items()]
                out.write(("{" + ",\n".join(fixed)).encode())
            for index, (name, path) in enumerate(paths.items()):
                if members is not None:
                    separator = ",\n" if index or members else ""
                    out.write(f"{separator}{json.dumps(name)}:".encode())
                out.write(b"[\n")
                with path.open("rb") as part:
                    shutil.copyfileobj(part, out)
                out.write(b"\n]")
            out.write(b"\n" if members is None else b"}\n")
        joined.replace(target)


@dataclass(frozen=True)
class TruthImage:
    """An entry of `images` in a truth JSON."""

    id: int
    file_name: str
    height: int | None
    width: int | None


@dataclass
class ImageIds:
    """The COCO image id of a file name: from a truth JSON, or the number in the name.

    With a truth, whole names match, else the last parts of the paths, if only one image has it: a
    run's names are relative to its source, and names in a truth often have no folder.
    """

    truth: dict[str, TruthImage] | None = None
    url: str = ""
    categories: dict[int, str] = field(default_factory=dict)
    _by_last_part: dict[str, list[TruthImage]] = field(default_factory=dict)
    _given: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def of_truth(cls, url: str, options: Mapping[str, str] | None = None) -> ImageIds:
        """The ids in a COCO JSON, which is read into memory. Raises UserError."""
        storage, name = open_file(url, options)
        try:
            whole = json.loads(storage.read(name))
            images = whole["images"]
            categories = category_names(whole.get("categories"))
            entries = [
                TruthImage(int(i["id"]), i["file_name"], i.get("height"), i.get("width"))
                for i in images
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--truth {url} is no COCO JSON: it needs `images` with id and file_name ({error})"
            ) from error
        except Exception as error:
            raise as_user_error(error, f"can't read --truth {url}") from error
        ids = cls({entry.file_name: entry for entry in entries}, url, categories)
        for entry in entries:
            ids._by_last_part.setdefault(PurePosixPath(entry.file_name).name, []).append(entry)
        return ids

    def check_categories(self, run: Categories) -> None:
        """Raises UserError if the truth has another category under one of the run's ids."""
        for number, run_name, true_name in renamed(run, self.categories):
            raise UserError(
                f"category {number} is {run_name!r} in the run and {true_name!r} in {self.url}: "
                "give truth of the run's own categories, or no --truth"
            )

    def find(self, file_name: str) -> TruthImage | None:
        """The image's entry in the truth; None if the truth has no such image.

        Without a truth the entry is made from the name: `val/000000000139.jpg` has the id 139.
        Raises UserError for an ambiguous name, or a name without a number.
        """
        entry = self._made(file_name) if self.truth is None else self._match(file_name)
        if entry is not None:
            self._given.append(entry.id)
        return entry

    def refuse_twice(self) -> None:
        """Raises UserError if `find` gave one id to two images."""
        ids, counts = np.unique(np.asarray(self._given), return_counts=True)
        if (counts > 1).any():
            twice = int(ids[counts > 1][0])
            raise UserError(
                f"{int(counts.max())} images have the COCO id {twice}: export one folder at a time "
                "with --files, or give a --truth that tells them apart"
            )

    def _match(self, file_name: str) -> TruthImage | None:
        assert self.truth is not None
        if (entry := self.truth.get(file_name)) is not None:
            return entry
        same = self._by_last_part.get(PurePosixPath(file_name).name, [])
        if len(same) > 1:
            names = " and ".join(repr(entry.file_name) for entry in same[:2])
            raise UserError(
                f"{file_name!r} may be {names} of the truth: names must tell them apart"
            )
        return same[0] if same else None

    @staticmethod
    def _made(file_name: str) -> TruthImage:
        stem = PurePosixPath(file_name).stem
        if not re.fullmatch(r"\d{1,18}", stem):
            raise UserError(
                f"COCO wants a number for each image and {file_name!r} is none: give the JSON that "
                "holds the ids with --truth"
            )
        return TruthImage(int(stem), file_name, None, None)
