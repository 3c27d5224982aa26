"""The messages of a job that ends: the work lost by a stop, and a hint if segments are rare."""

from __future__ import annotations

from typing import Final

from pipeline.amounts import counted
from pipeline.progress import Progress
from pipeline.segmentation.pending import Owed
from pipeline.sharding import Generation

HARDLY_ANY: Final = 0.1  # part of the images with a segment, up to which the hint is given


def what_is_left(generation: Generation, todo: Owed, progress: Progress) -> str:
    """The message of a stopped job: `3 of 10 shards are written, 40 images in work were lost`."""
    owed_shards = sum(len(units) for units in todo.units.values())
    shards = sum(1 for _ in generation.units())
    shards += owed_shards - len(todo.units.get(generation.number, ()))  # lost of older generations
    written = shards - owed_shards + progress.shards
    text = f"{written:,} of {counted(shards, 'shard')} {'is' if shards == 1 else 'are'} written"
    if progress.in_work:
        lost = "was" if progress.in_work == 1 else "were"
        text += f", {counted(progress.in_work, 'image')} in work {lost} lost"
    return text


def few_segments(progress: Progress, threshold: float) -> str | None:
    """A hint if at most HARDLY_ANY of the successful images have a segment; else None.

    threshold: the smallest class probability of a segment, as the job used it.
    """
    if not progress.ok or progress.ok - progress.empty > HARDLY_ANY * progress.ok:
        return None
    lower = 0.5 if threshold > 0.5 else threshold / 2
    return (
        f"{progress.empty:,} of {counted(progress.ok, 'image')} have no segment: most likely these "
        f"weights are not as sure of anything as --threshold {threshold:g} asks (try --threshold "
        f"{lower:g} in another --out), or were trained too briefly or on other things"
    )
