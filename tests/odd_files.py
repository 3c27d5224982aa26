"""A folder of every odd or broken file that a real bucket has held, with what each must give.

`write_odd_files` makes them anew: nothing here is a photo of somebody's, and the largest picture
(30000 x 30000 pixels) is under a megabyte on disk and is never in memory. Tests of decoding and
of the whole job share this one list.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 48, 64

Contents = dict[str, tuple[bytes, str | None]]


def write_odd_files(folder: Path) -> dict[str, str | None]:
    """Write the files, some in subfolders, and return {file_name: error code, None if it is fine}.

    File names are relative to `folder`, with "/".
    """
    contents = odd_files()
    for name, (data, _) in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {name: code for name, (_, code) in contents.items()}


def odd_files() -> Contents:
    """{file_name: (bytes, error code or None)}."""
    return {**_broken(), **_odd_pixels(), **_odd_shapes(), **_odd_names()}


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3): a smooth gradient with a bright square, so that no side is symmetric."""
    rows = np.linspace(0, 200, height)[:, None, None]
    columns = np.linspace(0, 55, width)[None, :, None]
    tint = np.array([1.0, 0.7, 0.4]) if seed % 2 == 0 else np.array([0.3, 0.9, 0.8])
    image = (rows + columns) * tint
    image[: height // 4, : width // 4] = 250
    return (image + np.random.default_rng(seed).normal(0, 3, image.shape)).clip(0, 255).astype("u1")


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def flip_byte(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def huge_png(side: int = 30_000) -> bytes:
    """A valid 1-bit grey PNG of side x side black pixels, compressed row by row."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)  # filter byte and pixels
    block = row * 100
    pixels = b"".join(packer.compress(block) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _png_chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def png_16_bit_rgb(pixels: NDArray[np.uint16]) -> bytes:
    """PIL can't write these: (H, W, 3) uint16 as a PNG of bit depth 16."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _png_chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _broken() -> Contents:
    image = Image.fromarray(picture())
    jpeg, png = encode(image, "JPEG"), encode(image, "PNG")
    webp, gif = encode(image, "WEBP"), encode(image, "GIF")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    return {
        "empty.jpg": (b"", "empty"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "half.webp": (webp[: len(webp) // 2], "truncated"),
        "half.gif": (gif[: len(gif) // 2], "truncated"),
        "first_20_bytes.jpg": (jpeg[:20], "truncated"),
        "first_20_bytes.png": (png[:20], "truncated"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not_an_image"),
        "zeros.jpg": (bytes(5000), "not_an_image"),
        "text.png": (b"not a picture at all\n", "not_an_image"),
        "flipped_byte.png": (flip_byte(png, len(png) // 2), "corrupt"),
        "flipped_header.png": (flip_byte(png, 18), "corrupt"),
        "phone.heic": (heic, "unsupported"),
        "drawing.jpg": (b'<?xml version="1.0"?><svg width="9" height="9"></svg>', "unsupported"),
        "bomb.png": (huge_png(), "too_large"),
    }


def _odd_pixels() -> Contents:
    rgb = picture()
    image = Image.fromarray(rgb)
    grey = image.convert("L")
    deep = (rgb[..., 0].astype(np.uint16) * 257).copy()
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 128, np.uint8)])
    second = Image.fromarray(picture(seed=1))
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "cmyk.jpg": encode(image.convert("CMYK"), "JPEG"),
        "grey.jpg": encode(grey, "JPEG"),
        "progressive.jpg": encode(image, "JPEG", progressive=True),
        "rotated.jpg": encode(image, "JPEG", exif=exif),
        "wrong_suffix.jpg": encode(image, "PNG"),
        "grey_alpha.png": encode(grey.convert("LA"), "PNG"),
        "alpha.png": encode(Image.fromarray(alpha), "PNG"),
        "palette_alpha.png": encode(image.quantize(32), "PNG", transparency=bytes(range(32))),
        "one_bit.png": encode(image.convert("1"), "PNG"),
        "sixteen_bit.png": encode(Image.fromarray(deep), "PNG"),
        "sixteen_bit_rgb.png": png_16_bit_rgb(rgb.astype(np.uint16) * 257),
        "animated.gif": encode(image, "GIF", save_all=True, append_images=[second], duration=50),
        "lossy.webp": encode(image, "WEBP"),
        "lossless.webp": encode(image, "WEBP", lossless=True),
        "plain.bmp": encode(image, "BMP"),
        "plain.tif": encode(image, "TIFF"),
        "lzw.tiff": encode(image, "TIFF", compression="tiff_lzw"),
        "sixteen_bit.tif": encode(Image.fromarray(deep), "TIFF"),
        "float.tif": encode(Image.fromarray(rgb[..., 0].astype(np.float32) / 255), "TIFF"),
        "plain.JP2": encode(image, "JPEG2000"),
        "plain.avif": encode(image, "AVIF"),
    }
    return {name: (data, None) for name, data in files.items()}


def _odd_shapes() -> Contents:
    return {
        "one_pixel.png": (encode(Image.fromarray(picture(1, 1)), "PNG"), None),
        "one_row.png": (encode(Image.fromarray(picture(1, 1200)), "PNG"), None),
        "thin.png": (encode(Image.fromarray(picture(1, 10_000)), "PNG"), "too_thin"),
        "tall.png": (encode(Image.fromarray(picture(10_000, 1)), "PNG"), "too_thin"),
    }


def _odd_names() -> Contents:
    names = [
        "with spaces.jpg",
        "query?size=1&x=%20#top+1.jpg",
        "100%.jpg",
        "<b>.jpg",
        "quote'\".jpg",
        "写真/猫 と 犬.jpg",
        "사진.JPG",
        "deep/er/still/a.jpeg",
    ]
    return {
        name: (encode(Image.fromarray(picture(seed=seed)), "JPEG"), None)
        for seed, name in enumerate(names)
    }
