"""Conditional writes with retries: create an object if absent, replace it if unchanged.

After a failed try the state of the object is unknown: the store may have carried the request out,
may do so later, or never. A store's client repeats plain writes but no conditional ones, since the
repetition would be refused because of its own first try, and a store may answer 409 although it
made nothing. So each try is one request here, and the object is read back before the next try: if
the object holds the bytes to be written, the write has succeeded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from pipeline.storage.entry import Fetched, passes

FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """Bounds of a conditional write; the last try begins early enough to end within `seconds`."""

    tries: int
    seconds: float  # all tries together
    each: float  # one request


class Conditional(Protocol):
    """A store's requests for conditional writes. No method retries."""

    def limits(self, *, large: bool) -> Limits: ...
    def look(self, key: str) -> Fetched | None: ...
    def create(self, key: str, data: bytes, *, large: bool) -> bool: ...
    def replace(self, key: str, old: Fetched, new: bytes) -> bool: ...
    def delete(self, key: str) -> None: ...


class Clock(Protocol):
    """A clock in seconds; tests replace it."""

    def now(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


def look(objects: Conditional, key: str, clock: Clock) -> bytes | None:
    """The content of a small object; None if it is absent."""
    (current,) = _answer(lambda: (objects.look(key),), objects.limits(large=False), clock)
    return None if current is None else current.data


def create(
    objects: Conditional, key: str, data: bytes, clock: Clock, *, large: bool = False
) -> bool:
    """Create an object. True if the object then holds `data`, False if it holds other bytes.

    large: the object may take minutes to send. Raises TimeoutError, or what the client raises.
    """

    def request() -> bool | None:
        if objects.create(key, data, large=large):
            return True
        current = objects.look(key)
        # Refused although the object is absent: another write was under way, or it was deleted.
        return None if current is None else current.data == data

    in_vain = f"{key} can't be made: it is refused, and yet not there"
    return _answer(request, objects.limits(large=large), clock, in_vain=in_vain)


def replace(objects: Conditional, key: str, old: bytes, new: bytes, clock: Clock) -> bool:
    """Replace `old` by `new`. False if the object holds other bytes or is absent.

    Raises TimeoutError, or what the client raises.
    """

    def request() -> bool | None:
        current = objects.look(key)
        if current is None:
            return False
        if current.data == new:  # an earlier try was carried out, and its answer lost
            return True
        if current.data != old:
            return False
        return objects.replace(key, current, new) or None

    in_vain = f"{key} can't be replaced: its content stays, and its version changes"
    return _answer(request, objects.limits(large=False), clock, requests=2, in_vain=in_vain)


def delete(objects: Conditional, key: str, clock: Clock) -> None:
    """Delete an object, within the limits of a small write: a late deletion has no condition.

    Raises FileNotFoundError if the store reports an absent object; S3 does not.
    """
    _answer(lambda: (objects.delete(key),), objects.limits(large=False), clock)


def _answer(
    request: Callable[[], T | None],
    limits: Limits,
    clock: Clock,
    *,
    requests: int = 1,
    in_vain: str = "",
) -> T:
    """The answer to the first try that succeeds; None asks for another try, after a pause.

    requests: of one try. in_vain: the message of the TimeoutError if the last try gives None.
    """
    began, pause = clock.now(), FIRST_PAUSE

    def is_last(turn: int) -> bool:
        spent = clock.now() - began
        return turn == limits.tries or spent > limits.seconds - requests * limits.each

    for turn in range(1, limits.tries + 1):
        try:
            if (answer := request()) is not None:
                return answer
        except Exception as error:
            if is_last(turn) or not passes(error):
                raise
        if is_last(turn):
            break
        clock.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_PAUSE)
    raise TimeoutError(in_vain)
