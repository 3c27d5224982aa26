"""MD5 is judged where the ETag is one, and only there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from pipeline import body
from pipeline.body import Md5Marks, fault
from pipeline.entry import Fetched

GOOD, BAD, OTHER = b"content", b"cOntent", b"coNtent"
MD5 = hashlib.md5(GOOD).hexdigest()
KMS = "0123456789abcdef0123456789abcdef"  # looks like an MD5 and is none


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    body._other_etags.clear()


def judged(data: bytes, etag: str, marks: Md5Marks) -> str | None:
    found = fault(Fetched(data, etag), len(GOOD), etag, marks)
    return found and found[0]


def test_a_flipped_byte_is_found_by_the_md5() -> None:
    marks = Md5Marks("s3://b/x.jpg")
    assert judged(BAD, MD5, marks) == "unavailable"
    assert judged(OTHER, MD5, marks) == "unavailable"
    assert judged(GOOD, MD5, marks) is None


@pytest.mark.parametrize("etag", [MD5 + "-3", "W/whatever", "0x8DC0FFEE"])
def test_an_etag_that_can_t_be_an_md5_is_not_judged(etag: str) -> None:
    assert judged(BAD, etag, Md5Marks("s3://b/x.jpg")) is None


def test_an_etag_of_an_encrypted_object_is_taken_after_a_second_equal_body() -> None:
    marks = Md5Marks("s3://kms/x.jpg")
    assert judged(GOOD, KMS, marks) == "unavailable"
    assert judged(GOOD, KMS, marks) is None


def test_an_encrypted_bucket_costs_a_second_get_for_its_first_images_only() -> None:
    gets = []
    for number in range(10):
        marks, tries = Md5Marks(f"s3://kms/{number}.jpg"), 1
        while judged(GOOD, KMS, marks):
            tries += 1
        gets.append(tries)
    assert gets == [2, 2, 2, *[1] * 7]
    assert judged(BAD, MD5, Md5Marks("s3://other/x.jpg")) == "unavailable"
