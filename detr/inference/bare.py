"""Copies of PNG, JPEG and GIF files without the metadata ("extras") that PIL can't parse.

libpng and libjpeg skip a comment that is too long, a damaged colour profile or garbage between two
segments, and browsers show the picture; PIL refuses the whole file. Then PIL reads a copy without
those extras. A file that PIL reads is not copied.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from itertools import islice
from typing import Final, NamedTuple

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MOST_PARTS: Final = 20_000  # of a header; real headers have tens; PIL takes microseconds for each
MOST_EXTRAS: Final = 200  # PIL tries each alone; if there are more, none is kept
GIF_EXTRA_BYTES: Final = 1 << 20  # PIL joins a comment's blocks in quadratic time
TAG_SHARE: Final = 4  # times the file's size, for all tags; in a sound file tags share no bytes
TAG_BYTES: Final = 16 << 20

_CRITICAL: Final = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_MARKER: Final = re.compile(rb"\xff([\x01-\xfe])")  # not \xff+: a long run would cost its square
_TIFF_START: Final = re.compile(rb"II\*\0|MM\0\*")
_STANDALONE: Final = (0x01, *range(0xD0, 0xD8))
_EXIF: Final = 0xE1
_SCAN: Final = 0xDA
_END: Final = 0xD9
# Tables, frame headers and restart intervals: without these there are no pixels.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) | {0xDB, 0xDC, 0xDD, 0xDE, 0xDF, _SCAN}
# Progressive frames, and restart intervals: a decoder skips anything before a restart marker.
_RESUMED: Final = frozenset((0xC2, 0xC6, 0xCA, 0xCE, 0xDD))
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by PNG's colour type

# Bytes of one value, by TIFF's type number; others have 1.
_TAG_BYTES: Final = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

Accepts = Callable[[bytes], bool]


class Piece(NamedTuple):
    """A chunk of a PNG or a segment of a JPEG: data[start:end]."""

    kind: bytes
    start: int
    end: int


def bare(data: bytes, name: str, accepts: Accepts) -> bytes | None:
    """A copy of `data`, of PIL's format `name`, with only those extras that PIL can read.

    `accepts(file)`: whether PIL reads the file's header; called for each extra. Returns None if
    nothing would be left out, or if the file is too damaged.
    """
    match name:
        case "PNG":
            copy = _bare_png(data, accepts)
        case "JPEG":
            copy = _bare_jpeg(data, accepts)
        case "GIF":
            copy = bare_gif(data)
        case _:
            return None
    return None if copy is None or copy == data else copy


def png_parts(data: bytes, most: int | None = None) -> list[Piece]:
    """The complete chunks of a PNG in order, at most `most`."""
    parts: list[Piece] = []
    start = len(SIGNATURE)
    while start + 12 <= len(data) and len(parts) != most:
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        parts.append(Piece(data[start + 4 : start + 8], start, end))
        if parts[-1].kind == b"IEND":
            break
        start = end
    return parts


def jpeg_parts(data: bytes, most: int | None = None) -> list[Piece]:
    """A JPEG's segments, to the first scan's header inclusive, at most `most`; garbage skipped."""
    parts: list[Piece] = []
    at = 2
    while len(parts) != most and (marker := _MARKER.search(data, at)):
        kind, start = marker[1], marker.end() - 2
        if kind[0] in _STANDALONE:
            at = marker.end()
            continue
        if kind[0] == _END or marker.end() + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, marker.end())
        at = marker.end() + length
        if length < 2 or at > len(data):
            break
        parts.append(Piece(kind, start, at))
        if kind[0] == _SCAN:
            break
    return parts


def header_is_endless(data: bytes, name: str) -> bool:
    """Whether PIL would take seconds for the parts of the file before the pixels."""
    match name:
        case "PNG":
            parts = png_parts(data, MOST_PARTS)
            return len(parts) == MOST_PARTS and all(part.kind != b"IDAT" for part in parts)
        case "JPEG":
            parts = jpeg_parts(data, MOST_PARTS)
            # PIL walks through fill bytes one by one. Every run of MOST_PARTS of them holds three
            # successive samples, taken MOST_PARTS // 4 bytes apart: only then the run is searched.
            few = data[: 64 * MOST_PARTS : MOST_PARTS // 4]
            fill = b"\xff" * MOST_PARTS
            filled = b"\xff\xff\xff" in few and data.find(fill, 0, 64 * MOST_PARTS) >= 0
            return len(parts) == MOST_PARTS or filled or repeats_its_tags(_exif(data, parts))
        case "GIF":
            return _gif_extra_bytes(data) > GIF_EXTRA_BYTES
        case "TIFF":
            return repeats_its_tags(data)
        case "AVIF":
            starts = (tiff.start() for tiff in islice(_TIFF_START.finditer(data), MOST_EXTRAS))
            return any(repeats_its_tags(data[start:]) for start in starts)
        case _:
            return False


def repeats_its_tags(data: bytes) -> bool:
    """Whether the tags of a TIFF or of EXIF refer to many times the bytes of the file.

    PIL copies the bytes of each tag, and tags may refer to the same bytes: 64 KB of EXIF could take
    300 MB, and 10 MB of TIFF more memory than any machine has.
    """
    if data[:2] not in (b"II", b"MM"):
        return False
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count, start, entry = ("Q", "Q", "HHQQ") if big else ("H", "I", "HHII")
    try:
        (at,) = struct.unpack_from(order + start, data, 8 if big else 4)
        if at >= len(data):  # and perhaps more than an index may be
            return False
        (tags,) = struct.unpack_from(order + count, data, at)
    except struct.error:
        return False
    at += struct.calcsize(order + count)
    step = 20 if big else 12
    end = min(at + tags * step, len(data) - step + 1)
    total = 0
    for position in range(at, end, step):
        _, kind, values, offset = struct.unpack_from(order + entry, data, position)
        length = _TAG_BYTES.get(kind, 1) * values
        total += length if offset + length <= len(data) else 0
    return total > TAG_SHARE * len(data) + TAG_BYTES


def _exif(data: bytes, parts: list[Piece]) -> bytes:
    """The EXIF of a JPEG; like PIL, of all EXIF segments together."""
    marker = b"Exif\0\0"
    segments = (data[part.start + 4 : part.end] for part in parts if part.kind[0] == _EXIF)
    return b"".join(body.removeprefix(marker) for body in segments if body.startswith(marker))


def _bare_png(data: bytes, accepts: Accepts) -> bytes | None:
    parts = png_parts(data)
    if not parts or parts[0].kind != b"IHDR":
        return None
    header = data[parts[0].start : parts[0].end]
    pixels = [part for part in parts if part.kind == b"IDAT"]
    if not pixels:
        return None
    first = pixels[0].start
    extras = [part for part in parts if part.kind not in _CRITICAL and part.start < first]
    # PIL reads a header up to the first IDAT chunk, which may be empty.
    probe = [SIGNATURE + header, _chunk(b"IDAT", b"")]
    few = extras if len(extras) <= MOST_EXTRAS else []
    kept = [part for part in few if accepts(data[part.start : part.end].join(probe))]
    together = b"".join(data[part.start : part.end] for part in kept)
    if not accepts(together.join(probe)):
        together = b""
    palette = b"".join(data[p.start : p.end] for p in parts if p.kind == b"PLTE")
    stream = b"".join(data[part.start + 8 : part.end - 4] for part in pixels)
    # Damaged pixels keep their wrong checksum, so that the damage is still detected.
    view = memoryview(data)
    whole = _whole_stream(stream, header) if all(is_sound(view, p) for p in pixels) else None
    if whole is None:
        body = b"".join(data[part.start : part.end] for part in pixels)
        end = data[parts[-1].end :] if parts[-1].kind != b"IEND" else _chunk(b"IEND", b"")
    else:
        body, end = _chunk(b"IDAT", whole), _chunk(b"IEND", b"")
    return SIGNATURE + header + together + palette + body + end


def is_sound(data: memoryview, part: Piece) -> bool:
    """Whether the checksum of a chunk of a PNG is right."""
    stored = data[part.end - 4 : part.end]
    return zlib.crc32(data[part.start + 4 : part.end - 4]).to_bytes(4, "big") == stored


def _whole_stream(stream: bytes, header: bytes) -> bytes | None:
    """The pixels of a PNG, compressed again, if all are present; else None.

    zlib's header and final checksum are ignored, as libpng does.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header[8:21])
    if interlaced or colour not in _SAMPLES:
        return None
    needed = height * (1 + (width * depth * _SAMPLES[colour] + 7) // 8)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = inflate.decompress(stream[2:], needed)
    except zlib.error:
        return None
    return zlib.compress(raw, 1) if len(raw) == needed else None


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _bare_jpeg(data: bytes, accepts: Accepts) -> bytes | None:
    parts = jpeg_parts(data)
    if not parts or parts[-1].kind[0] != _SCAN:
        return None
    needed = [part for part in parts if part.kind[0] in _FRAMES]
    probe = [b"\xff\xd8", b"".join(data[part.start : part.end] for part in needed)]
    few = len(parts) - len(needed) <= MOST_EXTRAS
    kept = [
        part
        for part in parts[:-1]
        if part.kind[0] in _FRAMES or (few and accepts(data[part.start : part.end].join(probe)))
    ]
    segments = b"".join(data[part.start : part.end] for part in kept)
    return b"\xff\xd8" + segments + data[parts[-1].start :]


def with_end(data: bytes) -> list[bytes] | None:
    """Copies of a JPEG without an end marker: with the marker, and different bits before it.

    libjpeg decodes a file without its end and invents the missing blocks. If no block is missing,
    the added bits are not decoded, and all copies have the same pixels. Returns None for a file
    with an end marker, several scans, progressive frames or restarts: the copies prove nothing.
    """
    parts = jpeg_parts(data, MOST_PARTS)
    if not parts or parts[-1].kind[0] != _SCAN or {p.kind[0] for p in parts} & _RESUMED:
        return None
    body = data[: -1 if data.endswith(b"\xff") else None]
    if any(data.find(mark, parts[-1].end) >= 0 for mark in (b"\xff\xd9", b"\xff\xda")):
        return None
    return [body + bits * 64 + b"\xff\xd9" for bits in (b"", b"\x55", b"\xaa", b"\0")]


def bare_gif(data: bytes) -> bytes | None:
    """A GIF without the extensions before its first image, except the graphic control extension.

    None if `data` is shorter than a GIF header.
    """
    start = _gif_blocks_start(data)
    if start is None:
        return None
    kept, at = [data[:start]], start
    while at + 2 < len(data) and data[at : at + 1] == b"!":
        end = _gif_block_end(data, at + 2)
        if data[at + 1] == 0xF9:
            kept.append(data[at:end])
        at = end
    return b"".join(kept) + data[at:]


def _gif_extra_bytes(data: bytes) -> int:
    start = at = _gif_blocks_start(data) or len(data)
    while at + 2 < len(data) and data[at : at + 1] == b"!":
        at = _gif_block_end(data, at + 2)
    return at - start


def _gif_blocks_start(data: bytes) -> int | None:
    if len(data) < 13:
        return None
    flags = data[10]
    return 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)


def _gif_block_end(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return min(at + 1, len(data))
