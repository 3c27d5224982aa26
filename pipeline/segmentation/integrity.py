"""The integrity check: a fetched body against the length, the ETag and the MD5 of its listing.

An S3 client notices only a body that is shorter than its Content-Length. Flipped bytes, and a body
that a proxy cut and counted again, pass the client. The ETag of a plain S3 object is the MD5 of its
content. The ETag of an object encrypted with KMS has the same form but is no MD5, and some stores
use no MD5 at all. A body with another MD5 is accepted in two cases only: the store says that the
object is encrypted with KMS; or no ETag in the bucket has matched an MD5 yet, and SEVERAL objects
are encrypted with KMS or gave the same wrong MD5 twice. One object with the same wrong MD5 twice is
no proof: a damaged disk or cache gives the same wrong bytes each time.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from pipeline.storage.entry import Fetched

_MD5: Final = re.compile(r"[0-9a-f]{32}")
SEVERAL: Final = 3


@dataclass
class BucketDigests:
    """Whether the ETags of a bucket are MD5s, as far as this process has seen."""

    one_was_md5: bool = False
    encrypted: set[str] = field(default_factory=set)  # URIs, SEVERAL at most
    disagreed: set[str] = field(default_factory=set)  # URIs that gave one wrong MD5 twice

    @property
    def has_no_md5s(self) -> bool:
        several = max(len(self.encrypted), len(self.disagreed)) >= SEVERAL
        return several and not self.one_was_md5


_buckets: defaultdict[str, BucketDigests] = defaultdict(BucketDigests)


@dataclass
class Md5Check:
    """The MD5 check of one image, over all tries to fetch the image."""

    uri: str
    encrypted: bool | None = None  # with KMS: the ETag is no MD5; None: the store was not asked
    seen: set[str] = field(default_factory=set)  # MD5s of bodies that differ from the ETag

    @property
    def must_ask(self) -> bool:
        return bool(self.seen) and self.encrypted is None

    def differs(self, data: bytes, etag: str) -> str | None:
        """The error message if the MD5 of `data` should be `etag` and is not; else None."""
        if not _MD5.fullmatch(etag):
            return None
        bucket = _buckets[self.uri[: self.uri.find("/", self.uri.find("://") + 3)]]
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if digest == etag:
            bucket.one_was_md5 = True
            return None
        if self.encrypted:
            _note(bucket.encrypted, self.uri)
            return None
        is_repeated = digest in self.seen
        self.seen.add(digest)
        if is_repeated:
            _note(bucket.disagreed, self.uri)
        if bucket.has_no_md5s:
            return None
        where = "where it is kept, the same each time" if is_repeated else "on its way"
        return f"body was damaged {where}: its MD5 is {digest}, should be {etag}"


def _note(uris: set[str], uri: str) -> None:
    if len(uris) < SEVERAL:
        uris.add(uri)


def fault(
    fetched: Fetched, size: int | None, etag: str | None, md5_check: Md5Check
) -> tuple[str, str] | None:
    """Error code and message of a body that is not the listed object; None if the body is right.

    size: bytes in the listing, etag: ETag in the listing; None: the listing has none, no check.
    """
    data, now = fetched.data, fetched.etag
    if etag and now and now != etag:
        return "changed", f"ETag is {now}, was {etag} when listed"
    if size is not None and len(data) != size:
        if etag and now:
            return "unavailable", f"body has {len(data)} bytes of {size}"
        return "changed", f"file has {len(data)} bytes, had {size} when listed"
    expected = now or etag
    damage = md5_check.differs(data, expected) if expected else None
    return ("unavailable", damage) if damage else None
