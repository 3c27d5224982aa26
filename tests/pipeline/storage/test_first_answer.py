"""A store behind fsspec that gives no answer ends a command in time; others may take theirs."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.errors import EXIT_TRY_AGAIN, UserError
from pipeline.planning.source import Source
from pipeline.storage import first_answer
from pipeline.storage.first_answer import within
from pipeline.storage.storage import Storage

LIMIT = 0.2  # seconds
FOREVER = threading.Event()  # is set when a test ends, so that no thread stays


class Silent(MemoryFileSystem):
    """A store that answers no request, as behind a firewall that drops them."""

    protocol = "silent"

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        FOREVER.wait(30)
        raise FileNotFoundError(path)


class Searching(MemoryFileSystem):
    """A client that looks for credentials where nobody answers."""

    protocol = "searching"

    def __init__(self, **options: Any) -> None:
        FOREVER.wait(30)
        super().__init__(**options)


class Slow(MemoryFileSystem):
    """A store that answers at once, and lists a folder for longer than the limit."""

    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("slow://", "memory://", 1))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        time.sleep(2 * LIMIT)
        return super().ls(path, detail=detail, **options)


for kind in (Silent, Searching, Slow):
    fsspec.register_implementation(str(kind.protocol), kind, clobber=True)


@pytest.fixture(autouse=True)
def _short_limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(first_answer, "SECONDS", LIMIT)
    FOREVER.clear()
    yield
    FOREVER.set()


@pytest.mark.parametrize("scheme", ["silent", "searching"])
def test_a_source_that_never_answers_is_a_sentence_in_time(scheme: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        list(Source(f"{scheme}://bucket/photos").tables())
    assert time.monotonic() - began < 10
    assert caught.value.exit_code == EXIT_TRY_AGAIN
    assert re.search(r"no answer in 0\.\d+ seconds \(timeout: check the network", str(caught.value))
    assert f"{scheme}://bucket/photos" in str(caught.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: folder.objects.look("bucket/run.json"),
        lambda folder: folder.info("run.json"),
        lambda folder: folder.open("run.json"),
    ],
)
def test_no_request_waits_for_a_store_that_never_answers(ask: Callable[[Storage], object]) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer"):
        ask(Storage("silent://bucket"))
    assert time.monotonic() - began < 10


def test_a_store_that_has_answered_may_take_its_time() -> None:
    MemoryFileSystem().pipe_file("/slow-bucket/a.jpg", b"x")
    assert [entry.path for entry in Storage("slow://slow-bucket").list()] == ["a.jpg"]


def test_one_client_serves_all_folders_of_a_store() -> None:
    folders = [Storage(f"memory://bucket/{name}") for name in ("a", "b", "a/c")]
    assert len({id(folder.fsspec) for folder in folders}) == 1


def test_what_a_request_raises_is_raised() -> None:
    def own() -> None:
        raise TimeoutError("of the client")

    with pytest.raises(TimeoutError, match="of the client"):
        within(9.0, own)
    assert within(9.0, lambda: 7) == 7
