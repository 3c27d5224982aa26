"""A file's format by its first bytes, and whether the file is cut short.

Both only choose the code of an `ImageError`: `unsupported` for a known format that can't be
decoded, `not_an_image` for anything else, and for damaged files `truncated` if the end is missing
(another download may help), else `corrupt`.
"""

from __future__ import annotations

import re
from typing import Final

from detr.first_bytes import first_bytes

# The first bytes of a file, one signature or several.
_KNOWN: Final[tuple[tuple[bytes | tuple[bytes, ...], str], ...]] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"GIF8", "GIF"),
    ((b"II*\0", b"MM\0*"), "TIFF"),
    ((b"II+\0", b"MM\0+"), "BigTIFF"),
    ((b"IIRO", b"IIRS", b"MMOR"), "Olympus raw"),
    (b"IIU\0", "Panasonic raw"),
    (b"FUJIFILM", "Fujifilm raw"),
    (b"FOVb", "Sigma raw"),
    (b"\0MRM", "Minolta raw"),
    (b"8BPS", "Photoshop"),
    ((b"\0\0\1\0", b"icns"), "icon"),
    (b"\0\0\2\0\1\0", "cursor"),
    (b"II\xbc\1", "JPEG XR"),
    ((b"\0\0\0\x0cJXL ", b"\xff\x0a"), "JPEG XL"),
    ((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    ((b"#?RADIANCE", b"#?RGBE"), "Radiance HDR"),
    (b"DDS ", "DirectDraw surface"),
    (b"qoif", "QOI"),
    (b"gimp xcf", "GIMP"),
    (b"%PDF-", "PDF"),
    ((b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"AT&TFORM", "DjVu"),
    (b"FLIF", "FLIF"),
    (b"BPG\xfb", "BPG"),
    (b"\x01\xda\x01", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\xabKTX", "KTX"),
    (b"/* XPM", "XPM"),
    (b"SIMPLE  =", "FITS"),
)

# Brands of the ISO container (bytes 8..12 after "ftyp") that hold pictures, four letters each.
_BRANDS: Final = {
    brand.encode(): name
    for name, brands in {
        "AVIF": ("avif", "avis"),
        "HEIC": ("heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs"),
        "HEIF": ("heif", "mif1", "mif2", "msf1", "miaf", "avci", "avcs", "jpeg", "j2ki"),
        "JPEG XS": ("jxs ",),
        "Canon raw": ("crx ",),
    }.items()
    for brand in brands
}
MOST_BRANDS: Final = 100  # of a container; real containers have ten
_BMP_HEADERS: Final = (12, 16, 40, 52, 56, 64, 108, 124)
_SVG_START: Final = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE svg|svg)")
_PPM_HEADER: Final = re.compile(rb"P[1-6fy]\s+[\d#]")


def known_format(data: bytes) -> str | None:
    """The name of the picture format whose signature `data` begins with, or None."""
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "BMP"
    if data[:4] == b"II*\0" and data[8:10] == b"CR":
        return "Canon raw"
    for signatures, name in _KNOWN:
        if data.startswith(signatures):
            return name
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[:4] == b"\1\0\0\0" and data[40:44] == b" EMF":
        return "EMF"
    head = bytes(data[:4096])
    return "SVG" if _SVG_START.match(head) and re.search(rb"<svg\b|<!DOCTYPE svg", head) else None


def _of_brands(data: bytes) -> str | None:
    """The format in an ISO container, by the major brand, or by the others if that is general."""
    major = _BRANDS.get(bytes(data[8:12]))
    if major != "HEIF":
        return major
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * MOST_BRANDS)
    others = {_BRANDS.get(bytes(data[at : at + 4])) for at in range(16, end, 4)}
    return next((name for name in ("AVIF", "HEIC") if name in others), major)


def may_begin(data: bytes, name: str) -> bool:
    """Whether a file that begins with the two letters of a BMP or PPM has the format's header.

    A text may begin with the same letters. True for other formats: no text has their signatures.
    """
    match name:
        case "BMP":
            return int.from_bytes(data[14:18], "little") in _BMP_HEADERS or len(data) < 18
        case "PPM":
            return _PPM_HEADER.match(data) is not None
        case _:
            return True


def no_picture(data: bytes) -> str:
    """The message of a file that is no picture at all."""
    return f"no image format begins with {first_bytes(data)}"


def is_cut_short(data: bytes, name: str) -> bool:
    """Whether the end of a file of PIL's format `name` is missing.

    False for formats without a recognisable end.
    """
    match name:
        case "JPEG" | "MPO":
            return b"\xff\xd9" not in data[-1024:]  # some cameras pad behind the end marker
        case "PNG":
            return b"IEND" not in data[-1024:]
        case "GIF":
            palette = 3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
            return len(data) <= 13 + palette or not data.rstrip(b"\0").endswith(b";")
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
            return data[-2:] == b"\xff\xd9"  # a box up to the file's end: its stream must be whole
        if length < 8 or start + length > len(data):
            return False
        start += length
    return True
