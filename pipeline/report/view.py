"""Photos with their segments, from a model or from a run, for drawing.

Photos are read from the URI in the row and decoded by the run's decoder with its EXIF rotation, so
a view shows the pixels that the model got.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from detr.categories import Categories
from detr.inference.decode import MAX_PIXELS, ImageError, decode_image
from detr.panoptic import Panoptic
from pipeline.errors import UserError
from pipeline.panoptic.rle import RleError
from pipeline.report.overlay import OPACITY, draw_overlay, font
from pipeline.run.lookup import find_row
from pipeline.run.reader import panoptic_of
from pipeline.run.run import Run
from pipeline.segmentation.model_spec import (
    ModelSpec,
    PanopticModel,
    recommended_by,
    say_recommended,
)
from pipeline.storage.entry import as_user_error
from pipeline.storage.objects import open_object

SHEET_COLUMNS: Final = 5  # of a contact sheet; its other sizes are in pixels
TILE: Final = 320
LINE: Final = 20
GAP: Final = 12


@dataclass(frozen=True)
class View:
    """A photo, (H, W, 3) uint8, and its segments."""

    image: NDArray[np.uint8]
    panoptic: Panoptic
    categories: Categories

    def overlay(self, *, opacity: float = OPACITY, labels: bool = True) -> Image.Image:
        return draw_overlay(
            self.image, self.panoptic, self.categories, opacity=opacity, labels=labels
        )

    def segments(self) -> list[dict[str, Any]]:
        """Segments with name, score, area (pixels) and share of the image, largest first."""
        segment_map = self.panoptic.segment_map
        areas = np.bincount(segment_map.ravel(order="K"), minlength=len(self.panoptic.segments) + 1)
        rows = [
            {
                "id": segment.id,
                "category_id": segment.category_id,
                "name": self.categories.by_id(segment.category_id).name,
                "isthing": segment.isthing,
                "score": round(segment.score, 4),
                "area": int(areas[segment.id]),
                "share": round(float(areas[segment.id] / segment_map.size), 4),
            }
            for segment in self.panoptic.segments
        ]
        return sorted(rows, key=lambda row: -row["area"])


def contact_sheet(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """One RGB image of RGB pictures, reduced and in rows, each with its name below."""
    columns = min(SHEET_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    cell = (TILE + GAP, TILE + GAP + LINE)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for position, (name, picture) in enumerate(pictures.items()):
        left = GAP + position % columns * cell[0]
        top = GAP + position // columns * cell[1]
        small = ImageOps.contain(picture, (TILE, TILE))
        sheet.paste(small, (left + (TILE - small.width) // 2, top + (TILE - small.height) // 2))
        letters = font(LINE - 6, name.isascii())
        text = name
        while len(text) > 1 and draw.textlength(text, letters) > TILE:
            # The end of a path is kept: it says more than the start.
            text = "\u2026" + text.lstrip("\u2026")[1:]
        draw.text((left, top + TILE), text, fill="black", font=letters)
    return sheet


def load_model(spec: ModelSpec, note: Callable[[str], None]) -> PanopticModel:
    """The model; `note` gets a line on the threshold if the weights recommend the one in use."""
    model = spec.load()
    if spec.threshold is None:
        say_recommended(recommended_by(model), note)
    return model


def view_photo(
    url: str,
    spec: ModelSpec,
    options: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> View:
    """Segment one photo at any fsspec URL. Raises UserError, ModelError.

    note: as for `load_model`.
    """
    image = photo_pixels(url, options)
    model = load_model(spec, note)
    try:
        [panoptic] = model.segment([image])
    except ImageError as error:
        raise UserError(f"{url} can't be segmented: {error} ({error.code})") from error
    return View(image, panoptic, model.categories)


def view_row(
    run: Run, file_name: str, *, number: int | None = None, options: Mapping[str, str] | None = None
) -> View:
    """One image of a run, from snapshot `number` (by default the published one).

    options: storage options of the photo; they replace those of the run by the same names. Raises
    UserError if the snapshot or the image is absent, if the image failed, if its row is damaged, or
    if the photo can't be read or has another size now (not checked where masks are smaller than
    photos).
    """
    row = find_row(run, file_name, snapshot=run.snapshot(number))
    if row["status"] != "ok":
        raise UserError(
            f"{file_name!r} could not be segmented: {row['error_message']} ({row['error_code']})"
        )
    try:
        panoptic = panoptic_of(row)
    except RleError as error:
        raise UserError(f"the row of {file_name!r} is damaged: {error}") from error
    return View(photo_of(run, row, options), panoptic, run.info.categories)


def photo_of(
    run: Run, row: Mapping[str, Any], options: Mapping[str, str] | None = None
) -> NDArray[np.uint8]:
    """The photo of an ok row, (H, W, 3) uint8, decoded and rotated as in the run, at mask size.

    options: storage options; they replace those of the run by the same names. Raises UserError if
    the photo can't be read or decoded, or has another size now (not checked where masks are smaller
    than photos).
    """
    config = run.info.config
    image = photo_pixels(
        row["uri"],
        {**config.get("source_options", {}), **(options or {})},
        exif=config.get("exif", True),
        max_pixels=config.get("max_pixels", MAX_PIXELS),
    )
    if config.get("output_size", "original") != "original":  # masks are smaller than photos
        size = (row["width"], row["height"])
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    if image.shape[:2] != (row["height"], row["width"]):
        raise UserError(
            f"{row['uri']} is {image.shape[1]} x {image.shape[0]} now and was {row['width']} x "
            f"{row['height']}: the file has changed since the run; `segment --refresh` takes it in"
        )
    return image


def photo_pixels(
    url: str,
    options: Mapping[str, str] | None = None,
    *,
    exif: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """The pixels of an image at any fsspec URL, (H, W, 3) uint8. Raises UserError."""
    storage, name = open_object(url, options)
    try:
        data = storage.read(name)
    except FileNotFoundError:
        raise UserError(f"{url}: no such file") from None
    except Exception as error:
        raise as_user_error(error, f"can't read {url}") from error
    try:
        return decode_image(data, exif=exif, max_pixels=max_pixels)
    except ImageError as error:
        raise UserError(f"{url} can't be decoded: {error} ({error.code})") from error
