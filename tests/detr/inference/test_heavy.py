"""A file that promises hours of work ends as `too_slow`; one that only looks so is decoded."""

from __future__ import annotations

import struct
import time
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detr.inference import heavy
from detr.inference.bare import MOST_PARTS, header_is_endless, jpeg_parts
from detr.inference.decode import ImageError, decode_image, header_size, plain_jpeg
from tests.image_corpus import SIGNATURE, chunk, segment
from tests.odd_files import encode, picture


def repeated_scan(side: tuple[int, int], times: int) -> bytes:
    """A progressive JPEG (height, width) whose last scan stands so often."""
    jpeg = encode(Image.fromarray(np.full(side, 128, np.uint8)), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    scan = jpeg[last:-2]
    return jpeg[:-2] + scan * times + jpeg[-2:]


def fails(data: bytes, code: str) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.code == code
    return str(caught.value)


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "SCANNED_PIXELS", 10_000_000)
    monkeypatch.setattr("detr.inference.decode.SECONDS", 1)
    monkeypatch.setattr(
        heavy, "_PROGRAM", "from detr.inference import heavy; heavy.SECONDS = 1\n" + heavy._PROGRAM
    )


def test_a_jpeg_of_many_scans_ends_in_time(one_second: None) -> None:
    data = repeated_scan((1500, 2000), 8_000)
    began = time.monotonic()
    message = fails(data, "too_slow")
    assert "scans of 3000000 pixels were not decoded" in message
    assert time.monotonic() - began < 12
    assert header_size(data) == (1500, 2000)
    assert plain_jpeg(data) is None  # nor is it given to the GPU


def test_heavy_files_have_the_pixels_that_they_would_have_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encode(Image.fromarray(picture()), "JPEG", progressive=True, exif=exif)
    options: tuple[dict[str, Any], ...] = ({}, {"exif": False}, {"at_least": (10, 10)})
    light = [decode_image(data, **option) for option in options]
    monkeypatch.setattr(heavy, "SCANNED_PIXELS", 1)
    for option, pixels in zip(options, light, strict=True):
        np.testing.assert_array_equal(decode_image(data, **option), pixels)
    fails(data[: len(data) // 2], "truncated")


def bmp_of_run_lengths(height: int, width: int) -> bytes:
    runs = bytes((200, 1)) * (height * width // 200)
    palette = bytes(range(256)) * 4
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    start = 14 + len(info) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    return head + info + palette + runs


@pytest.mark.parametrize(
    ("data", "name", "mode", "pixels"),
    [
        (b"\xff\xda" * 500, "JPEG", "L", 10_000_000),
        (SIGNATURE, "PNG", "RGBA", 400_000_000),
        (SIGNATURE + chunk(b"IDAT", b"") * 300_001, "PNG", "L", 100),
        (bmp_of_run_lengths(2000, 2000), "BMP", "P", 4_000_000),
        (b"", "JPEG2000", "RGB", 100_000_000),
        (b"", "AVIF", "RGB", 100_000_000),
        (b"P3 9 9 255\n" + b"1 " * 2_000_000, "PPM", "RGB", 81),
        (b"P6 # a comment\n3000 3000\n100\n", "PPM", "RGB", 9_000_000),
    ],
)
def test_what_is_heavy_is_seen_before_decoding(
    data: bytes, name: str, mode: str, pixels: int
) -> None:
    assert heavy.heavy_work(data, name, mode, pixels)


def test_photos_and_large_pictures_are_decoded_in_threads() -> None:
    photo = encode(Image.fromarray(picture(300, 400)), "JPEG", progressive=True)
    assert heavy.heavy_work(photo, "JPEG", "RGB", 12_000_000) is None
    assert heavy.heavy_work(photo, "JPEG", "RGB", 178_956_970) is None
    assert heavy.heavy_work(SIGNATURE, "PNG", "RGB", 178_956_970) is None
    assert heavy.heavy_work(b"", "JPEG2000", "RGB", 12_000_000) is None
    assert heavy.heavy_work(b"", "AVIF", "RGB", 24_000_000) is None
    assert heavy.heavy_work(b"P6 3000 3000 255\n", "PPM", "RGB", 9_000_000) is None


def test_a_header_without_end_is_passed_over_or_refused_at_once() -> None:
    rgb = picture()
    jpeg, png = (encode(Image.fromarray(rgb), name) for name in ("JPEG", "PNG"))
    gif = encode(Image.fromarray(rgb).quantize(8), "GIF")
    place = 13 + (3 << ((gif[10] & 7) + 1))
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    began = time.monotonic()
    comments = jpeg[:2] + segment(0xFE, b"") * 60_000 + jpeg[2:]
    fill = jpeg[:2] + b"\xff" * 2_000_000 + jpeg[2:]
    texts = png[:33] + chunk(b"tEXt", b"a\0b") * 60_000 + png[33:]
    for data, clean in (
        (comments, jpeg),
        (fill, jpeg),
        (texts, png),
        (gif[:place] + comment + gif[place:], gif),
    ):
        np.testing.assert_array_equal(decode_image(data), decode_image(clean))
        assert header_size(data) == rgb.shape[:2]
    tables = jpeg_parts(jpeg)[1]
    fails(jpeg[:2] + jpeg[tables.start : tables.end] * 30_000 + jpeg[2:], "too_slow")
    assert time.monotonic() - began < 12


def test_a_process_that_dies_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "SCANNED_PIXELS", 1)
    monkeypatch.setattr(
        heavy, "_PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    )
    fails(encode(Image.fromarray(picture()), "JPEG"), "corrupt")


def test_a_bomb_in_a_chunk_is_not_inflated() -> None:
    """64 MB of zeros in 64 KB, in each of a hundred chunks: their text is nobody's business."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9))
    png = BytesIO()
    Image.fromarray(picture()).save(png, "PNG")
    data = png.getvalue()
    began = time.monotonic()
    np.testing.assert_array_equal(decode_image(data[:33] + text * 100 + data[33:]), picture())
    assert time.monotonic() - began < 12


@settings(max_examples=50, deadline=None)
@given(start=st.integers(2, 63 * MOST_PARTS), lacking=st.sampled_from([0, 1]))
def test_a_run_of_fill_bytes_is_found_wherever_it_begins(start: int, lacking: int) -> None:
    data = b"\xff\xd8" + bytes(start - 2) + b"\xff" * (MOST_PARTS - lacking) + bytes(9)
    assert header_is_endless(data, "JPEG") == (not lacking)


@pytest.mark.timeout(60)
def test_fill_bytes_that_lead_to_no_marker_take_no_time() -> None:
    jpeg = encode(Image.fromarray(picture()), "JPEG")
    began = time.process_time()
    for count in (200_000, 2_000_000):
        jpeg_parts(jpeg[:2] + b"\xff" * count + b"\0" + jpeg[2:])
    assert time.process_time() - began < 2
