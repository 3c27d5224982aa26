"""Conditional writes, tried again by rules of their own: made if absent, replaced if unchanged.

A failed try says nothing of the object: the request may have been carried out, may be carried out
later, or never. Clients repeat an overwrite, which does no harm, but give these up (a repeated one
would refuse its own first try), and a store may refuse one with 409 where nothing came to be. So
each try is one request, and before the next one what is there is read back: one's own bytes are a
success.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from pipeline.storage.entry import Fetched, passes

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0


@dataclass(frozen=True)
class Limits:
    """How long a conditional write is tried: the last try begins early enough to end in time."""

    tries: int
    seconds: float  # all tries together
    each: float  # one request


class Conditional(Protocol):
    """A store's conditional writes, each one request."""

    def limits(self, *, large: bool) -> Limits: ...
    def look(self, key: str) -> Fetched | None: ...
    def create(self, key: str, data: bytes, *, large: bool) -> bool: ...
    def replace(self, key: str, old: Fetched, new: bytes) -> bool: ...
    def delete(self, key: str) -> None: ...


class Clock(Protocol):
    """Seconds that pass, and waiting for them."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


def look(objects: Conditional, key: str, clock: Clock) -> bytes | None:
    """A small object as it is now, None if it is absent."""
    for last in _tries(objects.limits(large=False), clock):
        try:
            found = objects.look(key)
            return None if found is None else found.data
        except Exception as error:
            if last() or not passes(error):
                raise
    raise AssertionError("the last try returns or raises")


def create(
    objects: Conditional, key: str, data: bytes, clock: Clock, *, large: bool = False
) -> bool:
    """Make an object. True if it holds these bytes now, False if it holds others.

    large: the object may take minutes to send; else it is a small one that somebody waits for.
    """
    limits = objects.limits(large=large)
    for last in _tries(limits, clock):
        try:
            if objects.create(key, data, large=large):
                return True
            found = objects.look(key)
        except Exception as error:
            if last() or not passes(error):
                raise
            continue
        if found is not None:
            return found.data == data
        # It was refused, and nothing is there: another try was under way, or it was deleted.
    raise TimeoutError(f"{key} can't be made: it is refused, and yet not there")


def replace(objects: Conditional, key: str, old: bytes, new: bytes, clock: Clock) -> bool:
    """Replace exactly `old` by `new`. False if the object holds anything else by now or is gone."""
    limits = objects.limits(large=False)
    for last in _tries(limits, clock, requests=2):
        try:
            found = objects.look(key)
            if found is None:
                return False
            if found.data == new:  # an earlier try was carried out, and its answer lost
                return True
            if found.data != old:
                return False
            if objects.replace(key, found, new):
                return True
        except Exception as error:
            if last() or not passes(error):
                raise
    raise TimeoutError(f"{key} can't be replaced: its content stays, and its version changes")


def delete(objects: Conditional, key: str, clock: Clock) -> None:
    """Delete an object, in the time of a small write: no condition would stop one that is late.

    Raises FileNotFoundError where the store says that there is none.
    """
    for last in _tries(objects.limits(large=False), clock):
        try:
            return objects.delete(key)
        except Exception as error:
            if last() or not passes(error):
                raise
    raise AssertionError("the last try returns or raises")


def _tries(limits: Limits, clock: Clock, requests: int = 1) -> Iterator[Callable[[], bool]]:
    """Pauses between tries. What is yielded says whether the current try is the last."""
    began = clock.now()
    pause = FIRST_PAUSE
    for turn in range(1, limits.tries + 1):

        def last(turn: int = turn) -> bool:
            spent = clock.now() - began
            return turn == limits.tries or spent > limits.seconds - requests * limits.each

        yield last
        if last():
            return
        clock.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
