"""Is a body the object that was listed? Its length, its ETag and, where that is one, its MD5.

Clients notice a body that is shorter than its own header says, and nothing else: a byte that
flipped on the way, or an answer cut short by a proxy that then counted it, arrives as if all were
well. The ETag of a plain S3 object is the MD5 of its content. That of an object encrypted with KMS
looks the same and isn't: so a mismatch is fetched again, and a second body with the very same MD5
proves that the ETag is none. A bucket in which that was seen a few times is not asked any more.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from pipeline.entry import Fetched

_MD5: Final = re.compile(r"[0-9a-f]{32}")
ENOUGH_PROOFS: Final = 3

# In this process, by bucket: ETags that were no MD5 of the content, less those that were.
_other_etags: Counter[str] = Counter()


@dataclass
class Md5Marks:
    """The MD5s of one image's bodies so far."""

    uri: str
    seen: set[str] = field(default_factory=set)

    @property
    def bucket(self) -> str:
        return self.uri[: self.uri.find("/", self.uri.find("://") + 3)]

    def differs(self, data: bytes, etag: str) -> str | None:
        """The body's MD5 if it should be `etag` and isn't."""
        if not _MD5.fullmatch(etag) or _other_etags[self.bucket] >= ENOUGH_PROOFS:
            return None
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if digest == etag:
            if _other_etags[self.bucket]:
                _other_etags[self.bucket] = 0
            return None
        if digest in self.seen:  # two bodies are not damaged alike: the ETag is no MD5
            _other_etags[self.bucket] += 1
            return None
        self.seen.add(digest)
        return digest


def fault(
    fetched: Fetched, size: int | None, etag: str | None, marks: Md5Marks | None = None
) -> tuple[str, str] | None:
    """Error code and message of a body that isn't the listed object; None for one that is.

    size and etag are the listing's, None where it had none; marks: without it MD5 isn't judged.
    """
    data, now = fetched.data, fetched.etag
    if etag and now and now != etag:
        return "changed", f"ETag is {now}, was {etag} when listed"
    if size is not None and len(data) != size:
        if etag and now:
            return "unavailable", f"body has {len(data)} bytes of {size}"
        return "changed", f"file has {len(data)} bytes, had {size} when listed"
    digest = marks.differs(data, now) if marks and now else None
    if digest is not None:
        return "unavailable", f"body was damaged on its way: its MD5 is {digest}, should be {now}"
    return None
