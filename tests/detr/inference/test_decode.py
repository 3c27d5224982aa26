"""Decoding of what real buckets hold: the right pixels, or the right code, and nothing else."""

from __future__ import annotations

import pickle
import re
import struct
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from detr.inference.decode import ImageError, decode_image, header_size, plain_jpeg
from detr.inference.preprocess import processed_size
from tests.image_corpus import corpus, segment
from tests.odd_files import encode, huge_png, odd_files, picture

ODD = odd_files()
CODES = {"empty", "truncated", "corrupt", "not_an_image", "unsupported", "too_large"}
DECODABLE = [name for name, (_, code) in ODD.items() if code in (None, "too_thin")]


@pytest.mark.parametrize("name", ODD)
def test_every_odd_file_gives_its_code_or_a_picture(name: str) -> None:
    data, code = ODD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if code is None:
            height, width = header_size(data)
            image = decode_image(data)
            assert image.shape == (height, width, 3)
            assert image.dtype == np.uint8
            processed_size(height, width)
        else:
            with pytest.raises(ImageError) as caught:
                processed_size(*decode_image(data).shape[:2])
            assert caught.value.code == code
            assert str(caught.value)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    for name in ("sixteen_bit.png", "sixteen_bit.tif"):
        grey = decode_image(ODD[name][0])
        for channel in range(3):
            np.testing.assert_array_equal(grey[..., channel], picture()[..., 0])
    np.testing.assert_array_equal(decode_image(ODD["sixteen_bit_rgb.png"][0]), picture())


def test_sixteen_bits_are_rounded_over_the_whole_range() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    got = decode_image(encode(Image.fromarray(values), "PNG"))
    np.testing.assert_array_equal(got[..., 0], expected)
    big_endian = Image.fromarray(values.astype(">u2"))
    assert big_endian.mode == "I;16B"
    np.testing.assert_array_equal(decode_image(encode(big_endian, "TIFF"))[..., 0], expected)


def tiff(values: NDArray[np.generic]) -> bytes:
    return encode(Image.fromarray(values), "TIFF")


@pytest.mark.parametrize("full", [1.0, 255.0, 65535.0])
def test_floats_use_the_smallest_range_that_holds_them(full: float) -> None:
    values = np.linspace(0, full, 60, dtype=np.float32).reshape(6, 10)
    got = decode_image(tiff(values))
    np.testing.assert_array_equal(got[..., 0], np.rint(values * (255 / full)))


def test_floats_below_zero_and_nan_are_black() -> None:
    values = np.array([[-5.0, np.nan, -np.inf, 1.0]], np.float32)
    assert decode_image(tiff(values))[0, :, 0].tolist() == [0, 0, 0, 255]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 70_000]], np.int32),
        np.array([[0.0, 1e9]], np.float32),
        np.array([[0.0, np.inf]], np.float32),
    ],
)
def test_grey_without_a_known_range_is_unsupported(values: NDArray[np.generic]) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(tiff(values))
    assert caught.value.code == "unsupported"


def test_transparency_is_dropped_as_pil_s_convert_does() -> None:
    np.testing.assert_array_equal(decode_image(ODD["alpha.png"][0]), picture())
    palette = np.asarray(Image.fromarray(picture()).quantize(32).convert("RGB"))
    np.testing.assert_array_equal(decode_image(ODD["palette_alpha.png"][0]), palette)


@pytest.mark.parametrize("name", ["cmyk.jpg", "grey.jpg", "progressive.jpg", "lossy.webp"])
def test_ordinary_kinds_are_pil_s(name: str) -> None:
    data = ODD[name][0]
    np.testing.assert_array_equal(decode_image(data), Image.open(BytesIO(data)).convert("RGB"))


