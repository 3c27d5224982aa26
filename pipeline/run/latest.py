"""`latest.json`: the one object that moves, and what it named before. Pure.

In a run folder it names a snapshot, in a folder of nights a run folder. It carries its own history,
so that a move and the record of it are one atomic write: `previous` is what was published before,
oldest first, `withdrawn` what a rollback took back and no job may publish again by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REMEMBERED: Final = 100


def forward(pointer: Mapping[str, Any] | None, key: str, value: Any) -> dict[str, Any]:
    """The pointer after publishing `value`."""
    if pointer is None:
        return {key: value}
    if pointer[key] == value:
        return dict(pointer)
    previous = [own for own in pointer.get("previous", ()) if own != value]
    withdrawn = [own for own in pointer.get("withdrawn", ()) if own != value]
    return _pointer(key, value, [*previous, pointer[key]], withdrawn)


def back(pointer: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The pointer after the last snapshot is withdrawn; None where there is none before."""
    previous = list(pointer.get("previous", ()))
    if not previous:
        return None
    withdrawn = [*pointer.get("withdrawn", ()), pointer[key]]
    return _pointer(key, previous[-1], previous[:-1], withdrawn)


def instead(pointer: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The pointer after the last snapshot is withdrawn for `value`, whatever that was."""
    withdrawn = [*pointer.get("withdrawn", ()), pointer[key]]
    previous = [own for own in pointer.get("previous", ()) if own != value]
    return _pointer(key, value, previous, [own for own in withdrawn if own != value])


def _pointer(key: str, value: Any, previous: list[Any], withdrawn: list[Any]) -> dict[str, Any]:
    history = {"previous": previous[-REMEMBERED:], "withdrawn": withdrawn[-REMEMBERED:]}
    return {key: value, **{name: own for name, own in history.items() if own}}
