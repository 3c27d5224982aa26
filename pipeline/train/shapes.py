"""Textures and shapes of the synthetic scenes: noise, textures of stuff, outlines of things.

Array arithmetic in this module is integers, + - * /, square root, minimum and maximum only: IEEE
754 rounds these exactly, so a scene is the same on every machine. Sine, logarithm and normal
deviates differ in the last bit between math libraries. A signed distance gives both the antialiased
edge and the truth of a thing.

Textures are colours of about 0 to 255, not clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating[Any]]  # always float32; numpy's stubs infer less
Shape = Callable[[Floats, Floats], Floats]


def noise(rng: np.random.Generator, height: int, width: int, cell: tuple[int, int]) -> Floats:
    """Smooth noise in -0.5..0.5, (height, width) float32. cell: size (y, x) of a grain, pixels."""
    rows, columns = height // cell[0] + 2, width // cell[1] + 2
    grid = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    smooth = grid.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / np.float32(255) - np.float32(0.5)


def color(
    rng: np.random.Generator, low: tuple[int, int, int], high: tuple[int, int, int]
) -> Floats:
    """A random RGB colour, each channel between `low` and `high`; (3,) float32."""
    return rng.integers(low, np.asarray(high) + 1).astype(np.float32)


def sky(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Sky by day or at dusk: a vertical gradient with clouds; (height, width, 3) float32."""
    dusk = rng.random() < 0.3
    top = (
        color(rng, (70, 70, 120), (150, 120, 170))
        if dusk
        else color(rng, (60, 120, 180), (120, 180, 245))
    )
    bottom = (
        color(rng, (210, 130, 90), (250, 190, 140))
        if dusk
        else color(rng, (170, 200, 220), (235, 240, 250))
    )
    slope = (np.arange(height, dtype=np.float32) / np.float32(height))[:, None, None]
    clouds = np.maximum(noise(rng, height, width, (18, 40)), 0)[..., None]
    return top + (bottom - top) * slope + clouds * np.float32(150)


def grass(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Grass: blades (grain taller than wide) and patches; (height, width, 3) float32."""
    base = color(rng, (40, 85, 20), (110, 150, 65))
    blades = noise(rng, height, width, (5, 2))[..., None] * np.float32(70)
    patches = noise(rng, height, width, (24, 24))[..., None] * np.float32(50)
    return base + (blades + patches) * np.asarray([0.9, 1.0, 0.5], dtype=np.float32)


def water(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Blue or green water: ripples (grain wider than tall); (height, width, 3) float32."""
    base = color(rng, (15, 70, 95), (90, 140, 175))
    ripples = noise(rng, height, width, (3, 14))[..., None] * np.float32(75)
    swell = noise(rng, height, width, (12, 48))[..., None] * np.float32(40)
    return base + ripples + swell


def sand(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Sand: fine grain and low dunes; (height, width, 3) float32."""
    base = color(rng, (165, 130, 80), (220, 190, 145))
    grain = noise(rng, height, width, (1, 1))[..., None] * np.float32(45)
    dunes = noise(rng, height, width, (20, 30))[..., None] * np.float32(45)
    return base + grain + dunes


def rubble(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Grey rubble, no class of the label set, so void in the truth; (height, width, 3) float32."""
    grey = np.float32(rng.integers(60, 180))
    return (
        grey
        + noise(rng, height, width, (4, 4))[..., None] * np.float32(120)
        + np.zeros(3, np.float32)
    )


def ball(u: Floats, v: Floats) -> Floats:
    """Signed distance to a disc, in radii, negative inside, at local coordinates u, v (h, w).

    The shapes below have the same arguments and units.
    """
    return np.sqrt(u * u + v * v) - np.float32(1)


def crate(u: Floats, v: Floats) -> Floats:
    """A square."""
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.85)


def tent(u: Floats, v: Floats) -> Floats:
    """A triangle on its base."""
    return np.maximum(
        v - np.float32(0.75), np.abs(u) * np.float32(0.87) - v * np.float32(0.5) - np.float32(0.5)
    )


def star(u: Floats, v: Floats) -> Floats:
    """Two triangles, head to foot: six points."""
    side = np.abs(u) * np.float32(0.866)
    half = v * np.float32(0.5)
    inner = np.float32(0.55)
    return np.minimum(np.maximum(v, side - half) - inner, np.maximum(-v, side + half) - inner)


def cross(u: Floats, v: Floats) -> Floats:
    """Two bars at right angles."""
    u, v = np.abs(u), np.abs(v)
    arm = np.float32(0.36)
    return np.minimum(np.maximum(u - 1, v - arm), np.maximum(u - arm, v - 1))


def shade(kind: str, u: Floats, v: Floats, distance: Floats) -> Floats:
    """The texture of a thing as a factor on its colour, (h, w) float32.

    u, v: local coordinates in radii; distance: signed distance of the shape; all (h, w) float32.
    """
    if kind == "ball":  # a highlight on one side
        return np.float32(1.35) - np.float32(0.55) * (
            (u + np.float32(0.4)) ** 2 + (v + np.float32(0.4)) ** 2
        )
    if kind == "crate":  # a frame around planks
        planks = np.where(np.abs(v - np.round(v * 2) / 2) < 0.06, np.float32(0.6), np.float32(1.1))
        return np.where(distance > -0.2, np.float32(0.75), planks)
    if kind == "tent":  # two halves
        return np.where(u > 0, np.float32(0.7), np.float32(1.15))
    if kind == "star":  # brighter in the middle
        return np.float32(1.3) - np.float32(0.6) * (np.abs(u) + np.abs(v))
    return np.where(distance > -0.1, np.float32(0.65), np.float32(1.05))


STUFF = {"sky": sky, "grass": grass, "water": water, "sand": sand}
THINGS: dict[str, Shape] = {
    "ball": ball,
    "crate": crate,
    "tent": tent,
    "star": star,
    "cross": cross,
}