def test_an_animation_gives_its_first_frame() -> None:
    first = decode_image(encode(Image.fromarray(picture()), "GIF"))
    np.testing.assert_array_equal(decode_image(ODD["animated.gif"][0]), first)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_followed_unless_told_not_to(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(picture()), format, exif=exif)
    stored = Image.open(BytesIO(data)).convert("RGB")
    upright = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode_image(data), np.asarray(upright))
    np.testing.assert_array_equal(decode_image(data, exif=False), np.asarray(stored))
    assert header_size(data) == (upright.height, upright.width)
    assert header_size(data, exif=False) == (stored.height, stored.width)


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tiff_s_own_orientation_is_part_of_the_format(orientation: int) -> None:
    data = encode(Image.fromarray(picture()), "TIFF", tiffinfo={274: orientation})
    expected = np.rot90(picture(), {3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(decode_image(data), expected)
    assert header_size(data) == expected.shape[:2]


def test_a_broken_orientation_tag_costs_nothing() -> None:
    data = encode(Image.fromarray(picture()), "PNG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    np.testing.assert_array_equal(decode_image(data), picture())


def test_a_tag_behind_the_pixels_is_ignored_by_both() -> None:
    """A PNG may carry it there; reading the header alone can't see it, so decoding must not."""
    exif = Image.Exif()
    exif[274] = 6
    tagged = encode(Image.fromarray(picture()), "PNG", exif=exif)
    start = tagged.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", tagged[start : start + 4])[0]
    moved = tagged[:start] + tagged[end:-12] + tagged[start:end] + tagged[-12:]
    assert decode_image(moved).shape[:2] == header_size(moved) == picture().shape[:2]


def test_size_is_judged_from_the_header() -> None:
    """Nothing but the header is there, so anything else than too_large would come from decoding."""
    only_header = huge_png(20_000)[:60]
    for judge in (decode_image, header_size):
        with pytest.raises(ImageError) as caught:
            judge(only_header)
        assert caught.value.code == "too_large"


def test_the_limit_can_be_set_on_both_sides() -> None:
    png = encode(Image.new("RGB", (100, 100)), "PNG")
    with pytest.raises(ImageError, match="100 x 100 pixels are more than the limit of 9999"):
        decode_image(png, max_pixels=9_999)
    assert decode_image(png, max_pixels=10_000).shape == (100, 100, 3)
    # Above PIL's own warning level: 9,600 x 10,000 pixels of one bit.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert header_size(huge_png(9_600)) == (9_600, 9_600)


def test_checksums_of_png_pixels_are_compared() -> None:
    data = ODD["lossless.webp"][0]
    png = encode(
        Image.fromarray(decode_image(data)), "PNG", compress_level=0
    )  # stored, not compressed
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    with pytest.raises(ImageError) as caught:
        decode_image(bytes(flipped))
    assert caught.value.code == "corrupt"


@pytest.mark.parametrize("left", [3, 5, 40])
def test_pixels_that_seem_to_go_on_behind_the_end_of_a_png_are_no_picture(left: int) -> None:
    """The length of a chunk near the end is damaged: PIL would take the next chunks for pixels."""
    [entry] = [each for each in corpus() if each.name == "png-sliced"]
    np.testing.assert_array_equal(decode_image(entry.data), entry.expected)
    starts = [found.start() - 4 for found in re.finditer(b"IDAT", entry.data)]
    damaged = bytearray(entry.data)
    damaged[starts[-left]] ^= 1
    with pytest.raises(ImageError) as caught:
        decode_image(bytes(damaged))
    assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported"),
        (b"8BPS\0\1", "unsupported"),
        (b"%PDF-1.7", "unsupported"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported"),  # never executed
        (b"\0\0\0\x18ftypmp42", "not_an_image"),
        (b"PK\3\4", "not_an_image"),
        (b'{"json": 1}', "not_an_image"),
    ],
)
def test_other_formats_are_told_from_no_format(head: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(head + bytes(300))
    assert caught.value.code == code


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(DECODABLE), st.data())
def test_damage_gives_an_image_error_or_a_picture(name: str, data: st.DataObject) -> None:
    mutable = bytearray(ODD[name][0])
    for _ in range(data.draw(st.integers(1, 4))):
        mutable[data.draw(st.integers(0, min(len(mutable), 4000) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, len(mutable)))
    bytes_ = bytes(mutable[:cut] if data.draw(st.booleans()) else mutable)
    try:
        image = decode_image(bytes_, max_pixels=1_000_000)
    except ImageError as error:
        code = error.code
    else:
        assert image.shape == (*header_size(bytes_), 3)
        return
    assert code in CODES


def test_threads_decode_as_one_does() -> None:
    names = DECODABLE * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda name: decode_image(ODD[name][0]), names))
    for name, image in zip(names, together, strict=True):
        np.testing.assert_array_equal(image, decode_image(ODD[name][0]))


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "damaged PNG")))
    assert (error.code, str(error)) == ("corrupt", "damaged PNG")


