"""Synthetic scenes with panoptic truth, for the demo, the tests and training the demo weights.

A scene is a landscape (one to three classes of stuff) with 1 to 8 things, in one of three aspect
ratios. Things have any colour, size and tilt and cast shadows, and about half of them are partly
hidden by another thing; light, noise and blur differ between scenes. A few per cent of the pixels
are void: rubble, which is no class of the label set, and the seam between two classes of stuff.

Scene (seed, index) is the same on every machine and in any order. Each segment is visible: a thing
shows at least 45 % of its pixels and at least 80, or it is not placed; stuff of fewer than 64
pixels is void.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detr.categories import Categories
from pipeline.train.shapes import STUFF, THINGS, Floats, noise, rubble, shade

SIZES = ((128, 128), (128, 160), (160, 128))  # (height, width): 1:1, 5:4, 4:5
MAX_THINGS = 8
MIN_SHOWN = 0.45  # visible share of a thing's pixels inside the frame
MIN_THING_AREA = 80
MIN_STUFF_AREA = 64

_COLORS = {
    "ball": (230, 60, 50),
    "crate": (170, 110, 50),
    "tent": (240, 160, 30),
    "star": (200, 80, 220),
    "cross": (250, 250, 110),
    "sky": (120, 190, 250),
    "grass": (70, 170, 60),
    "water": (40, 90, 200),
    "sand": (225, 200, 150),
}
SCENE_CATEGORIES = Categories.from_json(
    [
        {"id": i, "name": name, "isthing": int(name in THINGS), "color": list(_COLORS[name])}
        for i, name in enumerate([*THINGS, *STUFF], start=1)
    ]
)
_IDS = {category.name: category.id for category in SCENE_CATEGORIES}


@dataclass(frozen=True)
class Scene:
    """One image and its truth."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    segment_map: NDArray[np.int32]  # (H, W); 0 is void
    segments: list[dict[str, int]]  # id, category_id, iscrowd, for each id of the map


def scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the endless series `seed`."""
    rng = np.random.default_rng([seed, index])
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    image, segment_map, kinds = _landscape(rng, height, width)
    _place_things(rng, image, segment_map, kinds)
    segment_map, segments = _truth(rng, segment_map, kinds)
    return Scene(_photograph(rng, image), segment_map, segments)


def _landscape(
    rng: np.random.Generator, height: int, width: int
) -> tuple[Floats, NDArray[np.int32], list[str]]:
    """Sky over one or two grounds: image (H, W, 3), map (H, W), names of stuff (`kinds`).

    A value of the map is the position in `kinds`, plus 1; 0 is void.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = np.empty((height, width, 3), dtype=np.float32)
    segment_map = np.zeros((height, width), dtype=np.int32)
    grounds = [str(name) for name in rng.permutation(["grass", "water", "sand"])]
    kinds = [grounds[0]]
    image[:] = STUFF[grounds[0]](rng, height, width)
    segment_map[:] = 1
    if rng.random() < 0.55:  # a second ground beyond a slanted, bent shore
        shore = height * rng.uniform(0.55, 0.85) + (x - width / 2) * rng.uniform(-0.5, 0.5)
        far = y < shore + noise(rng, height, width, (40, 30)) * 30
        image[far] = STUFF[grounds[1]](rng, height, width)[far]
        kinds.append(grounds[1])
        segment_map[far] = 2
    if rng.random() < 0.85:
        horizon = height * rng.uniform(0.2, 0.55) + (x - width / 2) * rng.uniform(-0.12, 0.12)
        far = y < horizon + noise(rng, height, width, (60, 25)) * rng.uniform(0, 24)
        image[far] = STUFF["sky"](rng, height, width)[far]
        kinds.append("sky")
        segment_map[far] = len(kinds)
    if rng.random() < 0.5:  # annotators often leave the seams void
        seam = np.zeros((height, width), dtype=bool)
        seam[1:] = segment_map[1:] != segment_map[:-1]
        seam[:-1] |= seam[1:]
        segment_map[seam] = 0
    if rng.random() < 0.6:
        heap = noise(rng, height, width, (30, 30)) + noise(rng, height, width, (6, 6)) / 4
        heap = heap > np.partition(heap.ravel(), -heap.size // 25)[-heap.size // 25]
        image[heap] = rubble(rng, height, width)[heap]
        segment_map[heap] = 0
    return image, segment_map, kinds


def _place_things(
    rng: np.random.Generator, image: Floats, segment_map: NDArray[np.int32], kinds: list[str]
) -> None:
    """Draw 1 to 8 things into `image` and `segment_map`, in place, the last one in front.

    Three in four things after the first must hide part of an earlier thing, the others must not. A
    position that hides too much of an earlier thing (MIN_SHOWN, MIN_THING_AREA) is drawn again;
    after 12 positions the thing is left out.
    """
    height, width = segment_map.shape
    count = int(rng.integers(1, MAX_THINGS + 1))
    placed: list[tuple[int, int, float, float, float]] = []  # index, whole area, y, x, radius
    for _ in range(count):
        kind = str(rng.choice(list(THINGS)))
        radius = rng.uniform(12, 34 - 2 * count)
        hides = bool(placed) and rng.random() < 0.75
        for _attempt in range(12):
            if hides:
                _, _, near_y, near_x, near_radius = placed[int(rng.integers(len(placed)))]
                reach = (radius + near_radius) * 0.8
                center_y, center_x = rng.uniform(
                    (near_y - reach, near_x - reach), (near_y + reach, near_x + reach)
                )
            else:
                center_y, center_x = rng.uniform(0, height), rng.uniform(0, width)
            if not (4 <= center_y < height - 4 and 4 <= center_x < width - 4):
                continue
            window, u, v, unit = _local(rng, kind, (height, width), center_y, center_x, radius)
            distance = THINGS[kind](u, v)
            inside = distance < 0
            area = int(inside.sum())
            under = segment_map[window]
            hidden = np.bincount(under[inside], minlength=len(kinds) + 1)
            shown = np.bincount(segment_map.ravel(), minlength=len(kinds) + 1) - hidden
            spared = all(
                shown[i] >= max(MIN_SHOWN * whole, MIN_THING_AREA) for i, whole, *_ in placed
            )
            covers = sum(int(hidden[i]) for i, *_ in placed)
            if area >= MIN_THING_AREA and spared and (covers > 0) == hides:
                kinds.append(kind)
                segment_map[window][inside] = len(kinds)
                _draw(rng, image, window, kind, u, v, distance * unit)
                placed.append((len(kinds), area, center_y, center_x, radius))
                break


def _local(
    rng: np.random.Generator, kind: str, shape: tuple[int, int], y: float, x: float, radius: float
) -> tuple[tuple[slice, slice], Floats, Floats, np.float32]:
    """The window (rows, columns) around a thing, its local coordinates u and v (h, w), tilted and
    stretched, and their unit in pixels."""
    reach = int(radius * 1.6) + 2
    rows = slice(max(0, int(y) - reach), min(shape[0], int(y) + reach))
    columns = slice(max(0, int(x) - reach), min(shape[1], int(x) + reach))
    t = rng.uniform(-0.3, 0.3) if kind == "tent" else rng.uniform(-1, 1)  # tents stand upright
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    stretch = rng.uniform(0.8, 1.25)
    dy, dx = np.mgrid[rows, columns].astype(np.float32)
    dy, dx = dy - np.float32(y), dx - np.float32(x)
    u = (dx * np.float32(cosine) + dy * np.float32(sine)) / np.float32(radius * stretch)
    v = (dy * np.float32(cosine) - dx * np.float32(sine)) / np.float32(radius / stretch)
    return (rows, columns), u, v, np.float32(radius * min(stretch, 1 / stretch))


def _draw(
    rng: np.random.Generator,
    image: Floats,
    window: tuple[slice, slice],
    kind: str,
    u: Floats,
    v: Floats,
    distance: Floats,
) -> None:
    """Paint one thing into `image[window]`: a soft shadow to its lower right, then its body."""
    patch = image[window]
    body = np.clip(np.float32(0.5) - distance, 0, 1)[..., None]
    shadow = np.zeros_like(body)
    shadow[3:, 3:] = body[:-3, :-3]
    patch *= 1 - shadow * np.float32(rng.uniform(0, 0.5))
    tint = rng.integers(30, 245, 3).astype(np.float32)
    rows, columns = distance.shape
    grain = noise(rng, rows, columns, (2, 2))[..., None] * np.float32(rng.uniform(0, 50))
    paint = tint * shade(kind, u, v, distance)[..., None] + grain
    patch += (paint - patch) * body


def _truth(
    rng: np.random.Generator, drawn: NDArray[np.int32], kinds: list[str]
) -> tuple[NDArray[np.int32], list[dict[str, int]]]:
    """The map with random 24-bit ids, as in COCO, and its segments; too small ones become void."""
    areas = np.bincount(drawn.ravel(), minlength=len(kinds) + 1)
    ids = np.zeros(len(kinds) + 1, dtype=np.int32)
    ids[1:] = 1 + rng.choice(2**24 - 1, len(kinds), replace=False)
    segments = []
    for i, kind in enumerate(kinds, start=1):
        if areas[i] >= (MIN_THING_AREA if kind in THINGS else MIN_STUFF_AREA):
            segments.append({"id": int(ids[i]), "category_id": _IDS[kind], "iscrowd": 0})
        else:
            ids[i] = 0
    return ids[drawn], segments


def _photograph(rng: np.random.Generator, image: Floats) -> NDArray[np.uint8]:
    """Add light from one side, white balance, blur and noise; (H, W, 3) uint8."""
    height, width, _ = image.shape
    ramp_y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(
        rng.uniform(-0.2, 0.2)
    )
    ramp_x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(rng.uniform(-0.2, 0.2))
    balance = np.float32(rng.uniform(0.75, 1.15)) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    lit = image * (1 + ramp_y + ramp_x)[..., None] * balance
    if rng.random() < 0.3:
        soft = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)).filter(
            ImageFilter.BoxBlur(0.7)
        )
        lit = np.asarray(soft, dtype=np.float32)
    # The sum of two uniform deviates is exact on every machine; a normal deviate is not.
    grain = rng.random((2, *lit.shape), dtype=np.float32).sum(axis=0) - 1
    return np.clip(lit + grain * np.float32(rng.uniform(2, 30)), 0, 255).astype(np.uint8)


