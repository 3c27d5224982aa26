"""Archives listed by Ray tasks, one task an archive: the tars of a job are read in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

import pyarrow as pa
import ray

from pipeline.cluster.ray_session import join_ray
from pipeline.planning.archives import Archive, Each, in_threads
from pipeline.planning.photo_names import LeftOut
from pipeline.storage.archives import kind_of

FEW: Final = 4  # tars that this machine lists without Ray
AHEAD: Final = 256  # tasks submitted and not yet read
RETRIES: Final = 5  # of a task whose node was lost
ARCHIVE_TASK_MEMORY: Final = 300 << 20  # bytes


@ray.remote(num_cpus=1, memory=ARCHIVE_TASK_MEMORY, max_retries=RETRIES)
def _list(
    function: Callable[[Archive], tuple[pa.Table, LeftOut]], archive: Archive
) -> tuple[pa.Table, LeftOut]:
    return function(archive)


def in_tasks(address: str | None) -> Each:
    """Lists by Ray tasks on the cluster at `address`; zips and a few tars in threads.

    A zip costs three requests, which no task is worth. Ray is joined once the first task is needed.
    """

    def each(
        function: Callable[[Archive], tuple[pa.Table, LeftOut]], archives: Iterable[Archive]
    ) -> Iterator[tuple[pa.Table, LeftOut]]:
        zips: list[Archive] = []
        tars: list[Archive] = []
        for archive in archives:
            (tars if kind_of(archive.uri) == "tar" else zips).append(archive)
        if len(tars) < FEW:
            yield from in_threads(function, [*zips, *tars])
            return
        yield from in_threads(function, zips)
        join_ray(address)
        lister = ray.put(function)
        remaining = iter(tars)
        pending = [_list.remote(lister, tar) for tar in islice(remaining, AHEAD)]
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            pending += [_list.remote(lister, tar) for tar in islice(remaining, len(done))]
            yield from ray.get(done)

    return each
