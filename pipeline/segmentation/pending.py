"""The missing shards of a run folder: those to compute, those to copy without some rows, and the
sentence on what a stop leaves undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.amounts import counted
from pipeline.progress import Progress
from pipeline.run.publish import shards_of
from pipeline.run.run import Run
from pipeline.sharding import Generation, Rewrite, WorkUnit, missing, parse_shards


@dataclass(frozen=True)
class Owed:
    """The shards that a call must still write.

    The newest generation needs them, and the store lacks them. If the call chose shards
    (`--shards`), only those of the newest generation's own are computed.
    """

    units: Mapping[int, Sequence[WorkUnit]]  # to compute, by generation
    rewrites: Sequence[Rewrite]  # to copy without the rows that a generation drops

    @property
    def images(self) -> int:
        return sum(unit.images for units in self.units.values() for unit in units)


def owed(run: Run, generation: Generation, sizes: Mapping[str, int], shards: str | None) -> Owed:
    """The missing shards of `generation` (the newest) and of earlier ones that it keeps or copies.

    sizes: bytes of the shards in the store, by path. shards: which shards of `generation` to
    compute, such as `0:8`; None: all.
    """
    chosen = parse_shards(shards, generation.shards) if generation.shards else range(0)
    needed = set(shards_of(run, generation)[0])
    lost: dict[int, list[WorkUnit]] = {}
    rewrites: list[Rewrite] = []
    for planned in reversed(run.generations().values()):  # a missing copy needs its source, too
        copies = [r for r in planned.rewrites if r.path in needed and r.path not in sizes]
        needed.update(rewrite.source for rewrite in copies)
        rewrites[:0] = copies
        units = [unit for unit in missing(planned, sizes) if unit.path in needed]
        if planned.number == generation.number:
            units = [unit for unit in units if unit.shard in chosen]
        lost.update({planned.number: units} if units else {})
    return Owed(lost, rewrites)


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
