"""CPU cost of an image on its way in and out: header, decode, resize, merge, RLE.

    python benchmarks/images.py [--threads 1]

The claim: where the device resizes, an image of 640 x 480 costs at most 6 ms of CPU (header, decode
and RLE together). The merge is measured beside upstream's way, which interpolates every mask to
full size. Data is made: photo-like JPEGs of about 150 KB, smooth masks of 15 queries. CPU seconds
of one process, best of several rounds.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import cpu_ms, print_result
from detr.categories import COCO_PANOPTIC
from detr.inference.decode import decode_image, header_size
from detr.inference.postprocess import merge
from detr.inference.preprocess import resize, resize_on_device
from detr.panoptic import Panoptic
from pipeline.panoptic import rle

HEIGHT, WIDTH = 480, 640
PROCESSED = (800, 1066)
QUERIES = 15
LIMIT_MS = 6.0


def photo(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A JPEG with detail at every scale, as photos have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / cells**0.5
    total += rng.normal(0, 6, total.shape)  # a sensor's noise
    image = (255 * (total - total.min()) / np.ptp(total)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95)
    return out.getvalue()


def masks(seed: int) -> Tensor:
    """(15, 200, 267) smooth mask logits, as the mask head gives for a 640 x 480 photo."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, QUERIES, 12, 16, generator=generator) * 6
    return interpolate(coarse, (200, 267), mode="bicubic")[0]


def merged(logits: Tensor) -> Panoptic:
    things = [category.id for category in COCO_PANOPTIC if category.isthing]
    return merge(
        logits,
        things[:QUERIES],
        [0.9] * QUERIES,
        categories=COCO_PANOPTIC,
        processed_size=PROCESSED,
        original_size=(HEIGHT, WIDTH),
    )


def upstream(logits: Tensor) -> Tensor:
    """Only the first round of upstream's merge: full-size masks, softmax over the queries."""
    full = interpolate(logits[None], PROCESSED, mode="bilinear", align_corners=False)[0]
    return full.flatten(1).T.softmax(-1).argmax(-1)


def mean_ms(function: Callable[[Any], Any], items: Sequence[Any], rounds: int = 5) -> float:
    """CPU milliseconds per item, best round."""
    return cpu_ms(lambda: [function(item) for item in items], rounds=rounds) / len(items)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    torch.set_num_threads(parser.parse_args().threads)

    photos = [photo(seed) for seed in range(8)]
    large = [photo(0, 3000, 4000)]
    pixels = [torch.from_numpy(np.array(decode_image(data)))[None] for data in photos]
    logits = [masks(seed) for seed in range(4)]
    maps = [merged(one) for one in logits]
    ids = [[segment.id for segment in panoptic.segments] for panoptic in maps]
    results = {
        "header": mean_ms(header_size, photos),
        "decode": mean_ms(decode_image, photos),
        "rle": mean_ms(lambda pair: rle.encode(pair[0].segment_map, pair[1]),
                       list(zip(maps, ids, strict=True))),
        "resize_pil": mean_ms(lambda image: resize(image, PROCESSED), pixels),
        "resize_tensor": mean_ms(lambda image: resize_on_device(image, PROCESSED), pixels[:2], 2),
        "merge": mean_ms(merged, logits),
        "merge_upstream": mean_ms(upstream, logits, 2),
        "decode_12_megapixels": mean_ms(decode_image, large, 3),
    }  # fmt: skip
    total = results["header"] + results["decode"] + results["rle"]
    print(f"CPU ms an image of {WIDTH} x {HEIGHT}, torch on {torch.get_num_threads()} thread(s)")
    for name, value in results.items():
        print(f"  {name:22}{value:8.2f}")
    print(f"  header + decode + rle {total:8.2f}   limit {LIMIT_MS}")
    print_result(
        "images",
        jpeg_kb=round(float(np.mean([len(data) for data in photos])) / 1000, 1),
        cpu_ms={name: round(value, 3) for name, value in results.items()},
        in_and_out_ms=round(total, 3),
        limit_ms=LIMIT_MS,
        holds=total <= LIMIT_MS,
    )


if __name__ == "__main__":
    main()
