"""The corpus of small pictures, sound and damaged: the right pixels or code, no crash, no hang."""

from __future__ import annotations

import re
import resource
import time
import warnings
from collections.abc import Iterable
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detr.inference.decode import ImageError, decode_image, header_size
from tests.image_corpus import Picture, corpus, damaged

CODES = {"empty", "truncated", "corrupt", "not_an_image", "unsupported", "too_large", "too_slow"}
MAX_PIXELS = 1_000_000
SECONDS = 12.0
GROWTH = 400_000_000  # bytes: a picture of a million pixels at its widest is 8 MB, caches are more

pytestmark = pytest.mark.filterwarnings("ignore")  # PIL warns of odd tags


@pytest.mark.parametrize("entry", corpus(), ids=lambda entry: entry.name)
def test_a_sound_file_gives_its_pixels_or_its_code(entry: Picture) -> None:
    if isinstance(entry.expected, str):
        with pytest.raises(ImageError) as caught:
            decode_image(entry.data)
        assert caught.value.code == entry.expected
    else:
        np.testing.assert_array_equal(decode_image(entry.data), entry.expected)
        assert header_size(entry.data) == entry.expected.shape[:2]


def outcome(data: bytes) -> str:
    """ "picture" or the code; fails if it takes too long or gives anything else."""
    started = time.monotonic()
    result = "picture"
    try:
        image = decode_image(data, max_pixels=MAX_PIXELS)
    except ImageError as error:
        result = error.code
    else:
        assert image.dtype == np.uint8
        assert image.shape == (*header_size(data, max_pixels=MAX_PIXELS), 3)
    assert result in CODES | {"picture"}
    assert time.monotonic() - started < SECONDS
    return result


def check(variants: Iterable[tuple[Picture, str, bytes]]) -> int:
    """Every variant has one outcome that its damage allows; returns how many there were."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0
    for entry, damage, data in variants:
        count += 1
        found = outcome(data)
        format = entry.name.partition("-")[0]
        if not data:
            assert found == "empty"
        elif isinstance(entry.expected, str):
            assert found != "picture" or damage.startswith("bit"), (entry.name, damage)
        elif format == "png" and found == "picture":
            # Checksums guard the pixels: what passes shows what was there.
            if "orientation" not in entry.name:
                np.testing.assert_array_equal(decode_image(data), entry.expected, entry.name)
        elif format in ("jpeg", "png", "gif", "webp", "avif") and damage.startswith("cut"):
            junk = ("junk", "comment", "other-bytes")  # the cut may be in there
            if "animated" in entry.name and found == "picture":  # its first frame is whole
                np.testing.assert_array_equal(decode_image(data), entry.expected, entry.name)
            elif not any(word in entry.name for word in junk):
                assert found in ("truncated", "not_an_image"), (entry.name, damage)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < GROWTH
    return count


def variants() -> Iterable[tuple[Picture, str, bytes]]:
    return ((entry, damage, data) for entry in corpus() for damage, data in damaged(entry))


def test_five_hundred_damaged_files() -> None:
    step = 110 * len(corpus()) // 500
    assert check(islice(variants(), 0, None, step)) >= 500


@pytest.mark.slow(seconds=120)
def test_all_damaged_files() -> None:
    assert check(variants()) >= 22_000


SEEDS = [entry.data for entry in corpus() if len(entry.data) < 4_000]
SPLICES = st.tuples(
    st.sampled_from(SEEDS),
    st.lists(
        st.tuples(st.integers(0, 4_000), st.integers(0, 40), st.binary(max_size=40)), max_size=4
    ),
    st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]),
)


def spliced(drawn: tuple[bytes, list[tuple[int, int, bytes]], bytes]) -> bytes:
    """A file of the corpus with pieces replaced, or other bytes behind a format's signature."""
    data, pieces, head = drawn
    for at, length, piece in pieces:
        data = data[:at] + piece + data[at + length :]
    return head + data[len(head) :]


fuzz = given(SPLICES.map(spliced) | st.binary(max_size=200))
relaxed = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=250, **relaxed)
@fuzz
def test_any_bytes_have_one_outcome(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(data)


@pytest.mark.slow(seconds=200)
def test_twenty_thousand_tries_find_no_crash_hang_or_growth() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=20_000, **relaxed)
    @fuzz
    def tries(data: bytes) -> None:
        assert outcome(data)

    tries()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < GROWTH


def test_the_docs_say_how_many_files_there_are() -> None:
    page = Path("docs/inputs.md").read_text()
    stated = re.search(r"(\d+)\s+made\s+pictures\s+with\s+(\d+)\s+damaged\s+copies", page)
    assert stated is not None
    assert [*map(int, stated.groups())] == [len(corpus()), len(list(damaged(corpus()[0])))]


def test_the_corpus_is_broad() -> None:
    kinds = {entry.name.partition("-")[0] for entry in corpus()}
    assert {"jpeg", "png", "gif", "webp", "bmp", "tiff", "avif", "jp2", "j2k", "ppm"} <= kinds
    assert len(corpus()) >= 200
    assert len(set(product([entry.data for entry in corpus() if entry.data], [0]))) >= 195
