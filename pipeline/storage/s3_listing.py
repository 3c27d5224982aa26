"""Listings of an S3 bucket with the exact key of every object.

obstore's listing stops at `a//b.jpg` and strips a leading slash, and XML turns a carriage return
into a line feed, unless keys are requested percent-encoded, which obstore can't. botocore requests
them so, but its parser takes ten times the CPU of obstore. So botocore signs, sends and retries the
request; this module takes the entries out of the XML before botocore parses the remainder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import unquote_plus
from xml.sax.saxutils import unescape

from pipeline.storage.entry import Entry, bare_etag

PAGE: Final = 1000
_EVENT: Final = "before-parse.s3.ListObjectsV2"
_CONTENTS: Final = re.compile(rb"<Contents>(.*?)</Contents>", re.DOTALL)
_FIELD: Final = re.compile(rb"<(Key|Size|ETag|LastModified)>([^<]*)</")
_ENCODED: Final = re.compile(rb"<EncodingType>\s*url\s*</EncodingType>")
_NAMED: Final = {"&quot;": '"', "&apos;": "'"}
_NUMBERED: Final = re.compile(r"&#(x[0-9a-fA-F]+|[0-9]+);")
_AMPERSAND: Final = {"&#38;": "&amp;", "&#x26;": "&amp;"}


def list_objects(
    client: Any, bucket: str, prefix: str, settings: Mapping[str, str]
) -> Iterator[Entry]:
    """Every object whose key begins with `prefix`, in the store's order.

    Empty objects that stand for a folder (`a/`) are left out. settings: further parameters of
    ListObjectsV2. Raises what botocore raises.
    """
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE, **settings}
    while True:
        page: list[Entry] = []

        def cut(response_dict: dict[str, Any], page: list[Entry] = page, **_: Any) -> None:
            if response_dict["status_code"] != 200:
                return
            body = response_dict["body"]
            page.extend(_entries(body))
            response_dict["body"] = _CONTENTS.sub(b"", body)

        listener = f"listing-{id(page)}"
        client.meta.events.register(_EVENT, cut, unique_id=listener)
        try:
            answer = client.list_objects_v2(**request)
        finally:
            client.meta.events.unregister(_EVENT, cut, unique_id=listener)
        yield from page
        token = answer.get("NextContinuationToken")
        if not answer.get("IsTruncated") or not token:
            return
        request["ContinuationToken"] = token


def _entries(body: bytes) -> Iterator[Entry]:
    encoded = _ENCODED.search(body) is not None
    for contents in _CONTENTS.findall(body):
        fields = dict(_FIELD.findall(contents))
        key = _text(fields.get(b"Key", b""))
        if encoded and ("%" in key or "+" in key):
            key = unquote_plus(key)
        size = int(fields.get(b"Size", b"0"))
        if key.endswith("/") and not size:
            continue
        modified = fields.get(b"LastModified")
        etag = bare_etag(_text(fields.get(b"ETag", b"")))
        time = datetime.fromisoformat(modified.decode()) if modified else None
        yield Entry(key, size, etag, time)


def _text(raw: bytes) -> str:
    text = raw.decode()
    if "&" not in text:
        return text
    text = _NUMBERED.sub(
        lambda match: (
            _AMPERSAND.get(match[0])
            or chr(int(match[1][1:], 16) if match[1][0] == "x" else int(match[1]))
        ),
        text,
    )
    return unescape(text, _NAMED)
