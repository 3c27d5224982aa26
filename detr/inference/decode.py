"""The bytes of any file -> RGB pixels, or an `ImageError` that says what is wrong with the file.

Invariant: for any bytes, the result is a whole (H, W, 3) picture or an `ImageError`. The size is
checked in the header, before any pixel is decoded, so a small file can't take gigabytes. PIL's file
plugins are called directly, because `Image.open` uses global state that threads share (the size
limit, warning filters) and tries formats that run other programs (EPS) or aren't pictures.

RGB is the result of PIL's `convert("RGB")`, as in upstream's loader: transparency is dropped and
the colour beneath is used (nothing is composited), CMYK is converted without a profile, and an
animation gives its first frame. Two deviations: samples of more than 8 bits are scaled (PIL clips
them to white), and a photo's orientation tag is applied.

No decoder notices damage in the middle of a JPEG; sizes and checksums are compared when files are
fetched. If PIL refuses a file for its metadata, the file is read without them (`bare`). The time to
decode a file has a limit (`heavy`).
"""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zlib
from collections.abc import Callable
from typing import Any, Final

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

from detr.inference.bare import (
    MOST_PARTS,
    bare,
    header_is_endless,
    is_sound,
    jpeg_parts,
    png_parts,
    repeats_its_tags,
    with_end,
)
from detr.inference.formats import is_cut_short, known_format, may_begin, no_picture
from detr.inference.heavy import (
    SECONDS,
    TooSlowError,
    decode_in_process,
    heavy_work,
    start_alarm,
)

# PIL's limit, twice the number of pixels at which PIL warns: 0.5 GB as RGB.
MAX_PIXELS: Final = 178_956_970
INFLATED_BYTES: Final = 1 << 20  # in one step, where a zlib stream is only checked

_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

# Tags of a TIFF.
_SUBFILE: Final = 254  # bit 0: a page of reduced size
_SAMPLE_BITS: Final = 258
_COMPRESSION: Final = 259  # 1: none
_PHOTOMETRIC: Final = 262  # 0: white is zero
_PLANES: Final = 284  # 2: one plane of samples after the other
_SUB_IFDS: Final = 330
_DNG_VERSION: Final = 50706

_ORIENTATION: Final = 274  # the EXIF tag; `_UPRIGHT` has the operation for each of its values
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Exceptions that PIL's parsers raise on damaged bytes. Not `Exception`, so that most bugs in this
# file are not reported as damaged files.
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


# PIL's messages for sound files of a kind that PIL can't decode; exception types vary.
_NO_CODE: Final = re.compile(
    r"unsupported|not (yet )?supported|not available|cannot handle \d+-(bit|layer)|"
    r"unknown (pixel mode|data organization)|samples per pixel|unable to determine J2K image mode",
    re.IGNORECASE,
)


# (H, W, 3) -> an uninitialised C-ordered uint8 array of that shape.
Memory = Callable[[tuple[int, ...]], NDArray[np.uint8]]


