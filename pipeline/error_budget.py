"""The error budget: how many images failed, of which error, under which folder. Pure.

A job that fails everywhere must end early and say why in one sentence: the code, the folder that
holds the failed images, how many they are, and one of the store's own messages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

BUDGET_AFTER_IMAGES: Final = 200  # below it, one bad folder would stop a good job


@dataclass(frozen=True)
class Failures:
    """Images that failed with one code: how many, the folder that holds them all, one message."""

    count: int
    folder: str
    example: str


ByCode = Mapping[str, Failures]


def failures_of(rows: Iterable[tuple[str | None, str, str | None]]) -> dict[str, Failures]:
    """Failures by code of (error code or None, URI, message) rows."""
    found: dict[str, Failures] = {}
    for code, uri, message in rows:
        if code is None:
            continue
        folder = uri.rpartition("/")[0]
        before = found.get(code)
        if before is None:
            found[code] = Failures(1, folder, message or "")
        else:
            same = before.folder == folder
            shared = folder if same else common_folder(before.folder, folder)
            found[code] = Failures(before.count + 1, shared, before.example)
    return found


def merged(one: ByCode, other: ByCode) -> dict[str, Failures]:
    """Both together."""
    total = dict(one)
    for code, more in other.items():
        before = total.get(code)
        if before is None:
            total[code] = more
        else:
            folder = common_folder(before.folder, more.folder)
            total[code] = Failures(before.count + more.count, folder, before.example)
    return total


def common_folder(one: str, other: str) -> str:
    """The deepest folder that holds both: `s3://b/x` of `s3://b/x/1` and `s3://b/x/2/3`."""
    if one == other:
        return one
    shared: list[str] = []
    for left, right in zip(one.split("/"), other.split("/"), strict=False):
        if left != right:
            break
        shared.append(left)
    return "/".join(shared)


def counts(failures: ByCode) -> Counter[str]:
    return Counter({code: found.count for code, found in failures.items()})


def enough_rate(images: int, failed: int) -> float:
    """The smallest error rate, in thousandths, that allows so many."""
    return math.ceil(1000 * failed / images) / 1000


def over_budget(images: int, failures: ByCode, max_error_rate: float) -> str | None:
    """Why so many errors are too many, or None where they aren't."""
    by_code = counts(failures)
    failed = by_code.total()
    if not images or failed <= max_error_rate * images:
        return None
    kinds = ", ".join(f"{code} {count}" for code, count in by_code.most_common())
    worst = failures[by_code.most_common(1)[0][0]]
    return (
        f"{failed} of {images} images failed ({kinds}), more than --max-error-rate "
        f"{max_error_rate:g} allows; {by_code.most_common(1)[0][0]} under {worst.folder or '/'}, "
        f"such as: {worst.example}"
    )
