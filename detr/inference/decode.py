"""The bytes of a file from anywhere -> RGB pixels, or an `ImageError` that says what is wrong.

The invariant: whatever the bytes, the answer is a whole (H, W, 3) picture or an `ImageError`. The
size is judged from the header, before a pixel is decoded, so a small file can't ask for gigabytes.
PIL's file plugins are called directly instead of through `Image.open`: that one judges the size by
a global and warns through a list of filters that threads share, and it tries every format it knows,
some of which run other programs (EPS) or aren't pictures. Nothing here reads or sets global state.

RGB is what PIL's `convert("RGB")` gives, as in upstream's loader: transparency is dropped and the
colour stored beneath it shows (nothing is composited), CMYK is converted without a profile, and an
animation gives its first frame. The exceptions are PIL's own pits: samples of more than 8 bits are
scaled instead of clipped to white, and a photo's orientation tag is followed.

torchvision's decoder dies with a segmentation fault on a PNG with one flipped byte and turbojpeg
returns the top of a truncated file with a warning: both were rejected. Damage in the middle of a
JPEG is invisible to every decoder; the fetch compares sizes and checksums for that.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import (  # imported for what they register
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from detr.inference.formats import is_cut_short, known_format

# Twice PIL's own warning level, where PIL refuses: 0.5 GB as RGB.
MAX_PIXELS: Final = 178_956_970

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

_ORIENTATION: Final = 274  # the EXIF tag, and what undoes each of its values
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What PIL's parsers have been seen to raise, or plainly can, on damaged bytes. Named one by one so
# that a mistake in this file still shows as what it is in most cases.
_DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ImageError(Exception):
    """Why the bytes of one file give no picture.

    `code` is one of empty, truncated, corrupt, not_an_image, unsupported, too_large, too_thin.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def decode(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    exif: bool = True,
    at_least: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, upright unless `exif` is False; C-ordered.

    `at_least` (height, width): a larger JPEG may be decoded at a half, a quarter or an eighth of
    its size as long as it stays that large ("draft" mode: fewer coefficients, half the time).

    Raises ImageError. Safe in threads; PIL releases the interpreter while it decodes. TIFF's own
    orientation tag is part of the format and always followed.
    """
    image = _open(data, max_pixels)
    if image.format == "PNG":
        _check_png(data)
    orientation = _orientation(image) if exif else 1
    if at_least is not None:  # of the upright picture
        height, width = at_least if orientation < 5 else at_least[::-1]
        image.draft(None, (width, height))
    try:
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", str(error)) from error
    except _DAMAGE as error:
        raise _damaged(data, image.format or "", error) from error
    rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb)


def header_size(data: bytes, *, max_pixels: int = MAX_PIXELS, exif: bool = True) -> tuple[int, int]:
    """(height, width) that `decode` will give, from the header alone.

    Raises the ImageErrors that the header shows: empty, not_an_image, unsupported, too_large, and
    truncated or corrupt if the header itself is damaged.
    """
    image = _open(data, max_pixels)
    width, height = image.size
    turned = exif and _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def plain_jpeg(data: bytes, *, max_pixels: int = MAX_PIXELS, exif: bool = True) -> int | None:
    """The orientation (1..8) of a JPEG that any decoder reads as PIL does; None of another file.

    Another file is: no JPEG, cut short, or of colours other than grey and YCbCr.
    """
    try:
        image = _open(data, max_pixels)
    except ImageError:
        return None
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or is_cut_short(data, "JPEG"):
        return None
    if image.mode == "RGB" and _stores_rgb(image):
        return None
    return _orientation(image) if exif else 1


def _stores_rgb(image: ImageFile.ImageFile) -> bool:
    """Whether a JPEG holds red, green and blue instead of YCbCr, by libjpeg's rule: JFIF's marker
    means YCbCr; else Adobe's says which; else components named R, G and B do."""
    if "jfif" in image.info:
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    names = [layer[0] for layer in getattr(image, "layer", ())]
    return names == [ord(letter) for letter in "RGB"]


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header and judge the size."""
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    failure: ImageError | None = None
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(bytes(data[:16])) is not True:
            continue  # a string says that this build of PIL has no decoder: unsupported below
        try:
            image = factory(io.BytesIO(data), "")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError("too_large", str(error)) from error
        except _DAMAGE as error:
            failure = _damaged(data, name, error)
            continue
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "too_large", f"{width} x {height} pixels are more than the limit of {max_pixels}"
            )
        return image
    if failure is not None:
        raise failure
    if (name := known_format(data)) is not None:
        raise ImageError("unsupported", f"{name} files can't be read")
    raise ImageError("not_an_image", f"no image format begins with {bytes(data[:12])!r}")


def _damaged(data: bytes, name: str, error: BaseException) -> ImageError:
    if isinstance(error, NotImplementedError):
        return ImageError("unsupported", f"{name}: {error}")
    if is_cut_short(data, name) or "truncated" in str(error).lower():
        return ImageError("truncated", f"the {name} ends before its picture does: {error}")
    return ImageError("corrupt", f"damaged {name}: {error}")


def _check_png(data: bytes) -> None:
    """Compare the checksums of a PNG's critical chunks, which PIL skips for the pixels."""
    view = memoryview(data)
    start = 8
    while start + 12 <= len(view):
        length = int.from_bytes(view[start : start + 4], "big")
        kind = bytes(view[start + 4 : start + 8])
        end = start + 12 + length
        if end > len(view):
            return  # cut short, which PIL reports
        stored = int.from_bytes(view[end - 4 : end], "big")
        if kind[:1].isupper() and zlib.crc32(view[start + 4 : end - 4]) != stored:
            raise ImageError("corrupt", f"damaged PNG: wrong checksum of a {kind!r} chunk")
        if kind == b"IEND":
            return
        start = end


def _orientation(image: ImageFile.ImageFile) -> int:
    """1..8 as in EXIF; 1 where there is none or it can't be read."""
    if image.format == "TIFF":
        return 1  # PIL turns these itself while it decodes, and swaps the header's size
    try:
        # The base class's: PNG's own would decode the file to look for a tag after the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1  # a broken tag is no reason to lose the picture: viewers show it as stored
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    image.info.pop("transparency", None)  # dropped anyway; PIL would warn about some kinds of it
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported", f"pixels of mode {image.mode}: {error}") from error


def _to_8_bit(samples: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey samples of 16 or 32 bits or floats -> uint8; what is below 0 or NaN becomes 0.

    16-bit integers are divided by 257. Wider ones and floats don't say their range: it is the
    smallest of 0..1 (floats only), 0..255 and 0..65535 that holds the image's largest value.
    """
    if samples.dtype.kind == "u" and samples.dtype.itemsize == 2:
        return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    values = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=np.inf, neginf=0.0)
    largest = float(values.max(initial=0.0))
    ranges = (1.0, 255.0, 65535.0) if samples.dtype.kind == "f" else (255.0, 65535.0)
    for full in ranges:
        if largest <= full:
            return (values.clip(0.0) * (255.0 / full) + 0.5).astype(np.uint8)
    raise ImageError(
        "unsupported", f"grey values up to {largest:g}: only ranges up to 65535 can be shown"
    )
