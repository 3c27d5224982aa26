"""The rows of a COCO JSON, checked and read as a stream.

`segment`, `evaluate` and `train` read COCO files through this module, so the same rules hold: what
counts as a number, which keys are required, and that the last of repeated ids wins, as in
panopticapi's dicts. A missing or malformed value raises one sentence with its position. A value in
another form than COCO's is accepted only if it is unambiguous and panopticapi accepts it, such as
the id 1.0. Sizes, which no score depends on, may be text. A segment is a crowd if `iscrowd` equals
1, as in panopticapi.

`json.load` of a 1 GB file takes 8 GB. A COCO file is one object with a few long lists, so only one
element of a list is in memory at a time, parsed by Python's decoder.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from detr.categories import Categories, as_flag, as_int, is_text
from detr.config import ModelError
from pipeline.errors import UserError
from pipeline.storage.entry import as_user_error
from pipeline.storage.objects import open_object

CHUNK: Final = 1 << 20
MAX_ID: Final = 2**24 - 1
MOST_PIXELS: Final = 2**62  # no picture has as many
LISTS: Final = ("images", "annotations", "categories")
_DECODER: Final = json.JSONDecoder()
_SPACE: Final = " \t\r\n"


class CocoFile:
    """A COCO JSON at any URL. sha256: of the bytes, set once `items` is exhausted."""

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.options = options
        self.sha256 = ""

    def items(self) -> Iterator[tuple[str, Any]]:
        """(key, element) for each element of a top-level list, (key, value) for other values.

        Raises UserError if the file can't be read or is no JSON object.
        """
        storage, name = open_object(self.url, self.options)
        digest = hashlib.sha256()
        try:
            with storage.open(name) as file:
                text = _Text(file, digest)
                try:
                    yield from _items(text)
                    text.finish()
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{self.url} is not a COCO JSON: it is not UTF-8 from line {text.line} on "
                        f"({error.reason}): save it as UTF-8"
                    ) from error
                except json.JSONDecodeError as error:
                    raise UserError(
                        f"{self.url} is not a COCO JSON: {error.msg}, line "
                        f"{text.line_at(error.pos)}"
                    ) from error
                except UserError:
                    raise
                except (RecursionError, ValueError) as error:
                    deep = isinstance(error, RecursionError)
                    reason = "it is nested too deeply" if deep else error
                    raise UserError(
                        f"{self.url} is not a COCO JSON: {reason}, line "
                        f"{text.line_at(text.position)}"
                    ) from error
        except FileNotFoundError as error:
            raise UserError(f"can't read {self.url}: there is no such file") from error
        except IsADirectoryError as error:
            raise UserError(f"{self.url} is a folder, not a COCO JSON") from error
        except OSError as error:
            raise as_user_error(error, f"can't read {self.url}") from error
        self.sha256 = digest.hexdigest()


class _MalformedError(ValueError):
    """The text is no JSON object of lists; the message says where."""


class _Text:
    """The part of the file's text from the read position on."""

    def __init__(self, file: Any, digest: Any) -> None:
        self._file = file
        self._digest = digest
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.text = ""
        self.position = 0
        self.ended = False
        self.line = 1  # of the text's first character

    def line_at(self, position: int) -> int:
        return self.line + self.text.count("\n", 0, position)

    def more(self) -> None:
        data = self._file.read(max(CHUNK, len(self.text)))  # doubles until an element is complete
        self._digest.update(data)
        self.ended = not data
        self.line += self.text.count("\n", 0, self.position)
        self.text = self.text[self.position :]
        self.position = 0
        self.text += self._decoder.decode(data, final=self.ended)

    def finish(self) -> None:
        """Read to the end. Raises _MalformedError if anything but white space follows."""
        while not self.ended:
            if self.text[self.position :].strip(_SPACE):
                raise _MalformedError("something follows its end")
            self.position = len(self.text)
            self.more()

    def peek(self) -> str:
        """The next character that isn't white space, without taking it."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in _SPACE:
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                raise _MalformedError("it ends too early")
            self.more()

    def take(self, wanted: str) -> str:
        character = self.peek()
        if character not in wanted:
            raise _MalformedError(f"found {character!r} where {' or '.join(wanted)} belongs")
        self.position += 1
        return character

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                if end < len(self.text) or self.ended:  # else a number may continue
                    self.position = end
                    return value
            self.more()


def _items(text: _Text) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in _members(text, "{", "}"):
        key = text.value()
        if not isinstance(key, str):
            raise _MalformedError(f"found {key!r} where a key belongs")
        if key in seen and key in LISTS:
            raise _MalformedError(f"{key!r} is there twice, and only one can count")
        seen.add(key)
        text.take(":")
        if text.peek() != "[":
            yield key, text.value()
        else:
            for _ in _members(text, "[", "]"):
                yield key, text.value()


def _members(text: _Text, opening: str, closing: str) -> Iterator[None]:
    """Stops at the start of each member of an object or list, and takes what stands between."""
    text.take(opening)
    if text.peek() == closing:
        text.take(closing)
        return
    yield
    while text.take("," + closing) == ",":
        yield


def panoptic(
    file: CocoFile, *, truth: bool
) -> Iterator[tuple[str, dict[str, Any] | list[dict[str, Any]]]]:
    """("image", row) and ("annotation", row) in the file's order; last ("categories", list).

    An image row: image_id (as text), name, and the unchecked values id, height and width, for
    `size_of`. An annotation row: image_id, png, and per segment, in the file's order, segment_id,
    category_id, iscrowd, area (None if there is none); the last of repeated segment ids replaces
    the first, as in panopticapi's dicts. truth: refuse the segment id 0, which is void. Raises
    UserError naming image and segment for a missing or malformed value.
    """
    categories: list[dict[str, Any]] = []
    for key, item in file.items():
        if key == "categories":
            # An object in place of the list is one item here, without `id`.
            if not isinstance(item, dict) or "id" not in item:
                raise UserError(
                    f"{file.url}: categories must be a list of objects with id and name, found "
                    f"{_shown(item)}"
                )
            categories.append(item)
        elif key == "images":
            image_id = id_of(item, "id", file, "images")
            size = {key: item.get(key) for key in ("id", "height", "width")}
            yield "image", {"image_id": image_id, "name": file_name_of(item, file), **size}
        elif key == "annotations":
            yield "annotation", _annotation(item, file, truth=truth)
    yield "categories", categories


def categories_of(listed: list[dict[str, Any]], file: CocoFile) -> Categories:
    """The label set in `listed`, the entries of a JSON's `categories`.

    Raises UserError, which names `file`, if `listed` is empty or malformed.
    """
    try:
        return Categories.from_json(listed)
    except ModelError as error:
        raise UserError(f"{file.url}: {error}") from error


def _annotation(item: Any, file: CocoFile, *, truth: bool) -> dict[str, Any]:
    image_id = id_of(item, "image_id", file, "annotations")
    listed, png = item.get("segments_info"), item.get("file_name")
    if not isinstance(listed, list) or not isinstance(png, str) or not png:
        lacking = "file_name" if isinstance(listed, list) else "segments_info"
        raise UserError(
            f"{file.url}: the annotation of image {image_id} must have file_name and "
            f"segments_info (its {lacking} is {_shown(item.get(lacking))}): is this a panoptic "
            "JSON?"
        )
    _refuse_half(png, f"the file_name of image {image_id}'s annotation", file)
    segments: dict[int, dict[str, Any]] = {}
    for segment in listed:
        if not isinstance(segment, dict):
            raise UserError(
                f"{file.url}: a segment of image {image_id} is no object but {_shown(segment)}"
            )
        number, category = (as_int(segment.get(key)) for key in ("id", "category_id"))
        where = f"{file.url}: segment {_shown(segment.get('id'))} of image {image_id}"
        if number is None or not 0 <= number <= MAX_ID:
            raise UserError(
                f"{where} must have an id that is a whole number in 0..{MAX_ID}, as its PNG's "
                "colours do"
            )
        if category is None or not 0 <= category < 2**31:
            if segment.get("category_id") is None:
                raise UserError(f"{where} has no category_id")
            raise UserError(
                f"{where} has the category_id {_shown(segment['category_id'])}, which is no whole "
                "number of a category"
            )
        if truth and number == 0:
            raise UserError(f"{where}: id 0 is void in ground truth, give the segment another id")
        segments[number] = {
            "category_id": category,
            "iscrowd": _is_crowd(segment, where),
            "area": _area(segment.get("area")),
        }
    columns = ("category_id", "iscrowd", "area")
    lists = {name: [segment[name] for segment in segments.values()] for name in columns}
    return {"image_id": image_id, "png": png, "segment_id": list(segments), **lists}


def _area(value: Any) -> int | None:
    """The stated area in pixels; None if it is no area. No score depends on it."""
    area = as_int(value)
    return area if area is not None and 0 <= area < MOST_PIXELS else None


def _is_crowd(segment: Mapping[str, Any], where: str) -> bool:
    value = segment.get("iscrowd")
    flag = False if value is None else as_flag(value)
    if flag is None:
        raise UserError(f"{where} has iscrowd {_shown(value)}: it must be the number 0 or 1")
    return flag


def id_of(item: Any, field: str, file: CocoFile, key: str) -> str:
    """An image's id as text: "7" for 7, 7.0 and "7", but "07" for "07". Raises UserError.

    field: of `item`, an entry of the list `key`.
    """
    value = _object(item, key, file).get(field)
    if (number := as_int(value)) is not None:
        return str(number)
    if isinstance(value, str) and value:
        _refuse_half(value, f"the {field} of an entry of {key}", file)
        return value
    if value is None:
        raise UserError(f"{file.url}: an entry of {key} has no {field}: {_shown(item)}")
    raise UserError(
        f"{file.url}: the {field} {_shown(value)} of an entry of {key} is neither a whole number "
        "nor a name"
    )


def file_name_of(item: Any, file: CocoFile) -> str:
    """The file_name of an entry of `images`. Raises UserError without one."""
    name = _object(item, "images", file).get("file_name")
    if not isinstance(name, str) or not name:
        raise UserError(
            f"{file.url}: image {_shown(item.get('id'))} has no file_name (an entry of `images` "
            f"must have one), found {_shown(name)}"
        )
    _refuse_half(name, f"the file_name of image {_shown(item.get('id'))}", file)
    return name


def _object(item: Any, key: str, file: CocoFile) -> dict[str, Any]:
    """An entry of the list `key`. Raises UserError if it is no object."""
    if not isinstance(item, dict):
        raise UserError(f"{file.url}: {key} must be a list of objects, found {_shown(item)}")
    return item


def _refuse_half(text: str, what: str, file: CocoFile) -> None:
    """Raises UserError for half a surrogate pair, which JSON can hold, but no file name."""
    if not is_text(text):
        raise UserError(f"{file.url}: {what} is no text: {_shown(text)} holds half a character")


def size_of(item: Mapping[str, Any], file: CocoFile) -> tuple[int, int] | None:
    """(height, width) of an entry of `images`; None if it has neither. Raises UserError."""
    stated = [item.get(key) for key in ("height", "width")]
    if all(value is None for value in stated):
        return None
    height, width = (_as_size(value) or 0 for value in stated)
    for key, value, size in zip(("height", "width"), stated, (height, width), strict=True):
        if size < 1:
            raise UserError(
                f"{file.url}: image {_shown(item.get('id'))} has the {key} {_shown(value)}, which "
                "is no number of pixels: mend it, or leave both height and width out"
            )
    return height, width


def _as_size(value: Any) -> int | None:
    """A number of pixels, also as text."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 10:
        return int(value)
    return as_int(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def category_names(listed: Any) -> dict[int, str]:
    """Names by id from a JSON's `categories`; malformed entries are left out. listed: any value."""
    entries = [entry for entry in listed if isinstance(entry, dict)] if listed else []
    pairs = [(as_int(entry.get("id")), entry.get("name")) for entry in entries]
    return {i: name for i, name in pairs if i is not None and isinstance(name, str)}


def renamed(categories: Categories, names: Mapping[int, str]) -> list[tuple[int, str, str]]:
    """(id, name in `categories`, name in `names`) of the categories whose names differ."""
    pairs = [(c.id, c.name, names.get(c.id, c.name)) for c in categories]
    return [(number, name, other_name) for number, name, other_name in pairs if name != other_name]
