"""Two hundred small pictures of every kind that a bucket holds, and what each must give.

All are made here: by Pillow where it writes the kind, else from raw bytes. `Picture.expected` is
the RGB that must come out, known without the decoder under test, or the code of an error.
`damaged` gives 110 spoilt copies of a file: cut at every tenth, and one bit flipped at 100 places.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from tests.odd_files import encode, picture

HEIGHT, WIDTH = 24, 36
SIGNATURE = b"\x89PNG\r\n\x1a\n"
Pixels = NDArray[np.uint8]


class Picture(NamedTuple):
    """One file of the corpus."""

    name: str
    data: bytes
    expected: Pixels | str


@cache
def corpus() -> tuple[Picture, ...]:
    """All of them; the same bytes at every call."""
    found = (*_jpegs(), *_pngs(), *_png_extras(), *_tiffs(), *_others(), *_no_pictures())
    assert len({each.name for each in found}) == len(found)
    return found


def damaged(picture_: Picture) -> Iterator[tuple[str, bytes]]:
    """(what was done, bytes): 10 cuts and 100 flipped bits, the same at every call."""
    data = picture_.data
    for tenth in range(10):
        yield f"cut at {tenth}/10", data[: len(data) * tenth // 10]
    seed = zlib.crc32(picture_.name.encode())
    for at in np.random.default_rng(seed).integers(0, max(len(data), 1) * 8, 100).tolist():
        if data:
            spoilt = bytearray(data)
            spoilt[at // 8] ^= 1 << (at % 8)
            yield f"bit {at} flipped", bytes(spoilt)
        else:
            yield "still empty", b""


def _rgb() -> Pixels:
    return picture(HEIGHT, WIDTH)


def _image(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(_rgb())
    if mode == "RGBA":
        return Image.fromarray(np.dstack([_rgb(), np.full((HEIGHT, WIDTH), 99, np.uint8)]))
    if mode == "LA":
        return Image.merge("LA", (image.convert("L"), Image.new("L", image.size, 99)))
    return image.convert(mode)


def _shown(data: bytes) -> Pixels:
    """What Pillow shows of a sound file, turned upright."""
    with Image.open(BytesIO(data)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def segment(kind: int, data: bytes) -> bytes:
    """A JPEG segment."""
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data


def _jpegs() -> Iterator[Picture]:
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            for sampling in (0, 1, 2) if mode == "RGB" else (None,):
                for quality in (30, 95):
                    options: dict[str, Any] = {"progressive": progressive, "quality": quality}
                    if sampling is not None:
                        options["subsampling"] = sampling
                    data = encode(_image(mode), "JPEG", **options)
                    name = f"jpeg-{mode}-{'progressive' if progressive else 'baseline'}"
                    yield Picture(f"{name}-{sampling}-{quality}", data, _shown(data))
    for value in range(2, 9):
        data = encode(_image(), "JPEG", exif=_orientation(value))
        yield Picture(f"jpeg-orientation-{value}", data, _shown(data))
    for height, width in ((1, 1), (1, 40), (7, 5), (16, 16), (17, 33)):
        data = encode(Image.fromarray(picture(height, width)), "JPEG")
        yield Picture(f"jpeg-{height}x{width}", data, _shown(data))
    plain = encode(_image(), "JPEG", subsampling=0)
    shown = _shown(plain)
    for name, options in {
        "restarts": {"restart_marker_blocks": 2},
        "optimised": {"optimize": True},
        "profile": {"icc_profile": _profile()},
        "comment": {"comment": b"x" * 3000},
    }.items():
        yield Picture(f"jpeg-{name}", encode(_image(), "JPEG", subsampling=0, **options), shown)
    start, rest = plain[:2], plain[2:]
    after = plain[20:]  # behind SOI and JFIF
    tables = after.index(b"\xff\xdb")
    for name, data in {
        "garbage-exif": start + segment(0xE1, b"Exif\0\0II*\0" + b"\xee" * 40) + rest,
        "garbage-photoshop": start + segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9) + rest,
        "garbage-profile": start + segment(0xE2, b"ICC_PROFILE\0\xff\0" + b"?" * 30) + rest,
        "garbage-flashpix": start + segment(0xE2, b"FPXR\0" + b"\xff" * 5) + rest,
        "garbage-multipicture": start + segment(0xE2, b"MPF\0II*\0\xff\xff\0\0") + rest,
        "empty-segments": start + b"".join(segment(0xE0 + k, b"") for k in range(16)) + rest,
        "short-jfif": start + segment(0xE0, b"JFIF\0\1") + after,
        "no-jfif": start + after,
        "many-comments": start + segment(0xFE, b"abc") * 300 + rest,
        "fill-bytes": start + b"\xff" * 50 + rest,
        "garbage-between": plain[:20] + b"junk\0\1\2" + after[tables:],
        "trailing-junk": plain + b"\0\1\2junk" * 50,
        "no-end-marker": plain[:-2],
        "half-an-end-marker": plain[:-1],
        "other-bytes-before-end": plain[:-2] + bytes(9) + plain[-2:],
    }.items():
        yield Picture(f"jpeg-{name}", data, shown)
    frame = plain.index(b"\xff\xc0")

    def framed(kind: int, depth: int = 8, components: int = 3) -> bytes:
        head = struct.pack(">BHHB", depth, HEIGHT, WIDTH, components)
        parts = b"".join(bytes((k + 1, 0x11, 0)) for k in range(components))
        end = frame + 2 + struct.unpack(">H", plain[frame + 2 : frame + 4])[0]
        return plain[:frame] + segment(kind, head + parts) + plain[end:]

    for name, data in {
        "twelve-bits": framed(0xC1, 12),
        "two-components": framed(0xC0, 8, 2),
        "five-components": framed(0xC0, 8, 5),
        "differential": framed(0xC5),
        "lossless-arithmetic": framed(0xCB),
    }.items():
        yield Picture(f"jpeg-{name}", data, "unsupported")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_ADAM7 = (*_PASSES, (0, 1, 1, 2))  # x, y, step of x, step of y


def _png(
    samples: NDArray[np.integer], colour: int, depth: int, *, interlaced: bool = False
) -> bytes:
    """(H, W, channels) samples as a PNG of any colour type and depth, without its palette."""
    height, width = samples.shape[:2]

    def rows(part: NDArray[np.integer]) -> bytes:
        if 0 in part.shape:
            return b""
        flat = part.reshape(len(part), -1)
        if depth == 16:
            packed = flat.astype(">u2").view(np.uint8).reshape(len(part), -1)
        elif depth == 8:
            packed = flat.astype(np.uint8)
        else:
            bits = (flat[..., None] >> np.arange(depth - 1, -1, -1)) & 1
            packed = np.packbits(bits.reshape(len(part), -1).astype(np.uint8), axis=1)
        return b"".join(b"\0" + row.tobytes() for row in packed)

    passes = [samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [samples]
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    body = zlib.compress(b"".join(map(rows, passes)))
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _pngs() -> Iterator[Picture]:
    kinds = [(0, d) for d in (1, 2, 4, 8, 16)] + [(3, d) for d in (1, 2, 4, 8)]
    kinds += [(c, d) for c in (2, 4, 6) for d in (8, 16)]
    for colour, depth in kinds:
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        most = (1 << min(depth, 8)) - 1
        samples = np.dstack([_rgb(), _rgb()[..., :1]])[..., :channels].astype(np.int64)
        samples = samples * most // 255 if colour != 3 else samples % (most + 1)
        palette = np.zeros((0, 3), np.uint8)
        if colour == 3:
            palette = np.random.default_rng(depth).integers(0, 256, (most + 1, 3), dtype=np.uint8)
            expected = palette[samples[..., 0]]
        else:
            shown = samples[..., :3] if colour in (2, 6) else np.repeat(samples[..., :1], 3, 2)
            expected = (shown * 255 // most).astype(np.uint8)
        stored = samples * 257 if depth == 16 else samples
        for interlaced in (False, True):
            data = _png(stored, colour, depth, interlaced=interlaced)
            if colour == 3:
                data = data[:33] + chunk(b"PLTE", palette.tobytes()) + data[33:]
            name = f"png-{colour}-{depth}{'-interlaced' if interlaced else ''}"
            yield Picture(name, data, expected)
            if colour != 3 and channels in (1, 3) and not interlaced:
                clear = chunk(b"tRNS", bytes(2 * channels))
                yield Picture(f"{name}-clear", data[:33] + clear + data[33:], expected)


def _png_extras() -> Iterator[Picture]:
    plain = encode(_image(), "PNG")
    expected = _rgb()
    head, rest = plain[:33], plain[33:]
    pixels = rest[8 : rest.index(b"IEND") - 8]
    megabytes = zlib.compress(bytes(2 << 20))
    wrong = bytearray(chunk(b"tEXt", b"Title\0photo"))
    wrong[-1] ^= 1
    extras = {
        "long-zTXt": chunk(b"zTXt", b"workflow\0\0" + megabytes),
        "long-iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + megabytes),
        "long-iCCP": chunk(b"iCCP", b"Display\0\0" + megabytes),
        "many-texts": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 19))) * 150,
        "unknown-compression": chunk(b"zTXt", b"a\0\7" + zlib.compress(b"x")),
        "unknown-profile": chunk(b"iCCP", b"a\0\7" + zlib.compress(b"x")),
        "no-deflate-in-zTXt": chunk(b"zTXt", b"a\0\0" + b"\xff" * 20),
        "wrong-checksum": bytes(wrong),
        "short-pHYs": chunk(b"pHYs", b"\0\0"),
        "short-gAMA": chunk(b"gAMA", b"\1"),
        "short-cHRM": chunk(b"cHRM", b"\1\2\3"),
        "short-sRGB": chunk(b"sRGB", b""),
        "short-tIME": chunk(b"tIME", b"\7"),
        "short-acTL": chunk(b"acTL", b"\0\0"),
        "short-fcTL": chunk(b"fcTL", b"\0\0"),
        "no-frames": chunk(b"acTL", bytes(8)),
        "garbage-exif": chunk(b"eXIf", b"\xff" * 30),
        "empty-iTXt": chunk(b"iTXt", b""),
        "latin-iTXt": chunk(b"iTXt", b"Title\0\0\0\0\0caf\xe9"),
        "private": chunk(b"vpAg", bytes(9)),
        "thousand-chunks": chunk(b"tEXt", b"a\0b") * 1000,
    }
    for name, extra in extras.items():
        yield Picture(f"png-{name}", head + extra + rest, expected)
    yield Picture("png-late-zTXt", plain[:-12] + extras["long-zTXt"] + plain[-12:], expected)
    yield Picture("png-late-checksum", plain[:-12] + bytes(wrong) + plain[-12:], expected)
    yield Picture("png-bare-end", head + chunk(b"IDAT", pixels) + chunk(b"IEND", b""), expected)
    sliced = b"".join(chunk(b"IDAT", pixels[k : k + 9]) for k in range(0, len(pixels), 9))
    yield Picture("png-sliced", head + sliced + chunk(b"IEND", b""), expected)
    for name, stream in {
        "wrong-sum": pixels[:-4] + b"\0\0\0\1",
        "no-sum": pixels[:-4],
        "longer-stream": pixels + b"more",
        "small-window": b"\x08\x1d" + pixels[2:],
    }.items():
        yield Picture(f"png-{name}", head + chunk(b"IDAT", stream) + chunk(b"IEND", b""), expected)
    yield Picture("png-trailing-junk", plain + b"junk" * 99, expected)
    apple = SIGNATURE + chunk(b"CgBI", b"\x50\0\x20\2") + plain[8:]
    yield Picture("png-apple", apple[:100], "unsupported")
    for value in range(2, 9):
        data = encode(_image(), "PNG", exif=_orientation(value))
        shown = _shown(data)
        yield Picture(f"png-orientation-{value}", data, shown)
        if value in (3, 6):
            data = data[:33] + extras["long-zTXt"] + data[33:]
            yield Picture(f"png-orientation-{value}-long-zTXt", data, shown)


def tiff(
    samples: NDArray[np.generic],
    kind: int,
    *,
    compression: int = 1,
    white_is_zero: bool = False,
    planes: bool = False,
) -> bytes:
    """(H, W, bands) samples as an uncompressed little-endian TIFF; kind: 1 unsigned, 3 float.

    planes: the samples of each band stand together.
    """
    height, width, bands = samples.shape
    bits = samples.dtype.itemsize * 8
    stored = samples.astype(samples.dtype.newbyteorder("<"))
    pieces = [stored[..., k].tobytes() for k in range(bands)] if planes else [stored.tobytes()]
    return _tiff_of(
        (height, width, bands), bits, kind, pieces, compression, 0 if white_is_zero else None
    )


def _tiff_of(
    shape: tuple[int, int, int],
    bits: int,
    kind: int,
    pieces: list[bytes],
    compression: int = 1,
    photometric: int | None = None,
) -> bytes:
    """A TIFF of packed samples: one strip, or one for each band."""
    height, width, bands = shape
    tags = 11 if len(pieces) > 1 else 10
    start = 8 + 2 + tags * 12 + 4
    if photometric is None:
        photometric = 2 if bands >= 3 else 1
    lengths = [len(piece) for piece in pieces]
    far = b""
    fields: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits] * bands),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (273, 4, [0] * len(pieces)),
        (277, 3, [bands]),
        (278, 4, [height]),
        (279, 4, lengths),
        *([(284, 3, [2])] if len(pieces) > 1 else []),
        (339, 3, [kind] * bands),
    ]
    sizes = {3: 2, 4: 4}
    spill = sum(len(v) * sizes[t] for _, t, v in fields if len(v) * sizes[t] > 4)
    entries = b""
    for tag, form, values in fields:
        if tag == 273:
            values = [start + spill + sum(lengths[:k]) for k in range(len(pieces))]
        raw = struct.pack(f"<{len(values)}{'H' if form == 3 else 'I'}", *values)
        if len(raw) > 4:
            raw, far = struct.pack("<I", start + len(far)), far + raw
        entries += struct.pack("<HHI", tag, form, len(values)) + raw.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4) + far + b"".join(pieces)


def _twelve_bits(samples: NDArray[np.integer]) -> bytes:
    """(H, W) samples below 4096, two of them in three bytes; W is even."""
    first, second = samples[:, ::2].astype(np.uint16), samples[:, 1::2].astype(np.uint16)
    packed = np.dstack([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    return packed.astype(np.uint8).tobytes()


def _tiffs() -> Iterator[Picture]:
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "tiff_deflate"):
        for mode in ("L", "RGB", "RGBA", "CMYK"):
            data = encode(_image(mode), "TIFF", compression=compression)
            yield Picture(f"tiff-{compression}-{mode}", data, _shown(data))
    for mode, compression in (("1", "group4"), ("1", "group3"), ("1", "raw"), ("P", "raw")):
        data = encode(_image(mode), "TIFF", compression=compression)
        yield Picture(f"tiff-{compression}-{mode}", data, _shown(data))
    for value in (3, 6, 8):
        data = encode(_image(), "TIFF", tiffinfo={274: value})
        yield Picture(f"tiff-orientation-{value}", data, _shown(data))
    rgb = _rgb()
    big = encode(_image(), "TIFF", big_tiff=True)
    yield Picture("tiff-big", big, rgb)
    pages = encode(_image(), "TIFF", save_all=True, append_images=[_image("L")])
    yield Picture("tiff-pages", pages, rgb)
    grey = np.repeat(rgb[..., :1], 3, 2)
    deep = rgb[..., :1].astype(np.uint16) * 257
    yield Picture("tiff-16", tiff(deep, 1), grey)
    white = tiff(65535 - deep, 1, white_is_zero=True)
    yield Picture("tiff-16-white-is-zero", white, grey)
    white = tiff((1 - rgb[..., :1] / 255).astype(np.float32), 3, white_is_zero=True)
    yield Picture("tiff-float-white-is-zero", white, grey)
    twelve = _twelve_bits(rgb[..., 0].astype(np.int64) * 4095 // 255)
    yield Picture("tiff-12", _tiff_of((HEIGHT, WIDTH, 1), 12, 1, [twelve]), grey)
    yield Picture("tiff-planes", tiff(rgb.copy(), 1, planes=True), rgb)
    yield Picture("tiff-float", tiff((rgb[..., :1] / 255).astype(np.float32), 3), grey)
    for name, data in {
        "2-bands": tiff(rgb[..., :2].copy(), 1),
        "5-bands": tiff(np.dstack([rgb, rgb[..., :2]]).copy(), 1),
        "9-bands": tiff(np.dstack([rgb, rgb, rgb]).copy(), 1),
        "float-rgb": tiff((rgb / 255).astype(np.float32), 3),
        "double-rgb": tiff((rgb / 255).astype(np.float64), 3),
        "16-bits-2-bands": tiff(rgb[..., :2].astype(np.uint16), 1),
        "16-bits-planes": tiff(rgb.astype(np.uint16) * 257, 1, planes=True),
        "unknown-compression": tiff(rgb.copy(), 1, compression=34999),
    }.items():
        yield Picture(f"tiff-{name}", data, "unsupported")
    # A camera's raw file begins with a preview; DNG says its version.
    for name, tags in {"nef": {254: 1, 330: 8}, "dng": {50706: b"\1\4\0\0"}}.items():
        yield Picture(f"tiff-{name}", encode(_image(), "TIFF", tiffinfo=tags), "unsupported")
    yield Picture("tiff-cr2", b"II*\0\x10\0\0\0CR\2\0" + tiff(rgb.copy(), 1)[12:], "unsupported")
    reduced = encode(_image(), "TIFF", tiffinfo={254: 1})  # and nothing larger beside it
    yield Picture("tiff-reduced", reduced, rgb)


def _others() -> Iterator[Picture]:
    rgb = _rgb()
    for mode in ("L", "P", "1"):
        data = encode(_image(mode), "GIF")
        yield Picture(f"gif-{mode}", data, _shown(data))
    second = Image.fromarray(picture(HEIGHT, WIDTH, seed=1))
    for format in ("GIF", "WEBP", "PNG"):
        still = encode(_image(), format, **({"lossless": True} if format == "WEBP" else {}))
        options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
        data = encode(_image(), format, save_all=True, append_images=[second], **options)
        yield Picture(f"{format.lower()}-animated", data, _shown(still))
    gif = encode(_image("P"), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 30 + b"\0"
    place = 13 + 3 * (2 << (gif[10] & 7))
    yield Picture("gif-comment", gif[:place] + comment + gif[place:], _shown(gif))
    for name, options in {
        "lossy": {},
        "lossless": {"lossless": True},
        "exact-alpha": {"lossless": True, "exact": True},
        "profile": {"icc_profile": _profile()},
        "garbage-exif": {"exif": b"Exif\0\0" + b"\xff" * 20},
    }.items():
        data = encode(_image("RGBA" if "alpha" in name else "RGB"), "WEBP", **options)
        sound = encode(_image(), "WEBP", **(options if "lossless" in options else {}))
        yield Picture(f"webp-{name}", data, _shown(sound))
    for value in (3, 6):
        data = encode(_image(), "WEBP", exif=_orientation(value))
        yield Picture(f"webp-orientation-{value}", data, _shown(data))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        data = encode(_image(mode), "BMP")
        yield Picture(f"bmp-{mode}", data, _shown(data))
    for sampling in ("4:4:4", "4:2:0"):
        data = encode(_image(), "AVIF", subsampling=sampling)
        yield Picture(f"avif-{sampling.replace(':', '')}", data, _shown(data))
    general = data[:8] + b"mif1" + data[12:]  # its own brand stands behind
    yield Picture("avif-general-brand", general, _shown(data))
    for mode in ("L", "RGB", "RGBA"):
        data = encode(_image(mode), "JPEG2000")
        yield Picture(f"jp2-{mode}", data, _shown(data))
    data = encode(_image(), "JPEG2000", no_jp2=True)
    yield Picture("j2k-RGB", data, _shown(data))
    for mode in ("1", "L", "RGB"):
        yield Picture(
            f"ppm-{mode}", encode(_image(mode), "PPM"), _shown(encode(_image(mode), "PNG"))
        )
    text = " ".join(map(str, rgb.ravel().tolist())).encode()
    head = f"{WIDTH} {HEIGHT} 255\n".encode()
    yield Picture("ppm-plain", b"P3 " + head + text, rgb)
    deep = rgb.astype(">u2") * 257
    yield Picture("ppm-16", f"P6 {WIDTH} {HEIGHT} 65535\n".encode() + deep.tobytes(), rgb)


def _no_pictures() -> Iterator[Picture]:
    for name, head in {
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "heic-general-brand": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic",
        "heic-sequence": b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc",
        "heif-avc": b"\0\0\0\x18ftypavci\0\0\0\0mif1avci",
        "jxr": b"II\xbc\1",
        "pam": b"P7\nWIDTH 4\nHEIGHT 4\n",
        "pfm": b"PF\n4 4\n-1.0\n",
        "icns": b"icns\0\0\1\0",
        "dicom": bytes(128) + b"DICM",
        "eps": b"\xc5\xd0\xd3\xc6",
        "svg-behind-a-comment": b"\xef\xbb\xbf<!-- made by hand --><svg>",
        "jxl": b"\0\0\0\x0cJXL \r\n\x87\n",
        "psd": b"8BPS\0\1",
        "svg": b'<?xml version="1.0"?><svg width="9"></svg>',
        "pdf": b"%PDF-1.7\n",
        "icon": b"\0\0\1\0\1\0",
        "exr": b"\x76\x2f\x31\x01\2\0\0\0",
        "fits": b"SIMPLE  =                    T",
    }.items():
        yield Picture(name, head + b" " * 200, "unsupported")
    for name, head in {
        "web-page": b"<!DOCTYPE html><html>",
        "archive": b"PK\3\4",
        "video": b"\0\0\0\x18ftypmp42",
        "zeros": bytes(64),
        "text-like-bmp": b"BMW and others",
        "text-like-ppm": b"P3 is the third part.",
        "resource-fork": b"\0\5\x16\7\0\2\0\0Mac OS X        ",
    }.items():
        yield Picture(name, head + bytes(200), "not_an_image")
    yield Picture("empty", b"", "empty")
