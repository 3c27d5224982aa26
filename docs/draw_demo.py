"""The picture of the README, from a finished demo: python docs/draw_demo.py [demo/run]

Scenes of the demo as its report shows them: photo, prediction, truth, difference; neither the best
nor the worst, but those in the middle by PQ among those with many segments.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.report.gallery import Budget, Illustrator
from pipeline.report.sql import query
from pipeline.run.snapshots import open_snapshot

TARGET = Path(__file__).parent / "images" / "demo.png"
ROWS, WIDTH, GAP = 3, 260, 8
MIDDLE = """
with ranked as (
    select file_name, pq, row_number() over (order by pq) as place, count(*) over () as scenes
    from per_image where status = 'scored' and tp + fn >= 5
)
select file_name from ranked order by abs(place - scenes / 2), file_name
"""


def main() -> None:
    run_snapshot = open_snapshot(sys.argv[1] if len(sys.argv) > 1 else "demo/run")
    names = query(run_snapshot.run, MIDDLE)["file_name"].to_pylist()
    artist = Illustrator.of(run_snapshot, run_snapshot.result(run_snapshot.evaluations()[0]), None)
    cards = artist.cards(names, ROWS, Budget(1 << 30))
    rows = [
        [Image.open(io.BytesIO(picture.data)).convert("RGB") for picture in card.pictures]
        for card in cards
    ]
    heights = [round(row[0].height * WIDTH / row[0].width) for row in rows]
    columns = len(rows[0])
    size = (columns * WIDTH + (columns - 1) * GAP, sum(heights) + (len(rows) - 1) * GAP)
    sheet = Image.new("RGB", size, "white")
    y = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            small = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * (WIDTH + GAP), y))
        y += height + GAP
    sheet.quantize(255, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
