"""A made photo for README, traced ray by ray: python docs/draw_photo.py

Balls and boxes on a lawn under a sky, with shadows, grain and a lens that blurs its corners, and
the segments that are truly there, as `panoptic view` draws them. Made, because no photo with a free
licence comes with truth that is exact to the pixel.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).parents[1]))

from detr.categories import COCO_PANOPTIC
from detr.panoptic import Panoptic, Segment
from pipeline.report.overlay import draw_overlay, font

TARGET = Path(__file__).parent / "images" / "photo.jpg"
WIDTH, HEIGHT, FINER = 528, 400, 3  # pixels of a panel; rays a side of a pixel
GAP, HEADING = 8, 26
SUN = np.array([0.55, 0.75, -0.35]) / np.linalg.norm([0.55, 0.75, -0.35])
EYE = np.array([0.0, 1.5, -5.2])
Floats = NDArray[np.float64]
FAR = 1e9


@dataclass(frozen=True)
class Ball:
    name: str
    center: tuple[float, float, float]
    radius: float
    color: tuple[float, float, float]

    def hit(self, start: Floats, way: Floats) -> tuple[Floats, Floats]:
        """Distances along the rays (N,), FAR where none, and outward normals (N, 3)."""
        to = start - np.array(self.center)
        b = (to * way).sum(-1)
        root = b * b - (to * to).sum(-1) + self.radius**2
        distance = -b - np.sqrt(np.maximum(root, 0))
        distance = np.where((root > 0) & (distance > 1e-4), distance, FAR)
        normal = (start + distance[:, None] * way - np.array(self.center)) / self.radius
        return distance, normal

    def paint(self, point: Floats) -> Floats:
        """(N, 3) colours: two bands around the ball."""
        height = (point[:, 1] - self.center[1]) / self.radius
        band = np.abs(np.abs(height) - 0.35) < 0.12
        return np.where(band[:, None], 0.92, np.array(self.color))


@dataclass(frozen=True)
class Crate:
    name: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    color: tuple[float, float, float]
    turn: float = 0.0  # about its own middle, in radians

    def _local(self, vectors: Floats, *, moved: bool) -> Floats:
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        middle = (np.array(self.low) + np.array(self.high)) / 2
        own = vectors - middle if moved else vectors
        x = cos * own[..., 0] + sin * own[..., 2]
        z = -sin * own[..., 0] + cos * own[..., 2]
        return np.stack([x, own[..., 1], z], -1)

    def hit(self, start: Floats, way: Floats) -> tuple[Floats, Floats]:
        origin, ray = self._local(start, moved=True), self._local(way, moved=False)
        half = (np.array(self.high) - np.array(self.low)) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            one, two = (-half - origin) / ray, (half - origin) / ray
        near, far = np.minimum(one, two), np.maximum(one, two)
        enter, leave = near.max(-1), far.min(-1)
        distance = np.where((enter < leave) & (enter > 1e-4), enter, FAR)
        side = near.argmax(-1)
        normal = np.zeros_like(ray)
        rows = np.arange(len(ray))
        normal[rows, side] = -np.sign(ray[rows, side])
        cos, sin = np.cos(-self.turn), np.sin(-self.turn)
        x = cos * normal[:, 0] + sin * normal[:, 2]
        z = -sin * normal[:, 0] + cos * normal[:, 2]
        return distance, np.stack([x, normal[:, 1], z], -1)

    def paint(self, point: Floats) -> Floats:
        """Boards across, with dark gaps between them."""
        boards = (self._local(point, moved=True)[:, 1] * 7) % 1 < 0.1
        return np.array(self.color) * np.where(boards, 0.45, 1.0)[:, None]


THINGS = (
    Ball("sports ball", (-1.35, 0.55, -0.6), 0.55, (0.86, 0.25, 0.16)),
    Ball("sports ball", (1.75, 0.34, -1.5), 0.34, (0.16, 0.36, 0.75)),
    Ball("sports ball", (0.25, 0.22, -2.1), 0.22, (0.93, 0.75, 0.2)),
    Crate("suitcase", (0.1, 0.0, 0.2), (1.3, 0.85, 1.1), (0.62, 0.42, 0.24), 0.5),
    Crate("bench", (-3.4, 0.0, 2.2), (-1.5, 0.5, 2.9), (0.45, 0.33, 0.28), -0.25),
)


def trace(start: Floats, way: Floats) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Of each ray the nearest distance, which thing (-1: none), and its normal."""
    nearest = np.full(len(way), FAR)
    which = np.full(len(way), -1)
    normals = np.zeros_like(way)
    for number, thing in enumerate(THINGS):
        distance, normal = thing.hit(start, way)
        closer = distance < nearest
        nearest[closer], which[closer], normals[closer] = distance[closer], number, normal[closer]
    return nearest, which, normals