def jpeg(height: int, width: int, orientation: int = 1) -> bytes:
    out = BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    smooth = Image.fromarray(picture()).resize((width, height), Image.Resampling.BICUBIC)
    smooth.save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_decodes_a_large_jpeg_smaller_but_never_below_what_is_asked(orientation: int) -> None:
    data = jpeg(400, 600, orientation)
    shape = (400, 600, 3) if orientation == 1 else (600, 400, 3)
    assert decode_image(data).shape == shape
    assert decode_image(data, at_least=shape[:2]).shape == shape
    assert decode_image(data, at_least=(201, 201)).shape == shape  # a half of 400 is 200
    half = decode_image(data, at_least=(shape[0] // 2, shape[1] // 2))
    assert half.shape == (shape[0] // 2, shape[1] // 2, 3)
    whole = Image.fromarray(decode_image(data)).resize(half.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(np.asarray(whole).astype(int) - half).mean() < 2
    assert header_size(data) == shape[:2]


def test_draft_leaves_other_formats() -> None:
    out = BytesIO()
    Image.fromarray(picture()).save(out, "PNG")
    np.testing.assert_array_equal(decode_image(out.getvalue(), at_least=(1, 1)), picture())


def test_only_whole_jpegs_of_grey_or_colour_are_plain() -> None:
    data = jpeg(40, 60, 6)
    assert (plain_jpeg(data), plain_jpeg(data, exif=False)) == (6, 1)
    assert plain_jpeg(data[: len(data) // 2]) is None
    assert plain_jpeg(b"") is None
    for mode, expected in (("L", 1), ("CMYK", None)):
        out = BytesIO()
        Image.fromarray(picture()).convert(mode).save(out, "JPEG")
        assert plain_jpeg(out.getvalue()) == expected


def _tags(count: int, length: int, order: str = "<") -> bytes:
    """A TIFF's header and that many tags, which all share the same bytes."""
    entries = b"".join(struct.pack(order + "HHII", 40_000 + i, 7, length, 8) for i in range(count))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", length + 8)
    return head + bytes(length) + struct.pack(order + "H", count) + entries + bytes(4)


def test_tags_that_share_their_bytes_take_no_memory() -> None:
    """PIL copies each: 30 GB for these 2 MB."""
    with pytest.raises(ImageError) as caught:
        decode_image(_tags(15_000, 2_000_000))
    assert caught.value.code == "too_slow"


@pytest.mark.parametrize(
    "start", [b"II+\0\x08\0\0\0" + b"\xff" * 8, b"II*\0\xff\xff\xff\xff", b"MM\0+"]
)
def test_tags_behind_the_file_s_end_are_damage(start: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(start + bytes(40))
    assert caught.value.code == "corrupt"


def test_a_gif_that_is_cut_in_its_palette_is_truncated_whatever_its_last_byte_is() -> None:
    gif = encode(Image.fromarray(picture()).quantize(256), "GIF")
    with pytest.raises(ImageError) as caught:
        decode_image(gif[:100] + b";")
    assert caught.value.code == "truncated"


def _with_exif(format: str, tags: bytes) -> bytes:
    image = Image.fromarray(picture())
    if format != "JPEG":
        return encode(image, format, exif=b"Exif\0\0" + tags)
    jpeg = encode(image, format)
    pieces = (tags[at : at + 60_000] for at in range(0, len(tags), 60_000))
    exif = b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces)
    return jpeg[:2] + exif + jpeg[2:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_exif_that_shares_its_bytes_is_as_if_left_out(format: str) -> None:
    """In a JPEG it may go on through any number of segments."""
    plain = encode(Image.fromarray(picture()), format)
    marked = _with_exif(format, _tags(3_000, 1_000_000))
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(decode_image(marked), decode_image(plain))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("word", ["<!doctype ht", "caf\xe9", "\0\1\2"])
def test_what_is_no_picture_is_said_without_python_s_bytes(word: str) -> None:
    with pytest.raises(ImageError, match="no image format begins with") as caught:
        decode_image(word.encode("latin-1"))
    assert "b'" not in str(caught.value)
    assert str(caught.value).isprintable()
