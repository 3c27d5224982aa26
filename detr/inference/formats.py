"""What a file claims to be by its first bytes, and whether its end is there.

Only for naming failures: a format that can't be decoded here is `unsupported`, anything that is no
picture at all is `not_an_image`, and a damaged file without its proper end is `truncated` rather
than `corrupt` (a second download may mend the one, never the other). Nothing is decided here about
files that decode.
"""

from __future__ import annotations

from typing import Final

_KNOWN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\x8aMNG", "MNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "BigTIFF"),
    (b"MM\0+", "BigTIFF"),
    (b"IIRO", "Olympus raw"),
    (b"IIU\0", "Panasonic raw"),
    (b"FUJIFILM", "Fujifilm raw"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\1\0", "icon"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DirectDraw surface"),
    (b"qoif", "QOI"),
    (b"gimp xcf", "GIMP"),
    (b"%PDF-", "PDF"),
    (b"%!PS", "PostScript"),
    (b"SIMPLE  =", "FITS"),
    (b"<svg", "SVG"),
)

# Brands of the ISO container (bytes 8..12 after "ftyp") that hold pictures.
_BRANDS: Final = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "Canon raw",
}


def known_format(data: bytes) -> str | None:
    """The name of the picture format whose signature `data` bears, or None."""
    if data[4:8] == b"ftyp":
        return _BRANDS.get(bytes(data[8:12]))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "BMP"
    for signature, name in _KNOWN:
        if data.startswith(signature):
            return name
    head = bytes(data[:1024]).lstrip()
    return "SVG" if head.startswith(b"<?xml") and b"<svg" in head else None


def is_cut_short(data: bytes, name: str) -> bool:
    """Whether the end that a file of PIL's format `name` must have is missing.

    False for formats without an end that can be recognised.
    """
    match name:
        case "JPEG" | "MPO":
            return b"\xff\xd9" not in data[-1024:]  # some cameras pad behind it
        case "PNG":
            return b"IEND" not in data[-1024:]
        case "GIF":
            return not data.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return len(data) < 12 or len(data) < int.from_bytes(data[4:8], "little") + 8
        case "BMP":
            return len(data) < 26 or len(data) < int.from_bytes(data[2:6], "little")
        case "AVIF" | "JPEG2000":
            return not _boxes_fit(data)
        case _:
            return False


def _boxes_fit(data: bytes) -> bool:
    """Whether the boxes of an ISO or JPEG 2000 container end inside of the file."""
    if data[:4] == b"\xff\x4f\xff\x51":  # a bare JPEG 2000 stream has an end marker, not boxes
        return data[-2:] == b"\xff\xd9"
    start = 0
    while start + 8 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
        if length == 0:
            return data[-2:] == b"\xff\xd9"  # "to the end": the stream within must be whole
        if length < 8 or start + length > len(data):
            return False
        start += length
    return True
