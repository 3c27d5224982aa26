"""The error budget: failed images by error code and folder, and whether they are too many. Pure.

A job whose images all fail must end early, with one sentence: the error code, the folder that holds
the failed images, their number, and one message of the store.

`over_budget` compares the counts of a finished job. `shown_over` is called after every report of a
running job, where a plain comparison would stop good jobs: an error rate just below the limit
exceeds the limit by chance now and then. So `shown_over` is a test martingale (Ville 1939; Ramdas
et al., Statistical Science 2023): the likelihood ratio of rates above the limit against a rate just
below the limit. At a lower rate, the ratio ever reaches 1 / FALSE_STOP with a probability of at
most FALSE_STOP, however often `shown_over` is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.amounts import counted

FALSE_STOP: Final = 0.001  # the chance that a job below its limit is stopped early, at any length
# Rates as multiples of the limit: the tolerated rate, and the excessive rates with their weights.
# At an error rate of 1.5 limits a long job is stopped; at 3 limits every job is stopped soon.
WITHIN: Final = 0.95
BEYOND: Final = ((1.5, 0.1), (2.3, 0.9))
# No job is stopped before so many images: a short outage at its start must not end it.
FIRST_IMAGES: Final = 200  # or FIRST_EXPECTED / limit, if that is fewer
FIRST_EXPECTED: Final = 6.0


@dataclass(frozen=True)
class Failures:
    """The failed images of one error code: their number, a folder that holds all, one message."""

    count: int
    folder: str
    example: str


ByCode = Mapping[str, Failures]


@dataclass(frozen=True)
class FirstTries:
    """Images that no earlier generation has tried, and those of them that failed."""

    images: int
    failures: ByCode


def failures_of(rows: Iterable[tuple[str | None, str, str | None]]) -> dict[str, Failures]:
    """Failures by error code. rows: (error code or None, URI, message)."""
    by_code: dict[str, Failures] = {}
    for code, uri, message in rows:
        if code is not None:
            failed = Failures(1, uri.rpartition("/")[0], message or "")
            by_code = merged(by_code, {code: failed})
    return by_code


def merged(one: ByCode, other: ByCode) -> dict[str, Failures]:
    """The failures of both: counts added, the common folder, the message of `one`."""
    total = dict(one)
    for code, added in other.items():
        if earlier := total.get(code):
            folder = common_folder(earlier.folder, added.folder)
            added = Failures(earlier.count + added.count, folder, earlier.example)
        total[code] = added
    return total


def common_folder(one: str, other: str) -> str:
    """The deepest folder that holds both: `s3://b/x` of `s3://b/x/1` and `s3://b/x/2/3`."""
    if one == other:
        return one
    pairs = zip(one.split("/"), other.split("/"), strict=False)
    return "/".join(left for left, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def counts(failures: ByCode) -> Counter[str]:
    return Counter({code: failed.count for code, failed in failures.items()})


def exceeds(part: int, whole: int, rate: float) -> bool:
    """True if part / whole is more than `rate`.

    A division is rounded once, as is the literal of a rate: 29 / 100 equals 0.29, but 0.29 * 100 is
    less than 29.
    """
    return part > 0 if not whole else part / whole > rate


def enough_rate(images: int, failed: int) -> float:
    """The smallest --max-error-rate, a multiple of 0.001, that allows `failed` of `images`."""
    return -(-1000 * failed // images) / 1000


def over_budget(images: int, failures: ByCode, max_error_rate: float) -> str | None:
    """The sentence for a job with too many failures; None if `max_error_rate` allows them."""
    by_code = counts(failures)
    failed = by_code.total()
    if not exceeds(failed, images, max_error_rate):
        return None
    kinds = ", ".join(f"{code} {count}" for code, count in by_code.most_common())
    [(code, _)] = by_code.most_common(1)
    return (
        f"{failed:,} of {counted(images, 'image')} failed ({kinds}), more than --max-error-rate "
        f"{max_error_rate:g} allows; {code} under {failures[code].folder or '/'}, such as: "
        f"{failures[code].example}"
    )


def shown_over(images: int, failed: int, limit: float) -> bool:
    """True if the failures so far show an error rate above `limit`; may be called at every image.

    With an error rate of 0.9 limits, fewer than 1 of 1,000 jobs are stopped, of any length; with 3
    limits, 95 of 100 are stopped within 12 / limit images (`test_error_budget.py` counts both).
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
    """The natural logarithm of the likelihood ratio for a rate above `limit`, elementwise.

    limit: above 0 and below 1.
    """
    images, failed = np.asarray(images), np.asarray(failed)
    within = WITHIN * limit
    evidence = np.full(np.broadcast(images, failed).shape, -np.inf)
    for times, weight in BEYOND:
        beyond = min(times * limit, (1 + limit) / 2)
        ratio = failed * np.log(beyond / within)
        ratio = ratio + (images - failed) * np.log((1 - beyond) / (1 - within))
        evidence = np.logaddexp(evidence, np.log(weight) + ratio)
    return evidence
