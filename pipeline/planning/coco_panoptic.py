"""A COCO panoptic JSON, read as a stream: the file of a million images is never whole in memory.

`json.load` of a 1 GB file takes 8 GB. A COCO file is one object of a few long lists, so each list
is cut into its elements as they come, each parsed by the standard decoder; what is larger than an
element is never held. (DuckDB's JSON reader takes such a file for one single record.)
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from detr.categories import Categories
from detr.config import ModelError
from pipeline.errors import UserError
from pipeline.storage.entry import as_user_error
from pipeline.storage.storage import open_file

CHUNK: Final = 1 << 20
MAX_ID: Final = 2**24 - 1
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"


class CocoFile:
    """One panoptic JSON on any URL. `sha256` is that of the bytes once `items` is exhausted."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.options = options
        self.sha256 = ""

    def items(self) -> Iterator[tuple[str, Any]]:
        """(key, element) of every list at the top, and (key, value) of anything else.

        Raises UserError if the file can't be read or is no JSON object.
        """
        storage, name = open_file(self.url, self.options)
        digest = hashlib.sha256()
        try:
            with storage.open(name) as file:
                text = _Text(file, digest)
                yield from _items(text)
                text.finish()
        except (UnicodeDecodeError, json.JSONDecodeError, _MalformedError) as error:
            raise UserError(f"{self.url} is not a COCO JSON: {error}") from error
        except OSError as error:
            raise as_user_error(error, f"can't read {self.url}") from error
        self.sha256 = digest.hexdigest()


class _MalformedError(Exception):
    """The text is no JSON object of lists; the message says where."""


class _Text:
    """The file's text, from which what was read is dropped."""

    def __init__(self, file: Any, digest: Any) -> None:
        self._file = file
        self._digest = digest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.position = 0
        self.ended = False

    def more(self) -> None:
        data = self._file.read(max(CHUNK, len(self.text)))  # doubles while one element won't end
        self._digest.update(data)
        self.ended = not data
        self.text = self.text[self.position :] + self._decoder.decode(data, final=self.ended)
        self.position = 0

    def finish(self) -> None:
        """Read to the end. Raises _MalformedError if anything but space follows."""
        while not self.ended:
            if self.text[self.position :].strip(_SPACE):
                raise _MalformedError("something follows its end")
            self.position = len(self.text)
            self.more()

    def peek(self) -> str:
        """The next character that isn't space."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in _SPACE:
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                raise _MalformedError("it ends too early")
            self.more()

    def take(self, wanted: str) -> str:
        found = self.peek()
        if found not in wanted:
            raise _MalformedError(f"found {found!r} where {' or '.join(wanted)} belongs")
        self.position += 1
        return found

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                if end < len(self.text) or self.ended:  # else a number may go on
                    self.position = end
                    return value
            self.more()


def _items(text: _Text) -> Iterator[tuple[str, Any]]:
    text.take("{")
    if text.peek() == "}":
        text.take("}")
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise _MalformedError(f"found {key!r} where a key belongs")
        text.take(":")
        if text.peek() != "[":
            yield key, text.value()
        else:
            text.take("[")
            if text.peek() == "]":
                text.take("]")
            else:
                while True:
                    yield key, text.value()
                    if text.take(",]") == "]":
                        break
        if text.take(",}") == "}":
            return


def panoptic(
    file: CocoFile, *, truth: bool
) -> Iterator[tuple[str, dict[str, Any] | list[dict[str, Any]]]]:
    """("image", row) and ("annotation", row) as they come, checked; last ("categories", list).

    An image row: image_id (as text), name. An annotation row: image_id, png, and of its segments
    segment_id, category_id, iscrowd, area (None where the file has none), in the file's order; of
    repeated segment ids the last wins, in the place of the first, as in panopticapi's dicts.
    Raises UserError naming image and segment for what is missing or of the wrong kind.
    """
    categories: list[dict[str, Any]] = []
    for key, item in file.items():
        if key == "categories":
            categories.append(item)
        elif key == "images":
            yield "image", {"image_id": _id_of(item, "id", file), "name": _name_of(item, file)}
        elif key == "annotations":
            yield "annotation", _annotation(item, file, truth=truth)
    yield "categories", categories


def categories_of(listed: list[dict[str, Any]], file: CocoFile) -> Categories:
    """The label set of a file. Raises UserError if it has none or a bad one."""
    try:
        return Categories.from_json(listed)
    except ModelError as error:
        raise UserError(f"{file.url}: {error}") from error


def _annotation(item: Any, file: CocoFile, *, truth: bool) -> dict[str, Any]:
    image_id = _id_of(item, "image_id", file)
    listed = item.get("segments_info")
    if not isinstance(listed, list) or not isinstance(item.get("file_name"), str):
        raise UserError(
            f"{file.url}: the annotation of image {image_id} must have file_name and "
            "segments_info: is this a panoptic JSON?"
        )
    segments: dict[int, dict[str, Any]] = {}
    for segment in listed:
        number, category = segment.get("id"), segment.get("category_id")
        where = f"{file.url}: segment {number!r} of image {image_id}"
        if not _is_int(number) or not 0 <= number <= MAX_ID:
            raise UserError(f"{where} must have an id in 0..{MAX_ID}, as its PNG's colours do")
        if not _is_int(category):
            raise UserError(f"{where} has no category_id")
        if truth and number == 0:
            raise UserError(f"{where}: id 0 is void in ground truth, give the segment another id")
        segments[number] = segment
    areas = [s.get("area") for s in segments.values()]
    return {
        "image_id": image_id,
        "png": item["file_name"],
        "segment_id": list(segments),
        "category_id": [s["category_id"] for s in segments.values()],
        "iscrowd": [bool(s.get("iscrowd", 0)) for s in segments.values()],
        "area": [a if _is_int(a) else None for a in areas],
    }


def _id_of(item: Any, field: str, file: CocoFile) -> str:
    value = item.get(field) if isinstance(item, dict) else None
    if not _is_int(value) and not isinstance(value, str):
        raise UserError(f"{file.url}: an entry has no {field}: {str(item)[:80]}")
    return str(value)


def _name_of(item: dict[str, Any], file: CocoFile) -> str:
    name = item.get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file.url}: image {item.get('id')} has no file_name")
    return name


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def category_names(listed: Any) -> dict[int, str]:
    """Names by id of a JSON's `categories`, of those that have both: they may be absent or odd."""
    entries = [entry for entry in listed if isinstance(entry, dict)] if listed else []
    pairs = [(entry.get("id"), entry.get("name")) for entry in entries]
    return {i: name for i, name in pairs if isinstance(i, int) and isinstance(name, str)}


def renamed(categories: Categories, names: Mapping[int, str]) -> list[tuple[int, str, str]]:
    """(id, own name, other name) of categories that go by another name there."""
    found = [(c.id, c.name, names.get(c.id, c.name)) for c in categories]
    return [(number, own, other) for number, own, other in found if own != other]
