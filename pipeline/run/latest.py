"""The content of `latest.json`: the published snapshot or run folder, with its history. Pure.

`latest.json` names a snapshot in a run folder, and a run folder in a folder of nights. `previous`
lists what was published before, oldest first; `withdrawn` what a rollback withdrew and no job may
publish again by itself. Pointer and history are one object, so that one atomic write changes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REMEMBERED: Final = 100


def forward(pointer: Mapping[str, Any] | None, key: str, value: Any) -> dict[str, Any]:
    """The content after publishing `value`. key: "snapshot" or "run"; pointer: None if absent."""
    if pointer is None:
        return {key: value}
    if pointer[key] == value:
        return dict(pointer)
    previous = [entry for entry in pointer.get("previous", ()) if entry != value]
    withdrawn = [entry for entry in pointer.get("withdrawn", ()) if entry != value]
    return _pointer(key, value, [*previous, pointer[key]], withdrawn)


def back(pointer: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The content after a rollback to the last entry of `previous`; None if that list is empty."""
    previous = list(pointer.get("previous", ()))
    if not previous:
        return None
    withdrawn = [*pointer.get("withdrawn", ()), pointer[key]]
    return _pointer(key, previous[-1], previous[:-1], withdrawn)


def instead(pointer: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The content after a rollback to `value`, which may be any snapshot or run folder."""
    withdrawn = [*pointer.get("withdrawn", ()), pointer[key]]
    previous = [entry for entry in pointer.get("previous", ()) if entry != value]
    return _pointer(key, value, previous, [entry for entry in withdrawn if entry != value])


def _pointer(key: str, value: Any, previous: list[Any], withdrawn: list[Any]) -> dict[str, Any]:
    history = {"previous": previous[-REMEMBERED:], "withdrawn": withdrawn[-REMEMBERED:]}
    return {key: value, **{name: entries for name, entries in history.items() if entries}}
