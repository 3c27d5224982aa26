"""A body is the object that was listed; MD5 is judged where the ETag is one, and only there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from pipeline.segmentation import integrity
from pipeline.segmentation.integrity import Md5Check, fault
from pipeline.storage.entry import Fetched

GOOD, BAD, OTHER = b"content", b"cOntent", b"coNtent"
MD5 = hashlib.md5(GOOD).hexdigest()
KMS = "0123456789abcdef0123456789abcdef"  # looks like an MD5 and is none


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    integrity._buckets.clear()


@pytest.mark.parametrize(
    ("fetched", "size", "etag", "code"),
    [
        (Fetched(b"abc", "e"), 3, "e", None),
        (Fetched(b"abc", None), 3, None, None),
        (Fetched(b"abc", None), None, None, None),
        (Fetched(b"abc", "new"), 3, "old", "changed"),
        (Fetched(b"ab", "e"), 3, "e", "unavailable"),
        (Fetched(b"abcd", None), 3, None, "changed"),
    ],
)
def test_a_body_is_compared_with_its_listing(
    fetched: Fetched, size: int | None, etag: str | None, code: str | None
) -> None:
    found = fault(fetched, size, etag, Md5Check("s3://b/x.jpg"))
    assert (found and found[0]) == code


def judged(data: bytes, etag: str, marks: Md5Check) -> str | None:
    found = fault(Fetched(data, etag), len(GOOD), etag, marks)
    return found and found[0]


def test_a_flipped_byte_is_found_by_the_md5() -> None:
    marks = Md5Check("s3://b/x.jpg")
    assert judged(BAD, MD5, marks) == "unavailable"
    assert judged(OTHER, MD5, marks) == "unavailable"
    assert judged(GOOD, MD5, marks) is None


@pytest.mark.parametrize("etag", [MD5 + "-3", "W/whatever", "0x8DC0FFEE"])
def test_an_etag_that_can_t_be_an_md5_is_not_judged(etag: str) -> None:
    assert judged(BAD, etag, Md5Check("s3://b/x.jpg")) is None


def test_a_body_that_is_damaged_the_same_way_each_time_is_never_taken() -> None:
    alone = Md5Check("s3://alone/x.jpg", encrypted=False)
    assert [judged(BAD, MD5, alone) for _ in range(30)] == ["unavailable"] * 30
    assert judged(GOOD, MD5, Md5Check("s3://b/good.jpg")) is None
    for number in range(9):
        marks = Md5Check(f"s3://b/{number}.jpg", encrypted=False)
        assert [judged(BAD, MD5, marks) for _ in range(3)] == ["unavailable"] * 3


def test_an_etag_that_the_store_says_is_none_is_not_judged() -> None:
    marks = Md5Check("s3://kms/x.jpg")
    assert judged(GOOD, KMS, marks) == "unavailable"
    assert marks.must_ask
    marks.encrypted = True
    assert judged(GOOD, KMS, marks) is None


def test_an_encrypted_bucket_is_asked_of_its_first_images_only() -> None:
    gets = []
    for number in range(10):
        marks, tries = Md5Check(f"s3://kms/{number}.jpg"), 1
        while judged(GOOD, KMS, marks):
            marks.encrypted = True
            tries += 1
        gets.append(tries)
    assert gets == [2, 2, 2, *[1] * 7]
    assert judged(BAD, MD5, Md5Check("s3://other/x.jpg")) == "unavailable"


def test_where_one_object_is_plain_each_encrypted_one_is_asked_of() -> None:
    for number in range(5):
        marks = Md5Check(f"s3://kms/{number}.jpg", encrypted=True)
        assert judged(GOOD, KMS, marks) is None
    assert judged(GOOD, KMS, Md5Check("s3://kms/5.jpg")) is None
    assert judged(GOOD, MD5, Md5Check("s3://kms/plain.jpg")) is None
    assert judged(GOOD, KMS, Md5Check("s3://kms/6.jpg")) == "unavailable"
    assert judged(BAD, MD5, Md5Check("s3://kms/other.jpg")) == "unavailable"


def test_a_store_of_made_up_etags_is_known_by_several_objects_that_disagree_steadily() -> None:
    images = [Md5Check(f"s3://odd/{number}.jpg", encrypted=False) for number in range(5)]
    assert [judged(GOOD, KMS, marks) for marks in images] == ["unavailable"] * 5
    assert [judged(GOOD, KMS, marks) for marks in images] == ["unavailable"] * 2 + [None] * 3
    assert [judged(GOOD, KMS, marks) for marks in images] == [None] * 5


def test_the_listed_etag_counts_where_the_answer_has_none() -> None:
    found = fault(Fetched(BAD, None), len(BAD), MD5, Md5Check("s3://b/x.jpg"))
    assert found is not None
    assert found[0] == "unavailable"
    assert fault(Fetched(GOOD, None), len(GOOD), MD5, Md5Check("s3://b/x.jpg")) is None
