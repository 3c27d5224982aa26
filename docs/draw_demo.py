"""The picture of the README, from a finished demo: python docs/draw_demo.py [demo/run]

Scenes of the demo as its report shows them: photo, prediction, truth, difference; neither the best
nor the worst, but those in the middle by PQ among those with many segments.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.report.gallery import Budget, Illustrator
from pipeline.report.overlay import draw_labels, font
from pipeline.report.pictures import Picture
from pipeline.report.sql import query
from pipeline.run.snapshots import open_snapshot

TARGET = Path(__file__).parent / "images" / "demo.png"
ROWS, WIDTH, GAP = 3, 260, 8
LETTERS, HEADING = 12, 26  # pixels: of labels, and the height of the columns' names
MIDDLE = """
with ranked as (
    select file_name, pq, row_number() over (order by pq) as place, count(*) over () as scenes
    from per_image where status = 'scored' and tp + fn >= 5
)
select file_name from ranked order by abs(place - scenes / 2), file_name
"""


def shown(picture: Picture) -> Image.Image:
    """As wide as a column, with its labels."""
    whole = Image.open(io.BytesIO(picture.data)).convert("RGB")
    size = (WIDTH, round(whole.height * WIDTH / whole.width))
    small = whole.resize(size, Image.Resampling.LANCZOS)
    draw_labels(small, picture.labels, LETTERS)
    return small


def main() -> None:
    run_snapshot = open_snapshot(sys.argv[1] if len(sys.argv) > 1 else "demo/run")
    names = query(run_snapshot.run, MIDDLE)["file_name"].to_pylist()
    artist = Illustrator.of(run_snapshot, run_snapshot.result(run_snapshot.evaluations()[0]), None)
    cards = artist.cards(names, ROWS, Budget(1 << 30))
    rows = [[shown(picture) for picture in card.pictures] for card in cards]
    titles = [picture.title for picture in cards[0].pictures]
    height = HEADING + sum(row[0].height + GAP for row in rows) - GAP
    sheet = Image.new("RGB", (len(titles) * (WIDTH + GAP) - GAP, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        place = (column * (WIDTH + GAP), HEADING // 2)
        draw.text(place, title, fill="#1b1f24", font=font(16, True), anchor="lm")
    y = HEADING
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (WIDTH + GAP), y))
        y += row[0].height + GAP
    sheet.quantize(255, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
