"""What a person sees while a job works."""

from __future__ import annotations

import pytest

from jobs.console import progress_line
from pipeline.progress import Progress


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (
            Progress(total=128, phase="model loading", phase_seconds=12.2),
            "0 of 128 images (0 %), model loading, 12 s",
        ),
        (
            Progress(total=128, phase="first batch", phase_seconds=14, in_work=32),
            "0 of 128 images (0 %), first batch, 14 s, 32 in work",
        ),
        (Progress(total=128, ahead=3, in_work=32), "3 of 128 images (2 %), 32 in work"),
        (
            Progress(total=5000, done=1000, ahead=24, in_work=64, rate=12.34, seconds=400),
            "1,024 of 5,000 images (20 %), 12.3 images/s, 5 min left, 64 in work",
        ),
        (
            Progress(total=128, done=128, error=2, codes={"empty": 2}, rate=3.0, seconds=32),
            "128 of 128 images (100 %), 4 images/s, 2 errors (empty 2)",
        ),
        (Progress(total=0), "0 of 0 images"),
    ],
)
def test_the_line_of_progress_counts_images_and_says_what_they_wait_for(
    progress: Progress, line: str
) -> None:
    assert progress_line(progress) == line
