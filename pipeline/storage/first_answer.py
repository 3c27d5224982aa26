"""Opening a store behind fsspec: credentials and the first answer within about `SECONDS`.

The clients of gs:// and az:// look for credentials on the network and repeat failed requests:
without a network, or with a mistyped host, each call takes minutes. A store that has answered once
is given all the time that its client wants. Rejected: limits on each request, since to list a large
folder is one call that takes minutes too, and settings of each client, since they differ.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final, TypeVar

import fsspec
from fsspec.core import url_to_fs

from pipeline.storage.entry import passes

SECONDS: Final = 40.0  # for credentials and the first answer together
LEAST_SECONDS: Final = 10.0  # for the first answer, however long the credentials took
LOGGERS: Final = ("gcsfs", "azure")  # of clients that log the traceback of what they raise

T = TypeVar("T")
_seconds_left: Final = weakref.WeakKeyDictionary[fsspec.AbstractFileSystem, float]()
_answered: Final = weakref.WeakSet[fsspec.AbstractFileSystem]()


def open_filesystem(url: str, options: Mapping[str, str]) -> tuple[fsspec.AbstractFileSystem, str]:
    """(file system, path in it) of a URL. Raises TimeoutError, or what fsspec raises."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL)
    began = time.monotonic()
    filesystem, path = within(SECONDS, lambda: url_to_fs(url, **options))
    left = SECONDS - (time.monotonic() - began)
    _seconds_left[filesystem] = max(left, min(LEAST_SECONDS, SECONDS))
    return filesystem, path


def first_answer(filesystem: fsspec.AbstractFileSystem, key: str) -> None:
    """Ask for the object info of `key`, unless the store has answered this process before.

    Any answer will do, also that there is no such object or that it is forbidden. Raises
    TimeoutError, or what the client raises if it can't reach the store.
    """
    if filesystem in _answered:
        return
    try:
        within(_seconds_left.get(filesystem, SECONDS), lambda: filesystem.info(key))
    except Exception as error:
        if passes(error):
            raise
    _answered.add(filesystem)


class _Worker:
    """A thread that carries out requests, and ends with the process."""

    def __init__(self) -> None:
        self._requests: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="first answer").start()

    def _run(self) -> None:
        while True:
            self._requests.get()()

    def start(self, request: Callable[[], T]) -> Future[T]:
        outcome: Future[T] = Future()

        def carry_out() -> None:
            try:
                outcome.set_result(request())
            except BaseException as error:  # noqa: BLE001 - raised by `result`
                outcome.set_exception(error)

        self._requests.put(carry_out)
        return outcome


# Threads are used again, since fsspec keeps one file system for each thread.
_idle: Final[list[_Worker]] = []


def within(seconds: float, request: Callable[[], T]) -> T:
    """The result of `request`. Raises what it raises, and TimeoutError if it takes longer.

    No client can be interrupted, so a request that is too late goes on in its thread.
    """
    try:
        worker = _idle.pop()
    except IndexError:
        worker = _Worker()
    outcome = worker.start(request)
    try:
        result = outcome.result(seconds)
    except TimeoutError:
        if not outcome.done():
            raise TimeoutError(f"no answer in {seconds:.3g} seconds") from None
        raise
    finally:
        if outcome.done():
            _idle.append(worker)
    return result
