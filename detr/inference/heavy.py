"""Files that may take hours to decode: recognised by the header, decoded in a process with a limit.

A limit on pixels bounds memory, not time: a JPEG of 0.8 MB may repeat a scan of 12 megapixels
30,000 times. Decoding time is estimated before decoding (scans times pixels, the bytes that a PNG
inflates to, formats that PIL decodes in Python). A file that may take more than a few seconds is
decoded by another process, which an alarm ends after `SECONDS`. All other files are decoded in
threads, since starting a process takes longer than decoding.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from detr.inference.bare import png_parts

SECONDS: Final = 10
SCANNED_PIXELS: Final = 4_000_000_000  # scans times pixels: 5 s at most; a photo has 10 scans
INFLATED_BYTES: Final = 1_000_000_000
PNG_CHUNKS: Final = 300_000  # PIL takes 3 us for each
PYTHON_PIXELS: Final = 2_000_000  # of formats that PIL decodes in Python, about 1 us each
# Of formats whose decoders may take a microsecond per pixel, even for a small file.
CODED_PIXELS: Final = {"JPEG2000": 20_000_000, "AVIF": 50_000_000}
_START_SECONDS: Final = 60  # to start the process on a busy machine
_BITS: Final = {"1": 1, "L": 8, "P": 8, "LA": 16, "I;16": 16, "I;16B": 16, "RGB": 24, "RGBA": 32}
_PLAIN: Final = re.compile(rb"P[123]\s")
_PROGRAM: Final = "from detr.inference.decode import decode_for_another; decode_for_another()"


def heavy_work(data: bytes, name: str, mode: str, pixels: int) -> str | None:
    """Why decoding may take longer than a few seconds; None for nearly every file.

    `name` and `mode` are PIL's format and mode; `pixels` is width times height, from the header.
    """
    match name:
        case "JPEG" | "MPO":
            # Within a scan's data 0xFF is followed by 0 or a restart marker only, so FF DA is a
            # scan's header.
            scans = data.count(b"\xff\xda")
            if scans * pixels > SCANNED_PIXELS:
                return f"{scans} scans of {pixels} pixels"
        case "PNG":
            inflated = pixels * _BITS.get(mode, 64) // 8
            if inflated > INFLATED_BYTES:
                return f"{inflated} bytes of pixels"
            if len(data) > 12 * PNG_CHUNKS and len(png_parts(data, PNG_CHUNKS)) == PNG_CHUNKS:
                return f"more than {PNG_CHUNKS} chunks"
        case "JPEG2000" | "AVIF":
            if pixels > CODED_PIXELS[name]:
                return f"{pixels} pixels of {name}"
        case "BMP" | "DIB":
            if pixels > PYTHON_PIXELS and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
                return f"{pixels} pixels as run lengths"
        case "PPM":
            plain = _PLAIN.match(data) is not None
            fields = re.split(rb"\s+", re.sub(rb"#[^\r\n]*", b"", data[:1024]), maxsplit=4)
            scaled = data[:2] in (b"P5", b"P6") and fields[3:4] not in ([b"255"], [b"65535"])
            if (plain and max(pixels, len(data)) > PYTHON_PIXELS) or (
                scaled and pixels > PYTHON_PIXELS
            ):
                return f"{pixels} pixels as text or of an unusual range"
    return None


class TooSlowError(Exception):
    """The process was ended by its alarm."""


def decode_in_process(data: bytes, settings: dict[str, Any]) -> NDArray[np.uint8] | dict[str, str]:
    """`decode.decode_image` in another process: (H, W, 3) uint8, or an ImageError's code, message.

    `settings` are the keyword arguments. Raises TooSlowError after `SECONDS` of decoding.
    """
    path = os.pathsep.join(part or os.getcwd() for part in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, json.dumps(settings)],
            input=data,
            capture_output=True,
            timeout=SECONDS + _START_SECONDS,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TooSlowError from None
    if done.returncode == -signal.SIGALRM:
        raise TooSlowError
    if done.returncode:
        return {"code": "corrupt", "message": "the process that decoded it crashed"}
    head, _, pixels = done.stdout.partition(b"\n")
    answer = json.loads(head)
    if "code" in answer:
        return answer
    return np.frombuffer(bytearray(pixels), np.uint8).reshape(answer["shape"])


def start_alarm() -> None:
    """Let a signal end this process after `SECONDS`, also within native code."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
