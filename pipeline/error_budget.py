"""The error budget: how many images failed, of which error, under which folder. Pure.

A job that fails everywhere must end early and say why in one sentence: the code, the folder that
holds the failed images, how many they are, and one of the store's own messages.

Two questions, two answers. `over_budget` compares the counts of a whole job. `shown_over` is asked
again and again while a job runs, and says yes only when that is shown: a plain comparison at every
report would stop good jobs, since a rate just below the limit passes it by chance now and then. It
is a test martingale (Ville 1939; Ramdas et al., Statistical Science 2023): the likelihood ratio of
rates above the limit against one just below it. Whatever the number of looks, its chance of ever
reaching 1 / FALSE_STOP at a lower rate is FALSE_STOP at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.amounts import counted

FALSE_STOP: Final = 0.001  # the chance that a job below its limit is stopped early, at any length
# In parts of the limit: the rate that the evidence speaks against, then the rates that it speaks
# for, with weights. At 1.5 times the limit a long job is stopped, at 3 times any job soon.
WITHIN: Final = 0.95
BEYOND: Final = ((1.5, 0.1), (2.3, 0.9))
# Never stopped sooner: a short outage when a job starts must not end it.
FIRST_IMAGES: Final = 200  # or FIRST_EXPECTED / limit, where that is sooner
FIRST_EXPECTED: Final = 6.0


@dataclass(frozen=True)
class Failures:
    """Images that failed with one code: how many, the folder that holds them all, one message."""

    count: int
    folder: str
    example: str


ByCode = Mapping[str, Failures]


@dataclass(frozen=True)
class FirstTries:
    """Images that the budget counts, and those of them that failed."""

    images: int
    failures: ByCode


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


def exceeds(part: int, whole: int, rate: float) -> bool:
    """True if `part` of `whole` is more than `rate` allows.

    By division, which is rounded once, as a rate was when it was read: 29 of 100 is 0.29, where
    0.29 * 100 is less than 29.
    """
    return part > 0 if not whole else part / whole > rate


def enough_rate(images: int, failed: int) -> float:
    """The smallest error rate, in thousandths, that allows so many."""
    return -(-1000 * failed // images) / 1000


def over_budget(images: int, failures: ByCode, max_error_rate: float) -> str | None:
    """Why so many errors are too many, or None where they aren't."""
    by_code = counts(failures)
    failed = by_code.total()
    if not exceeds(failed, images, max_error_rate):
        return None
    kinds = ", ".join(f"{code} {count}" for code, count in by_code.most_common())
    worst = failures[by_code.most_common(1)[0][0]]
    return (
        f"{failed:,} of {counted(images, 'image')} failed ({kinds}), more than --max-error-rate "
        f"{max_error_rate:g} allows; {by_code.most_common(1)[0][0]} under {worst.folder or '/'}, "
        f"such as: {worst.example}"
    )


def shown_over(images: int, failed: int, limit: float) -> bool:
    """True once so many failures show a rate above the limit; may be asked after every image.

    At 0.9 times the limit a job is stopped in fewer than 1 of 1,000 runs, however long it is; at 3
    times in 95 of 100 within 12 / limit images (`test_error_budget.py` counts both).
    """
    if not exceeds(failed, images, limit):
        return False
    if limit == 0:
        return True
    enough = images >= min(FIRST_IMAGES, FIRST_EXPECTED / limit)
    return enough and bool(log_evidence(images, failed, limit) >= -np.log(FALSE_STOP))


def log_evidence(
    images: NDArray[np.int64] | int, failed: NDArray[np.int64] | int, limit: float
) -> NDArray[np.float64]:
    """The logarithm of the evidence for a rate above `limit` (above 0, below 1), elementwise."""
    images, failed = np.asarray(images), np.asarray(failed)
    within = WITHIN * limit
    evidence = np.full(np.broadcast(images, failed).shape, -np.inf)
    for times, weight in BEYOND:
        beyond = min(times * limit, (1 + limit) / 2)
        ratio = failed * np.log(beyond / within)
        ratio = ratio + (images - failed) * np.log((1 - beyond) / (1 - within))
        evidence = np.logaddexp(evidence, np.log(weight) + ratio)
    return evidence
