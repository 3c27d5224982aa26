"""A COCO panoptic data set, and what label tools make of it: sixty deviations with their outcomes.

`write` makes four photos, their maps and a JSON, changed as one deviation says. `Deviation` has the
right outcome of `evaluate` (against a perfect prediction), `train` and `segment`: None where the
file is taken and means the same, else words of the sentence that refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation.truth_png import write_png
from tests.image_corpus import chunk

HEIGHT, WIDTH = 48, 64
IMAGES = 4
Document = dict[str, Any]
MAP = np.zeros((HEIGHT, WIDTH), np.int64)
MAP[: HEIGHT // 2], MAP[HEIGHT // 2 :, : WIDTH // 2], MAP[HEIGHT // 2 :, WIDTH // 2 :] = 1, 2, 3


@dataclass(frozen=True)
class Deviation:
    """What a tool does to a JSON (or, `raw`, to its bytes; or, `png`, to the maps)."""

    name: str
    change: Callable[[Document, Path], object] = lambda document, folder: None
    evaluate: str | None = None
    train: str | None = None
    segment: str | None = None
    raw: Callable[[bytes], bytes] = field(default=lambda data: data, kw_only=True)
    png: Callable[[bytes], bytes] = field(default=lambda data: data, kw_only=True)
    ascii: bool = field(default=False, kw_only=True)  # all other letters as escapes


def document() -> Document:
    segments = [
        {"id": i, "category_id": c, "iscrowd": 0, "area": 768 * k, "bbox": [0, 0, 1, 1]}
        for i, c, k in ((1, 2, 2), (2, 1, 1), (3, 1, 1))
    ]
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH}
            for i in range(1, IMAGES + 1)
        ],
        "annotations": [
            {"image_id": i, "file_name": f"{i}.png", "segments_info": [dict(s) for s in segments]}
            for i in range(1, IMAGES + 1)
        ],
        "categories": [
            {"id": 1, "name": "cat", "isthing": 1, "color": [220, 20, 60]},
            {"id": 2, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
        ],
    }


def write(folder: Path, deviation: Deviation) -> Path:
    """The data set with this deviation, and prediction.json, a perfect one; returns the JSON."""
    (folder / "images").mkdir(parents=True)
    colours = np.array([[0, 0, 0], [20, 40, 220], [220, 30, 30], [30, 200, 40]], np.uint8)
    photo = BytesIO()
    Image.fromarray(colours[MAP]).save(photo, "JPEG")
    for name in ("panoptic", "prediction"):
        (folder / name).mkdir()
    for number in range(1, IMAGES + 1):
        (folder / "images" / f"{number}.jpg").write_bytes(photo.getvalue())
        (folder / "prediction" / f"{number}.png").write_bytes(write_png(MAP))
        (folder / "panoptic" / f"{number}.png").write_bytes(deviation.png(write_png(MAP)))
    (folder / "prediction.json").write_text(json.dumps(document()))
    changed = document()
    deviation.change(changed, folder)
    path = folder / "panoptic.json"
    text = json.dumps(changed, ensure_ascii=deviation.ascii)
    path.write_bytes(deviation.raw(text.encode()))
    return path


def _segments(document: Document) -> list[Document]:
    return [s for a in document["annotations"] for s in a["segments_info"]]


def _each(key: str, **values: Any) -> Callable[[Document, Path], object]:
    """Set fields of each entry of a list, or of each segment; a function makes one of the old."""

    def change(document: Document, folder: Path) -> None:
        entries = _segments(document) if key == "segments" else document[key]
        for entry in entries:
            for name, value in values.items():
                entry[name] = value(entry.get(name)) if callable(value) else value

    return change


def _without(key: str, *names: str) -> Callable[[Document, Path], object]:
    def change(document: Document, folder: Path) -> None:
        entries = _segments(document) if key == "segments" else document[key]
        for entry in entries:
            for name in names:
                entry.pop(name)

    return change


def _both(_: str, **values: Any) -> Callable[[Document, Path], object]:
    """As `_each`, of the images and, as `image_id`, of their annotations."""

    def change(document: Document, folder: Path) -> None:
        for image in document["images"]:
            image["id"] = values["id"](image["id"])
        for annotation in document["annotations"]:
            annotation["image_id"] = values["id"](annotation["image_id"])

    return change


def _set(key: str, value: Any) -> Callable[[Document, Path], object]:
    return lambda document, folder: document.update({key: value(document[key])})


def _palette(data: bytes) -> bytes:
    out = BytesIO()
    Image.open(BytesIO(data)).quantize(8).save(out, "PNG")
    return out.getvalue()


def _as_mode(mode: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = BytesIO()
        image = Image.fromarray(MAP.astype(np.uint16)) if mode == "I;16" else None
        (image or Image.open(BytesIO(data)).convert(mode)).save(out, "PNG")
        return out.getvalue()

    return change


def _first(change: Callable[[Document], object]) -> Callable[[Document, Path], object]:
    return lambda document, folder: change(document)


def _moved(name: str) -> Callable[[Document, Path], object]:
    """File names of images and maps written in another form."""

    def change(document: Document, folder: Path) -> None:
        for key, place in (("images", "images"), ("annotations", "panoptic")):
            for entry in document[key]:
                entry["file_name"] = name.format(
                    folder=folder / place, parent=place, name=entry["file_name"]
                )

    return change


NO_UTF8 = "UTF-8"
SEGMENTS = ["segments_info"] * 2
HALF = "a\ud83d"
HALVES = ["half a character"] * 3
TWO, NAME, MISSING, NO_FILE = HALVES[:2], ["name"] * 2, ["missing"] * 2, ["no file", "missing"]
CATEGORY_ID = ["category_id"] * 2


def _same(document: Document, folder: Path) -> None:
    """The document stays as it is."""


DEVIATIONS = (
    Deviation("as COCO writes it"),
    # Tables that went through pandas, and JSON written by hand
    Deviation("image ids as floats", _both("", id=float)),
    Deviation("image ids as text", _both("", id=str)),
    Deviation("image ids as text in annotations alone", _each("annotations", image_id=str)),
    Deviation("image ids beyond 32 bits", _both("", id=lambda i: i + 2**40)),
    Deviation("category ids as floats", _each("segments", category_id=float)),
    Deviation("segment ids as floats", _each("segments", id=float)),
    Deviation("category ids of categories as floats", _each("categories", id=float)),
    Deviation("segment ids as text", _each("segments", id=str), *["whole number"] * 2),
    Deviation("category ids as text", _each("segments", category_id=str), *["whole number"] * 2),
    Deviation("segment ids with a fraction", _each("segments", id=1.5), *["whole number"] * 2),
    Deviation("segment ids as true", _each("segments", id=True), *["whole number"] * 2),
    Deviation("segment ids beyond 24 bits", _each("segments", id=2**24), *["16777215"] * 2),
    Deviation("category ids of 40 bits", _each("segments", category_id=2**40), *CATEGORY_ID),
    Deviation("iscrowd as false", _each("segments", iscrowd=False)),
    Deviation('iscrowd as "0"', _each("segments", iscrowd="0")),
    Deviation('iscrowd as "1"', _each("segments", iscrowd="1"), *["iscrowd"] * 2),
    Deviation("iscrowd as 2", _each("segments", iscrowd=2), *["iscrowd"] * 2),
    Deviation("iscrowd null", _each("segments", iscrowd=None)),
    Deviation("iscrowd left out", _without("segments", "iscrowd")),
    Deviation("isthing as booleans", _each("categories", isthing=bool)),
    Deviation("isthing as floats", _each("categories", isthing=float)),
    Deviation("isthing as text", _each("categories", isthing=str), *["isthing"] * 2),
    Deviation("isthing left out", _without("categories", "isthing")),
    Deviation("colours left out", _without("categories", "color")),
    Deviation("colours null", _each("categories", color=None)),
    Deviation("colours as #rrggbb", _each("categories", color="#DC143C")),
    Deviation("colours by name", _each("categories", color="crimson")),
    Deviation("colours of four floats", _each("categories", color=[1.0, 2.0, 3.0, 255.0])),
    Deviation("areas as text", _each("segments", area=str)),
    Deviation("areas that are NaN", _each("segments", area=float("nan"))),
    Deviation("areas beyond 64 bits", _each("segments", area=2**70)),
    Deviation("areas below zero", _each("segments", area=-1)),
    Deviation("areas left out", _without("segments", "area", "bbox")),
    # Sizes
    Deviation("no height and width", _without("images", "height", "width")),
    Deviation("sizes null", _each("images", height=None, width=None)),
    Deviation("sizes as text", _each("images", height=str, width=str)),
    Deviation("sizes as floats", _each("images", height=float, width=float)),
    Deviation("sizes of zero", _each("images", height=0), train="height"),
    Deviation("height alone", _without("images", "width"), train="width"),
    Deviation("sizes swapped", _each("images", height=WIDTH, width=HEIGHT), train="pixels"),
    # Names
    Deviation("absolute names", _moved("{folder}/{name}")),
    Deviation("names with ./", _moved("./{name}")),
    Deviation("names with ../", _moved("../{parent}/{name}")),
    Deviation("URLs as names", _moved("file://{folder}/{name}")),
    Deviation("names null", _each("images", file_name=None), *["file_name"] * 3),
    Deviation("names as numbers", _each("images", file_name=7), *["file_name"] * 3),
    Deviation("maps without a name", _without("annotations", "file_name"), *["file_name"] * 2),
    # Text that is none, and names of no file
    Deviation("half a letter in a name", _each("images", file_name=HALF), *HALVES, ascii=True),
    Deviation("half a letter in a map", _each("annotations", file_name=HALF), *TWO, ascii=True),
    Deviation("half a letter in an id", _both("", id=lambda i: f"{i}{HALF}"), *TWO, ascii=True),
    Deviation("half a letter in a class", _each("categories", name=HALF), *NAME, ascii=True),
    Deviation("a zero byte in a map", _each("annotations", file_name="a\0.png"), *MISSING),
    Deviation("a map's name too long", _each("annotations", file_name="a" * 300), *NO_FILE),
    Deviation("a map's name a folder", _each("annotations", file_name="."), *NO_FILE),
    # Lists
    Deviation("images twice", _set("images", lambda images: images * 2)),
    Deviation("annotations twice", _set("annotations", lambda annotations: annotations * 2)),
    Deviation(
        "segments twice",
        _each("annotations", segments_info=lambda s: [{**s[0], "category_id": 1}, *s]),
    ),
    Deviation(
        "an image without annotation",
        _first(lambda d: d["images"].append({"id": 99, "file_name": "1.png", "x": None})),
    ),
    Deviation(
        "an annotation without image", _first(lambda d: d["images"].pop()), "images", "doesn't list"
    ),
    Deviation("void listed as a segment", _each("segments", id=0), "void", "void"),
    Deviation("no category_id", _without("segments", "category_id"), *["no category_id"] * 2),
    Deviation("no segments_info", _without("annotations", "segments_info"), *SEGMENTS),
    Deviation("segments_info as an object", _each("annotations", segments_info={}), *SEGMENTS),
    Deviation("segments as bare ids", _each("annotations", segments_info=[1]), *["no object"] * 2),
    Deviation("no categories", _first(lambda d: d.pop("categories")), "label set", "categories"),
    Deviation(
        "categories as an object",
        _set("categories", lambda c: {str(each["id"]): each["name"] for each in c}),
        *["categories"] * 2,
    ),
    Deviation("categories as names", _set("categories", lambda c: ["cat"]), *["categories"] * 2),
    Deviation("categories twice", _set("categories", lambda c: c * 2), *["twice"] * 2),
    Deviation("categories without names", _without("categories", "name"), *["name"] * 2),
    Deviation("images as an object", _set("images", lambda i: {"1": i[0]}), *["images"] * 3),
    Deviation("images as names", _set("images", lambda i: ["1.jpg"]), *["images"] * 3),
    Deviation("an instance file", _set("annotations", lambda a: [{"image_id": 1}]), *SEGMENTS),
    Deviation("a list twice", _same, *["twice"] * 3, raw=lambda d: d[:-1] + b', "images": []}'),
    # Files
    Deviation("a byte order mark", raw=lambda data: b"\xef\xbb\xbf" + data),
    Deviation("indented", raw=lambda data: json.dumps(json.loads(data), indent=4).encode()),
    Deviation("space behind the end", raw=lambda data: data + b"\r\n\r\n"),
    Deviation("UTF-16", _same, *[NO_UTF8] * 3, raw=lambda data: data.decode().encode("utf-16")),
    Deviation(
        "Latin-1",
        _first(lambda d: d.update(info={"contributor": "café"})),
        *[NO_UTF8] * 3,
        raw=lambda data: data.decode().encode("latin-1"),
    ),
    Deviation("cut short", _same, *["line 1"] * 3, raw=lambda data: data[:400]),
    Deviation(
        "a comma too many", _same, *["line 1"] * 3, raw=lambda data: data.replace(b"[", b"[,", 1)
    ),
    Deviation("a list at the top", _same, *["line 1"] * 3, raw=lambda d: b"[" + d + b"]"),
    Deviation("more behind the end", _same, *["line 1"] * 3, raw=lambda data: data + b"{}"),
    Deviation("an empty file", _same, *["too early"] * 3, raw=lambda d: b""),
    # Maps
    Deviation("maps of palette colours", evaluate="palette", train="palette", png=_palette),
    Deviation("maps of 16 bits", evaluate="16-bit", train="16-bit", png=_as_mode("I;16")),
    Deviation("maps in grey", evaluate="grey", train="grey", png=_as_mode("L")),
    Deviation("maps with alpha", png=_as_mode("RGBA")),
    Deviation(
        "maps with a long text",
        png=lambda d: d[:33] + chunk(b"tEXt", b"a\0" + b"b" * (2 << 20)) + d[33:],
    ),
    Deviation("maps that are cut", evaluate="broken PNG", train="broken PNG", png=lambda d: d[:90]),
)  # fmt: skip
