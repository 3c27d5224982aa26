"""Is a body the object that was listed? Its length, its ETag and, where that is one, its MD5.

Clients notice a body that is shorter than its own header says, and nothing else: a byte that
flipped on the way, or an answer cut short by a proxy that then counted it, arrives as if all were
well. The ETag of a plain S3 object is the MD5 of its content. That of an object encrypted with KMS
looks the same and isn't, and some stores make up all of theirs. A body that disagrees, even the
same way each time, proves nothing of that: a cache or a disk damages it alike for everybody. So it
is taken only if the store says that the object is encrypted so, or if no ETag of the bucket has
been an MD5 yet and several objects disagree, each the same way each time.
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
    """What this process has seen of a bucket's ETags."""

    one_was_md5: bool = False
    encrypted: set[str] = field(default_factory=set)  # URIs, SEVERAL at most
    disagreed: set[str] = field(default_factory=set)  # the same way each time; SEVERAL at most

    @property
    def has_no_md5s(self) -> bool:
        several = max(len(self.encrypted), len(self.disagreed)) >= SEVERAL
        return several and not self.one_was_md5


_buckets: defaultdict[str, BucketDigests] = defaultdict(BucketDigests)


@dataclass
class Md5Check:
    """The MD5s of one image's bodies so far that its ETag disagrees with."""

    uri: str
    encrypted: bool | None = None  # so that its ETag is no MD5; None until the store was asked
    seen: set[str] = field(default_factory=set)

    @property
    def must_ask(self) -> bool:
        return bool(self.seen) and self.encrypted is None

    def differs(self, data: bytes, etag: str) -> str | None:
        """What is wrong with a body whose MD5 should be `etag` and isn't."""
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
        again = digest in self.seen
        self.seen.add(digest)
        if again:
            _note(bucket.disagreed, self.uri)
        if bucket.has_no_md5s:
            return None
        where = "where it is kept, the same each time" if again else "on its way"
        return f"body was damaged {where}: its MD5 is {digest}, should be {etag}"


def _note(uris: set[str], uri: str) -> None:
    if len(uris) < SEVERAL:
        uris.add(uri)


def fault(
    fetched: Fetched, size: int | None, etag: str | None, md5_check: Md5Check | None = None
) -> tuple[str, str] | None:
    """Error code and message of a body that isn't the listed object; None for one that is.

    size and etag are the listing's, None where it had none; md5_check: without it MD5 isn't judged.
    """
    data, now = fetched.data, fetched.etag
    if etag and now and now != etag:
        return "changed", f"ETag is {now}, was {etag} when listed"
    if size is not None and len(data) != size:
        if etag and now:
            return "unavailable", f"body has {len(data)} bytes of {size}"
        return "changed", f"file has {len(data)} bytes, had {size} when listed"
    expected = now or etag
    damage = md5_check.differs(data, expected) if md5_check and expected else None
    return ("unavailable", damage) if damage else None
