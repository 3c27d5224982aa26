"""The peak memory of one decode, in bytes a pixel, is what docs/inputs.md says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 2048
SLACK = 1.0  # bytes a pixel: what a process allocates once
FILES = {
    "JPEG": ("JPEG", {}),
    "JPEG, turned": (
        "JPEG",
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"},
    ),
    "PNG": ("PNG", {"compress_level": 1}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "AVIF": ("AVIF", {"speed": 10}),
    "WebP": ("WEBP", {"method": 0}),
    "JPEG 2000": ("JPEG2000", {"irreversible": True, "quality_layers": [50]}),
}
# Each file in a fork of its own, whose peak begins with what is resident at the fork.
PROGRAM = """
import os, resource, sys
from pathlib import Path
from detr.inference.decode import decode_image
for path in sys.argv[1:]:
    if not os.fork():
        data = Path(path).read_bytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode_image(data)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print((after - before) * 1024, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Bytes a pixel by the name of the row in the docs."""
    folder = tmp_path_factory.mktemp("peaks")
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    paths = [folder / name for name in FILES]
    for path, (format, options) in zip(paths, FILES.values(), strict=True):
        photo.save(path, format, **options)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    grown = map(int, done.stdout.split())
    return {name: size / SIDE**2 for name, size in zip(FILES, grown, strict=True)}


@pytest.mark.parametrize("name", FILES)
def test_a_decode_takes_no_more_than_the_docs_say(peaks: dict[str, float], name: str) -> None:
    page = Path("docs/inputs.md").read_text()
    stated = re.search(rf"^\| {name} \| (\d+) \|$", page, re.MULTILINE)
    assert stated is not None
    assert 3 < peaks[name] < int(stated[1]) + SLACK
