"""The diagrams of docs/model.md, as SVG: python docs/draw_diagrams.py

Drawn by a script so that a corrected shape is a one-line change and both pictures look alike. Text
is real text, dark on a white ground of its own, so that they can be read on a dark page too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
WIDTH, HEIGHT = 126, 74  # of a box
DATA, WORK, ANSWER = "#e3eefb", "#fdf0d8", "#ddf3e4"


@dataclass(frozen=True)
class Box:
    """A tensor (DATA), a computation (WORK) or an answer (ANSWER): its name and two lines."""

    x: int
    y: int
    name: str
    letters: str = ""
    numbers: str = ""
    fill: str = DATA

    def svg(self) -> str:
        middle = self.x + WIDTH / 2
        lines = [
            f'<rect x="{self.x}" y="{self.y}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="{self.fill}" stroke="#4a5560"/>'
        ]
        rows = (
            (self.name, 22, 600),
            (self.letters, 43, 400),
            (self.numbers, 61, 400),
        )
        for text, y, weight in rows:
            color = "#4a5560" if y == 61 else "#1b1f24"
            lines.append(
                f'<text x="{middle}" y="{self.y + y}" text-anchor="middle" fill="{color}" '
                f'font-weight="{weight}">{escape(text)}</text>'
            )
        return "\n".join(lines)


def arrow(*points: tuple[float, float]) -> str:
    """A line through the points with its head at the last one."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="#1b1f24" stroke-width="1.6" '
        'marker-end="url(#head)"/>'
    )


def label(x: float, y: float, text: str) -> str:
    return f'<text x="{x}" y="{y}" fill="#4a5560" font-style="italic">{escape(text)}</text>'


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">\n<title>{escape(title)}</title>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#1b1f24"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def model() -> str:
    """Left to right what finds things, back from right to left what draws their masks."""
    top, middle, bottom = 30, 180, 330
    column = [14 + 146 * k for k in range(8)]
    center = [x + WIDTH / 2 for x in column]
    boxes = [
        Box(column[0], top, "photo", "3 × H × W", "3 × 800 × 1066"),
        Box(column[1], top, "Res2", "H/4 × W/4", "256 × 200 × 267"),
        Box(column[2], top, "Res3", "H/8 × W/8", "512 × 100 × 134"),
        Box(column[3], top, "Res4", "H/16 × W/16", "1024 × 50 × 67"),
        Box(column[4], top, "Res5", "H/32 × W/32", "2048 × 25 × 34"),
        Box(column[5], top, "projected", "d × H/32 × W/32", "256 × 25 × 34"),
        Box(column[6], top, "encoder", "6 layers over", "850 cells", WORK),
        Box(column[7], top, "encoded image", "d × H/32 × W/32", "256 × 25 × 34"),
        Box(column[7], middle, "decoder", "6 layers", "", WORK),
        Box(column[7], bottom, "queries", "N × d, learned", "100 × 256"),
        Box(column[6], middle, "box embeddings", "N × d", "100 × 256"),
        Box(column[5], middle, "class and box", "keep the sure", "K of 100", ANSWER),
        Box(column[6], bottom, "attention maps", "K × M maps", "K × 8 × 25 × 34"),
        Box(column[4], bottom, "convolve twice", "H/32 × W/32", "K × 128 × 25 × 34", WORK),
        Box(column[3], bottom, "enlarge, add", "H/16 × W/16", "K × 64 × 50 × 67", WORK),
        Box(column[2], bottom, "enlarge, add", "H/8 × W/8", "K × 32 × 100 × 134", WORK),
        Box(column[1], bottom, "enlarge, add", "masks H/4 × W/4", "K × 200 × 267", WORK),
        Box(column[0], bottom, "merge", "one map", "480 × 640", ANSWER),
    ]
    parts = [box.svg() for box in boxes]
    half = HEIGHT / 2
    for k in range(7):
        parts.append(arrow((column[k] + WIDTH, top + half), (column[k + 1], top + half)))
    for k in (1, 2, 3):
        parts.append(arrow((center[k], top + HEIGHT), (center[k], bottom)))
    for k in (4, 3, 2, 1):
        parts.append(arrow((column[k], bottom + half), (column[k - 1] + WIDTH, bottom + half)))
    right, below = column[7] + WIDTH + 14, bottom + HEIGHT + 18  # round the decoder
    parts += [
        arrow((center[7], top + HEIGHT), (center[7], middle)),
        arrow((center[7], bottom), (center[7], middle + HEIGHT)),
        arrow((column[7], middle + half), (column[6] + WIDTH, middle + half)),
        arrow((column[6], middle + half), (column[5] + WIDTH, middle + half)),
        arrow((center[6], middle + HEIGHT), (center[6], bottom)),
        arrow(
            (column[7] + WIDTH, top + half),
            (right, top + half),
            (right, below),
            (center[6], below),
            (center[6], bottom + HEIGHT),
        ),
        arrow((column[6], bottom + half), (column[4] + WIDTH, bottom + half)),
        arrow((center[5], top + HEIGHT), (center[5], 142), (center[4], 142), (center[4], bottom)),
        label(column[1], 22, "backbone (ResNet-50)"),
        label(column[5], 22, "transformer"),
        label(column[1], bottom + HEIGHT + 22, "mask head, once for each kept query"),
        label(column[5] - 4, bottom + half - 8, "laid beside it"),
        label(center[6] + 6, bottom - 22, "kept"),
    ]
    return picture(1190, 440, "DETR panoptic, from a photo to its map", parts)


def attention() -> str:
    """What happens between a box embedding and its attention maps."""
    y, low = 30, 150
    column = [14 + 156 * k for k in range(6)]
    boxes = [
        Box(column[0], y, "box embedding", "d", "256"),
        Box(column[1], y, "linear, scale", "query", "", WORK),
        Box(column[2], y, "M queries", "M × d/M", "8 × 32"),
        Box(column[0], low, "encoded image", "d × H/32 × W/32", "256 × 25 × 34"),
        Box(column[1], low, "linear", "key", "no position", WORK),
        Box(column[2], low, "M keys a cell", "M × d/M × cells", "8 × 32 × 850"),
        Box(column[3], 90, "dot products", "M × cells", "8 × 850", WORK),
        Box(column[4], 90, "one softmax", "over all M × cells", "6,800 sum to 1", WORK),
        Box(column[5], 90, "attention maps", "M × H/32 × W/32", "8 × 25 × 34", ANSWER),
    ]
    parts = [box.svg() for box in boxes]
    half = HEIGHT / 2
    for row in (y, low):
        for k in (0, 1):
            parts.append(arrow((column[k] + WIDTH, row + half), (column[k + 1], row + half)))
        parts.append(
            arrow((column[2] + WIDTH, row + half), (column[3], 90 + half + (8 if row > y else -8)))
        )
    for k in (3, 4):
        parts.append(arrow((column[k] + WIDTH, 90 + half), (column[k + 1], 90 + half)))
    return picture(940, 246, "From a box embedding to its attention maps", parts)


DIAGRAMS = {"model.svg": model, "attention.svg": attention}


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DIAGRAMS.items():
        (IMAGES / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