def write_scenes(folder: str | Path, count: int, seed: int, *, broken: int = 0) -> None:
    """Write the first `count` scenes of `seed` as a COCO panoptic dataset.

    The files are images/*.jpg, panoptic.json and panoptic/*.png in `folder`. broken: number of
    further files in images/ that no decoder can read, in turn: empty, half a JPEG, a web page, a
    PNG with damaged data; they have no truth.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "panoptic").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        made, stem = scene(seed, index), f"{index:06d}"
        height, width = made.segment_map.shape
        Image.fromarray(made.image).save(folder / "images" / f"{stem}.jpg", quality=95)
        packed = made.segment_map[..., None] >> np.array([0, 8, 16], dtype=np.int32) & 255
        Image.fromarray(packed.astype(np.uint8)).save(
            folder / "panoptic" / f"{stem}.png", compress_level=1
        )
        images.append({"id": index, "file_name": f"{stem}.jpg", "height": height, "width": width})
        segments = [_measured(made.segment_map, segment) for segment in made.segments]
        annotations.append(
            {"image_id": index, "file_name": f"{stem}.png", "segments_info": segments}
        )
    categories = SCENE_CATEGORIES.to_json()
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(truth))
    for number in range(broken):
        name, data = _broken_file(seed, number)
        (folder / "images" / name).write_bytes(data)


def _measured(segment_map: NDArray[np.int32], segment: dict[str, int]) -> dict[str, Any]:
    """A segment with COCO's area and bbox (x, y, w, h), computed from the map."""
    ys, xs = np.nonzero(segment_map == segment["id"])
    x, y = int(xs.min()), int(ys.min())
    bbox = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
    return {**segment, "area": len(xs), "bbox": bbox}


def _broken_file(seed: int, number: int) -> tuple[str, bytes]:
    """Name and bytes of one file with the suffix of an image that no decoder can read."""
    whole = io.BytesIO()
    Image.fromarray(scene(seed, number).image).save(whole, "PNG" if number % 4 == 3 else "JPEG")
    data = whole.getvalue()
    return [
        (f"broken-{number}-empty.jpg", b""),
        (f"broken-{number}-half.jpg", data[: len(data) // 2]),
        (f"broken-{number}-page.jpg", b"<!doctype html><title>403 Forbidden</title>"),
        (f"broken-{number}-damaged.png", data[:60] + bytes(40) + data[100:]),
    ][number % 4]
