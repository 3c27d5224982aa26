"""One interleaving a seed: a folder of nights in some state, a few drivers, and faults.

python -m tests.simulation.interleavings 0 20000      # seeds; prints those that broke a promise
python -m tests.simulation.interleavings 1234         # one seed, with every request
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from pipeline.errors import LeaseError, TryAgainError, UserError
from tests.simulation.promises import OUT, Broken
from tests.simulation.verbs import (
    Field,
    fingerprint,
    fresh,
    installed,
    night,
    prune,
    retry,
    rollback,
    segment,
)
from tests.simulation.world import NONE, Driver, Faults, Killed, Object

RUN_A: Final = f"{OUT}/run-{fingerprint('a')}"
VERBS: Final[dict[str, tuple[int, Callable[[random.Random], Callable[[], Any]]]]] = {
    "night a": (5, lambda draw: night("a")),
    "night b": (2, lambda draw: night("b")),
    "retry OUT": (2, lambda draw: retry(OUT)),
    "retry OUT/run-a": (2, lambda draw: retry(RUN_A)),
    "segment OUT": (1, lambda draw: segment(OUT, refresh=draw.random() < 0.5)),
    "rollback OUT": (2, lambda draw: rollback(OUT)),
    "rollback OUT --to run-a": (1, lambda draw: rollback(OUT, RUN_A.partition("/")[2])),
    "rollback OUT/run-a": (1, lambda draw: rollback(RUN_A)),
    "prune OUT": (2, lambda draw: prune(OUT, draw.randint(1, 3))),
    "prune OUT/run-a": (1, lambda draw: prune(RUN_A, draw.randint(1, 2))),
}
EXPECTED: Final = (UserError, OSError, KeyboardInterrupt, Killed)


@dataclass(frozen=True)
class State:
    """What a folder of nights holds at the beginning, and the images beside it."""

    images: dict[str, str]
    failing: frozenset[str]
    objects: dict[str, Object]


@cache
def states() -> tuple[State, ...]:
    """An empty folder; run-a with a stopped snapshot after three; run-b on top of that."""
    field = fresh({f"{n}.jpg": f"{n}" for n in range(8)}, {})
    field.failing = {"3.jpg", "5.jpg", "new-2.jpg"}  # at the first try; the last is worth another
    found = [_state(field)]
    with installed(field):
        for number, passes in enumerate((True, True, True, False)):
            field.gate = lambda passes=passes: passes
            _go(field, "night", night("a"))
            field.images[f"new-{number}.jpg"] = "1"
        found.append(_state(field))
        field.gate = lambda: True
        for number in range(2):
            _go(field, "night", night("b"))
            field.images[f"newer-{number}.jpg"] = "1"
        found.append(_state(field))
    return tuple(found)


def _state(field: Field) -> State:
    return State(dict(field.images), frozenset(field.failing), dict(field.world.objects))


def _go(field: Field, name: str, work: Callable[[], Any]) -> BaseException | None:
    driver = field.world.add(name, work)
    field.world.run()
    if field.world.broken:
        raise Broken(field.world.broken)
    return driver.outcome


@dataclass(frozen=True)
class Outcome:
    """What one seed led to. broken: the promise that was not kept, if any."""

    seed: int
    drivers: tuple[str, ...]
    broken: str | None
    log: tuple[str, ...]

    def __str__(self) -> str:
        return self.text(60)

    def text(self, requests: int) -> str:
        """What went on, with so many of the last requests."""
        end = self.log[-requests:]
        return "\n".join([f"seed {self.seed}: {self.broken}", *self.drivers, "", *end])


def interleave(
    seed: int,
    faults: Faults | None = None,
    *,
    verbs: Sequence[str] = (),
    state: int | None = None,
    within: float = 200.0,
) -> Outcome:
    """Let a few drivers work at once. verbs: of these alone; state: begin here; within: seconds in
    which they start."""
    draw = random.Random(seed)
    random.seed(seed)  # of pauses
    begin = states()[draw.choice((0, 1, 1, 2, 2)) if state is None else state]
    field = fresh(begin.images, begin.objects, seed)
    field.failing = set(begin.failing)
    field.world.faults = faults or Faults()
    _change(field, draw)
    known = [name for name in VERBS if not verbs or name in verbs]
    with installed(field):
        for name in draw.choices(
            known, [VERBS[name][0] for name in known], k=draw.choice((2, 2, 3, 4))
        ):
            field.world.add(name, VERBS[name][1](draw), draw.uniform(0.0, within))
        with suppress(Broken):
            field.world.run()
            _judge_ends(field)
            if not field.world.broken and seed % 3 == 0:  # it takes as long as all the rest
                _last_night(field)
    drivers = tuple(f"{each.name}: {each.outcome!r}" for each in field.world.drivers)
    plan = re.compile(r"-[0-9a-f]{12}\.parquet")
    log = tuple(plan.sub("-PLAN.parquet", line) for line in field.world.log)
    return Outcome(seed, drivers, field.world.broken, log)


def _change(field: Field, draw: random.Random) -> None:
    """Images come, change and go, as from one night to the next."""
    field.images[f"tonight-{draw.randint(0, 9)}.jpg"] = "1"
    name = draw.choice(sorted(field.images))
    if draw.random() < 0.5:
        field.images[name] += "'"
    elif draw.random() < 0.5:
        del field.images[name]


def _judge_ends(field: Field) -> None:
    for driver in field.world.drivers:
        if driver.outcome is not None and not isinstance(driver.outcome, EXPECTED):
            field.world.broken = (
                field.world.broken or f"{driver.name} ended with {driver.outcome!r}"
            )


def _last_night(field: Field) -> None:
    """When all is over, a night that nothing befalls must be able to go on, and be right."""
    world = field.world
    world.faults = NONE
    world.now += 500.0
    field.gate = lambda: True
    driver: Driver = world.add("night a", night("a"))
    world.run()
    error = driver.outcome
    if isinstance(error, UserError) and "were rolled back" in str(error):
        return
    if error is not None or isinstance(error, (LeaseError, TryAgainError)):
        world.broken = world.broken or f"no night can go on: {error!r}"
    if world.broken:
        return
    live = field.promises.live()
    run = RUN_A.partition("/")[2]
    pointer = field.promises.json(f"{RUN_A}/latest.json") or {}
    newest = max((n for name, n in field.promises.planned if name == run), default=0)
    if newest in pointer.get("withdrawn", ()):
        return
    if live != (run, newest) or field.promises.images(run, newest) != field.images:
        world.broken = f"after the last night readers see {live}, not the images that are there"


def main(words: Sequence[str]) -> int:
    """One seed in full, or of many those that break a promise."""
    first, last = int(words[0]), int(words[-1])
    if len(words) == 1:
        outcome = interleave(first)
        print(outcome.text(len(outcome.log)))
        return outcome.broken is not None
    broken = 0
    for seed in range(first, last):
        outcome = interleave(seed)
        if outcome.broken:
            broken += 1
            print(outcome, "\n", flush=True)
    print(f"{broken} of {last - first} seeds broke a promise")
    return broken > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
