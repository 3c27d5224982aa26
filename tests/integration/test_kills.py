"""Whatever is killed, whenever: exactly one row an image, and little computed twice.

The model writes down each image that it computes (tests/counting_model.py), and rows are read with
pyarrow alone, so neither count believes the engine. The full ten kills take minutes: `make soak`
runs them; the default suite kills three times, at moments drawn anew for each run.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.killing import Field, end, make_field

PER_SHARD = 4
# What a death of the driver may lose at most on two CPUs: two units for the one actor, and what
# the fetch tasks and writers beside it hold (0.25 CPU each of the CPU that the actor leaves).
UNITS_AT_RISK = 2 + 4 + 4


def kill_again_and_again(field: Field, kills: int, draw: random.Random) -> None:
    """Kill the driver at random moments, start it again at once each time, then let it finish."""
    written: dict[str, int] = {}
    for kill in range(kills):
        number = signal.SIGTERM if kill % 3 == 2 else signal.SIGKILL
        done = len(set(field.computed()))
        job = field.start()
        if draw.random() < 0.3:  # while it starts, plans or has just begun
            field.wait_for(job, seconds=draw.uniform(0.5, 30))
        else:  # while it works
            share = (field.images - done) // (kills - kill + 1)
            field.wait_for(job, computed=len(field.computed()) + draw.randint(1, max(share, 1)))
        written |= field.shards()
        code = end(job, number)
        assert code in ((75, 0) if number == signal.SIGTERM else (-signal.SIGKILL, 0)), code
    field.finish()
    assert field.shards().items() >= written.items()  # nothing written is written again
    field.check()
    field.planned_once()
    assert field.repeated() <= kills * UNITS_AT_RISK * PER_SHARD


def test_a_driver_that_is_killed_three_times_leaves_one_row_an_image(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=200, per_shard=PER_SHARD, seconds=0.02)
    kill_again_and_again(field, 3, random.Random())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_driver_that_is_killed_ten_times_leaves_one_row_an_image(tmp_path: Path) -> None:
    field = make_field(tmp_path, images=800, per_shard=PER_SHARD, seconds=0.02)
    kill_again_and_again(field, 10, random.Random())