def smooth_noise(x: Floats, y: Floats, seed: int) -> Floats:
    """Values around 0 that change smoothly over the plane."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(x)
    for octave in range(9):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        scale = 1.7**octave
        total += np.sin(scale * (x * np.cos(angle) + y * np.sin(angle)) + phase) / (1 + octave)
    return total / 3


def render() -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """(H, W, 3) pixels and (H, W) ids: things from 1, then the lawn and the sky."""
    columns, rows = np.meshgrid(np.arange(WIDTH * FINER), np.arange(HEIGHT * FINER))
    x = ((columns + 0.5) / FINER - WIDTH / 2) / WIDTH * 1.15
    y = (HEIGHT / 2 - (rows + 0.5) / FINER) / WIDTH * 1.15 - 0.18
    way = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    start = np.broadcast_to(EYE, way.shape)
    distance, which, normal = trace(start, way)
    with np.errstate(divide="ignore"):
        ground = np.where(way[:, 1] < 0, -EYE[1] / way[:, 1], FAR)
    lawn = (ground < distance) & (ground < 60)
    distance = np.where(lawn, ground, distance)
    ids = np.where(lawn, len(THINGS) + 1, np.where(distance < FAR, which + 1, len(THINGS) + 2))
    sky = ids == len(THINGS) + 2
    point = start + np.minimum(distance, 60)[:, None] * way
    normal[lawn] = (0, 1, 0)

    color = np.zeros_like(way)
    for number, thing in enumerate(THINGS):
        here = ids == number + 1
        color[here] = thing.paint(point[here])
    patches = smooth_noise(point[lawn, 0] * 2, point[lawn, 2] * 2, 3)
    blades = smooth_noise(point[lawn, 0] * 23, point[lawn, 2] * 23, 4)
    color[lawn] = np.array([0.27, 0.42, 0.13]) * (1 + 0.25 * patches + 0.3 * blades)[:, None]

    lit = ~sky
    shadow = trace(point[lit] + 1e-3 * normal[lit], np.broadcast_to(SUN, point[lit].shape))[0] < FAR
    bright = np.maximum((normal[lit] * SUN).sum(-1), 0) * ~shadow
    half = SUN - way[lit]
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    gloss = np.maximum((normal[lit] * half).sum(-1), 0) ** 60 * ~shadow * (ids[lit] <= 3)
    light = bright[:, None] * np.array([1.0, 0.95, 0.85]) + np.array([0.3, 0.34, 0.42])
    color[lit] = color[lit] * light + 0.5 * gloss[:, None]
    haze = np.clip(distance[lawn] / 60, 0, 1)[:, None] ** 0.7
    color[lawn] = color[lawn] * (1 - 0.5 * haze) + 0.5 * haze * np.array([0.7, 0.78, 0.86])
    up = np.maximum(way[sky, 1], 0.02)
    clouds = np.clip(smooth_noise(way[sky, 0] / up * 0.9, 1 / up * 0.5, 8) - 0.1, 0, 1)[:, None]
    blue = np.array([0.72, 0.83, 0.93]) - np.array([0.42, 0.3, 0.1]) * np.sqrt(up)[:, None]
    color[sky] = blue * (1 - clouds) + clouds

    pixels = color.reshape(HEIGHT, FINER, WIDTH, FINER, 3).mean((1, 3))
    middle = ids.reshape(HEIGHT, FINER, WIDTH, FINER)[:, FINER // 2, :, FINER // 2]
    return photographed(pixels), middle.astype(np.int32)


def photographed(pixels: Floats) -> NDArray[np.uint8]:
    """As a camera gives them: its curve, darker and softer corners, grain."""
    rows, columns = np.indices(pixels.shape[:2])
    off = np.hypot(columns / WIDTH - 0.5, rows / HEIGHT - 0.5)[..., None]
    curved = np.clip(pixels * (1.08 - 0.55 * off**2), 0, 1) ** (1 / 1.25)
    sharp = Image.fromarray((255 * curved).round().astype(np.uint8))
    soft = np.asarray(sharp.filter(ImageFilter.GaussianBlur(1.3)), np.float64)
    share = np.clip((off - 0.3) * 2.5, 0.25, 1)
    mixed = np.asarray(sharp, np.float64) * (1 - share) + soft * share
    grain = np.random.default_rng(1).normal(0, 4.0, pixels.shape)
    return np.clip(mixed + grain, 0, 255).round().astype(np.uint8)


def main() -> None:
    photo, ids = render()
    by_name = {category.name: category for category in COCO_PANOPTIC}
    names = [*(thing.name for thing in THINGS), "grass-merged", "sky-other-merged"]
    segments = tuple(
        Segment(number, by_name[name].id, by_name[name].isthing, 1.0)
        for number, name in enumerate(names, start=1)
    )
    found = Panoptic(ids, segments)
    drawn = draw_overlay(photo, found, COCO_PANOPTIC, min_side=WIDTH, label_size=14, scores=False)
    sheet = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT + HEADING), "white")
    draw = ImageDraw.Draw(sheet)
    panels = (("Photo (made)", Image.fromarray(photo)), ("Its true segments", drawn))
    for column, (title, panel) in enumerate(panels):
        left = column * (WIDTH + GAP)
        draw.text((left, HEADING // 2), title, fill="#1b1f24", font=font(16, True), anchor="lm")
        sheet.paste(panel, (left, HEADING))
    sheet.save(TARGET, quality=82, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