def new_memory(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.empty(shape, np.uint8)


class ImageError(Exception):
    """The bytes of one file give no picture; `code` and `message` say why.

    `code` is one of empty, truncated, corrupt, not_an_image, unsupported, too_large, too_thin,
    too_slow.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that it can be pickled
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    exif: bool = True,
    at_least: tuple[int, int] | None = None,
    memory: Memory = new_memory,
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, C-ordered, in an array made by `memory`.

    `exif`: apply the orientation tag of EXIF; TIFF's orientation tag is always applied. `at_least`
    (height, width): a JPEG may be decoded at a half, a quarter or an eighth of its size that is not
    below this size (PIL's "draft" mode: half the time).

    Raises ImageError. Thread-safe; PIL releases the GIL while it decodes.
    """
    image, file = _open(data, max_pixels)
    name = image.format or ""
    if (why := heavy_work(file, name, image.mode, image.width * image.height)) is not None:
        settings = {"max_pixels": max_pixels, "exif": exif, "at_least": at_least}
        return _copied(_elsewhere(data, settings, why), memory)
    return _copied(_decode(image, file, exif=exif, at_least=at_least), memory)


def _copied(pixels: NDArray[np.uint8], memory: Memory) -> NDArray[np.uint8]:
    array = memory(pixels.shape)
    np.copyto(array, pixels)
    return array


def _decode(
    image: ImageFile.ImageFile, data: bytes, *, exif: bool, at_least: tuple[int, int] | None
) -> NDArray[np.uint8]:
    """The pixels (H, W, 3), read-only."""
    if image.format == "PNG":
        _check_png(data)
    orientation = _orientation(image) if exif else 1
    size = None
    if at_least is not None:  # of the upright picture
        height, width = at_least if orientation < 5 else at_least[::-1]
        size = (width, height)
    rgb = _to_rgb(_loaded(image, data, size))
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.asarray(rgb)


def _loaded(
    image: ImageFile.ImageFile, data: bytes, size: tuple[int, int] | None
) -> ImageFile.ImageFile:
    """The image with its pixels; read from a mended copy if PIL can't load `data`."""
    name = image.format or ""

    def load(opened: ImageFile.ImageFile) -> ImageFile.ImageFile:
        if size is not None:
            opened.draft(None, size)
        opened.load()
        return opened

    try:
        return load(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", str(error)) from error
    except _DAMAGE as error:
        for copy in _mended(data, name):
            try:
                return load(_factory(name)(io.BytesIO(copy), ""))
            except _DAMAGE:
                pass
        raise _damaged(data, name, error) from error


def _mended(data: bytes, name: str) -> list[bytes]:
    """Copies with the same pixels of a file that PIL can't load; PIL may load one of the copies."""
    if name == "PNG":
        copy = bare(data, name, _accepts(name))
        return [] if copy is None else [copy]
    if name == "JPEG" and (ended := with_end(data)) is not None and _all_there(ended):
        return [ended[0]]
    return []


def _all_there(copies: list[bytes]) -> bool:
    """Whether JPEGs that differ only after their last block have the same pixels."""
    pixels = []
    for copy in copies:
        image = _factory("JPEG")(io.BytesIO(copy), "")
        try:
            image.load()
        except _DAMAGE:
            return False
        pixels.append(image.tobytes())
        if pixels[-1] != pixels[0]:
            return False
    return True


def decode_for_another() -> None:
    """The process that `heavy.decode_in_process` starts: a file on stdin, its pixels on stdout."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    data = sys.stdin.buffer.read()
    start_alarm()
    out = sys.stdout.buffer
    try:
        image, file = _open(data, settings["max_pixels"])
        least = settings["at_least"]
        pixels = _decode(
            image, file, exif=settings["exif"], at_least=tuple(least) if least else None
        )
    except ImageError as error:
        out.write(json.dumps({"code": error.code, "message": error.message}).encode() + b"\n")
        return
    out.write(json.dumps({"shape": pixels.shape}).encode() + b"\n")
    out.write(pixels.tobytes())


def _elsewhere(data: bytes, settings: dict[str, Any], why: str) -> NDArray[np.uint8]:
    try:
        answer = decode_in_process(data, settings)
    except TooSlowError:
        raise ImageError("too_slow", f"{why} were not decoded in {SECONDS} seconds") from None
    if isinstance(answer, dict):
        raise ImageError(**answer)
    return answer


def header_size(data: bytes, *, max_pixels: int = MAX_PIXELS, exif: bool = True) -> tuple[int, int]:
    """(height, width) of the result of `decode_image`, from the header alone.

    Raises ImageError: empty, not_an_image, unsupported, too_large, too_slow, and truncated or
    corrupt if the header is damaged.
    """
    image, _ = _open(data, max_pixels)
    width, height = image.size
    turned = exif and _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def stored_orientation(data: bytes) -> int:
    """The orientation (1..8) that `decode_image` applies; 1 without a tag. Raises ImageError."""
    return _orientation(_open(data, MAX_PIXELS)[0])


def plain_jpeg(data: bytes, *, max_pixels: int = MAX_PIXELS, exif: bool = True) -> int | None:
    """The orientation (1..8) of a JPEG that any decoder reads as PIL does; None for other files.

    Other files are: not a JPEG, cut short, of colours other than grey and YCbCr, too slow to decode
    (`heavy`), or with metadata that PIL can't read (`bare`).
    """
    try:
        image, file = _open(data, max_pixels)
    except ImageError:
        return None
    if file is not data or heavy_work(data, "JPEG", image.mode, image.width * image.height):
        return None
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or is_cut_short(data, "JPEG"):
        return None
    if image.mode == "RGB" and _stores_rgb(image):
        return None
    return _orientation(image) if exif else 1


def _stores_rgb(image: ImageFile.ImageFile) -> bool:
    """Whether a JPEG stores RGB instead of YCbCr, by libjpeg's rule.

    YCbCr if there is a JFIF marker; else as Adobe's marker says; else RGB if the components are
    named R, G and B.
    """
    if "jfif" in image.info:
        return False
    if "adobe" in image.info:
        return image.info.get("adobe_transform") == 0
    names = [layer[0] for layer in getattr(image, "layer", ())]
    return names == [ord(letter) for letter in "RGB"]


def _open(data: bytes, max_pixels: int) -> tuple[ImageFile.ImageFile, bytes]:
    """Parse the header and check the size; returns also the parsed file: `data` or a bare copy."""
    if not data:
        raise ImageError("empty", "the file has 0 bytes")
    failure: ImageError | None = None
    for name in _FORMATS:
        if not _begins_as(data, name):
            continue
        file = data
        if header_is_endless(data, name):
            file = bare(data, name, lambda _: False) or data
            if header_is_endless(file, name):
                raise ImageError("too_slow", f"the {name}'s header promises endless work")
        try:
            image, file = _read_header(file, name)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError("too_large", str(error)) from error
        except _DAMAGE as error:
            failure = _damaged(data, name, error)
            continue
        if name == "TIFF":
            _refuse_tiff(image)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "too_large", f"{width} x {height} pixels are more than the limit of {max_pixels}"
            )
        return image, file
    if failure is not None:
        raise failure
    if (known := known_format(data)) is not None:
        raise ImageError("unsupported", f"{known} files can't be read")
    raise ImageError("not_an_image", no_picture(data))


def begins_as_picture(data: bytes) -> bool:
    """Whether the first bytes are those of a picture, also of a format that can't be decoded."""
    return any(_begins_as(data, name) for name in _FORMATS) or known_format(data) is not None


def _begins_as(data: bytes, name: str) -> bool:
    accept = Image.OPEN[name][1]
    # PIL returns a string if this build of PIL has no decoder: unsupported.
    if accept is None or accept(bytes(data[:16])) is not True:
        return False
    if name in ("AVIF", "TIFF"):  # HEIC and raw files begin so, too
        return known_format(data) in ("AVIF", "TIFF", "BigTIFF")
    return may_begin(data, name)


def _factory(name: str) -> Callable[[io.BytesIO, str], ImageFile.ImageFile]:
    return Image.OPEN[name][0]


def _read_header(data: bytes, name: str) -> tuple[ImageFile.ImageFile, bytes]:
    """The image, and the file that PIL reads: `data` or a bare copy. Raises PIL's exceptions."""
    try:
        return _factory(name)(io.BytesIO(data), ""), data
    except _DAMAGE:
        copy = bare(data, name, _accepts(name))
        if copy is None or not _accepts(name)(copy):
            raise
        return _factory(name)(io.BytesIO(copy), ""), copy


def _accepts(name: str) -> Callable[[bytes], bool]:
    def accepts(file: bytes) -> bool:
        try:
            _factory(name)(io.BytesIO(file), "")
        except _DAMAGE:
            return False
        return True

    return accepts


def _damaged(data: bytes, name: str, error: BaseException) -> ImageError:
    reason = re.sub(r"\bb'([^']*)'", r"\1", str(error))  # PIL prints names of chunks as b'IDAT'
    if isinstance(error, NotImplementedError) or _NO_CODE.search(str(error)):
        return ImageError("unsupported", f"{name}: {reason}")
    if name == "TIFF" and isinstance(error.__cause__, KeyError):  # of PIL's compression table
        return ImageError("unsupported", f"TIFF: unknown compression {reason}")
    if name == "PNG" and data[12:16] == b"CgBI":
        return ImageError("unsupported", "PNG of Apple's own kind (CgBI)")
    if is_cut_short(data, name) or "truncated" in str(error).lower():
        return ImageError("truncated", f"the {name} ends before its picture does: {reason}")
    if name == "JPEG" and (process := _rare_process(data)) is not None:
        return ImageError("unsupported", f"JPEG of process SOF{process}: {reason}")
    return ImageError("corrupt", f"damaged {name}: {reason}")


def _rare_process(data: bytes) -> int | None:
    """N of a JPEG's SOFN frame header, unless that is sequential or progressive Huffman."""
    frames = [
        part.kind[0] - 0xC0
        for part in jpeg_parts(data, MOST_PARTS)
        if 0xC3 <= part.kind[0] <= 0xCF and part.kind[0] not in (0xC4, 0xC8, 0xCC)
    ]
    return frames[0] if frames else None


def _refuse_tiff(image: ImageFile.ImageFile) -> None:
    """Raises ImageError for TIFFs that PIL reads as something other than the picture."""
    tags: Any = getattr(image, "tag_v2", {})
    if _is_preview(image):
        raise ImageError("unsupported", "camera raw files can't be read, only their previews")
    wide = any(bits > 8 for bits in tags.get(_SAMPLE_BITS, ()))
    if wide and tags.get(_PLANES) == 2 and tags.get(_COMPRESSION, 1) == 1:  # read as 8 bits
        raise ImageError("unsupported", "TIFF: uncompressed planes of more than 8 bits")


def _is_preview(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF is a camera's raw file, whose first page (which PIL reads) is a preview."""
    tags: Any = getattr(image, "tag_v2", {})
    kind = tags.get(_SUBFILE, 0)
    reduced = isinstance(kind, int) and bool(kind & 1) and _SUB_IFDS in tags
    return reduced or _DNG_VERSION in tags


def _check_png(data: bytes) -> None:
    """Raise ImageError if a critical chunk of a PNG is damaged: PIL checks no IDAT checksums."""
    if data[25] == 3 and b"PLTE" not in data:  # PIL would show black
        raise ImageError("corrupt", "damaged PNG: it has no palette")
    view, parts = memoryview(data), png_parts(data)
    if any(part.kind[:1].isupper() and not is_sound(view, part) for part in parts):
        raise ImageError("corrupt", "damaged PNG: the checksum of a chunk is wrong")
    end = parts[-1].end if parts else len(data)
    if len(data) >= end + 12 and data[end + 4 : end + 8] == b"IDAT" and parts[-1].kind != b"IEND":
        pixels = [view[part.start + 8 : part.end - 4] for part in parts if part.kind == b"IDAT"]
        if not _inflates([*pixels, view[end + 8 :]]):
            error = OSError("truncated, its pixels go on behind the file's end")
            raise _damaged(data, "PNG", error)


def _inflates(pieces: list[memoryview]) -> bool:
    """Whether a zlib stream is complete, with the right checksum at its end."""
    stream = zlib.decompressobj()
    try:
        for piece in pieces:
            stream.decompress(piece, INFLATED_BYTES)
            while stream.unconsumed_tail and not stream.eof:
                stream.decompress(stream.unconsumed_tail, INFLATED_BYTES)
    except zlib.error:
        return False
    return stream.eof


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's orientation, 1..8; 1 if there is no tag or no readable one."""
    if image.format == "TIFF":
        return 1  # PIL applies TIFF's orientation when it decodes, and swaps the header's size
    if repeats_its_tags(image.info.get("exif", b"").removeprefix(b"Exif\0\0")):
        return 1
    try:
        # `getexif` of the base class: PNG's would decode the file to find a tag after the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1  # as viewers do with a broken tag
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey(image)).convert("RGB")
    image.info.pop("transparency", None)  # dropped anyway; PIL would warn about some kinds of it
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError("unsupported", f"pixels of mode {image.mode}: {error}") from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W) uint8 of an image of one wide channel.

    PIL applies two of a TIFF's tags only to samples of 8 bits: that white is zero, and that the
    samples have 12 bits.
    """
    tags: Any = getattr(image, "tag_v2", {})
    samples = np.asarray(image)
    if tags.get(_SAMPLE_BITS) == (12,):
        samples = (samples.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    grey = _to_8_bit(samples)
    return 255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey


def _to_8_bit(samples: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey samples of 16 or 32 bits or floats -> uint8; negative values and NaN become 0.

    16-bit integers are divided by 257. Files of wider integers and of floats don't state a range:
    the range is the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds all values.
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
