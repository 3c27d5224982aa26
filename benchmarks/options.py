"""What each option that changes numbers costs in PQ and saves in time, on the demo model.

Scenes are enlarged four times and stored as JPEGs, so that they are larger than the model's input,
as photos are; their truth is enlarged alike, and smaller masks are enlarged before they are scored.
The time is CPU time of one process from the bytes to the map, on a model of two million parameters:
it says which part an option touches, not what R50 gains (benchmarks/model.py, throughput.py).

    python benchmarks/options.py [--images 240] [--weights FILE]

A table first; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

import detr
from benchmarks.demo_scenes import DEMO_THRESHOLD, DEMO_WEIGHTS, made_scenes, panoptic_quality
from benchmarks.measure import print_result
from detr.inference.decode import decode_image, header_size
from detr.panoptic import Panoptic

ENLARGED = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "--dtype bf16": {"dtype": "bf16"},
    "--compile": {"compile": True},
    "--size-quantum 32": {"size_quantum": 32},
    "--decode draft": {"draft": True},
    "--output-size processed": {"output_size": "processed"},
    "--output-size quarter": {"output_size": "quarter"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--weights", default=str(DEMO_WEIGHTS))
    arguments = parser.parse_args()
    scenes = made_scenes(arguments.images)
    files = [jpeg(scene.image) for scene in scenes]
    truth = [(np.kron(s.segment_map, ONES), s.segments) for s in scenes]
    results: dict[str, dict[str, Any]] = {}
    plain: list[Panoptic] = []
    for name, options in OPTIONS.items():
        settings = {key: value for key, value in options.items() if key != "draft"}
        model = detr.load(arguments.weights, device="cpu", threshold=DEMO_THRESHOLD, **settings)
        for data in files[:12]:  # compiles, and fills caches
            segment(model, data, draft="draft" in options)
        started = time.process_time()
        answers = [segment(model, data, draft="draft" in options) for data in files]
        seconds = time.process_time() - started
        results[name] = {
            **panoptic_quality(answers, truth),
            "cpu_ms": round(1000 * seconds / len(files), 2),
        }
        plain = plain or answers
    base = results["default"]
    print(f"{len(files)} scenes as JPEGs, {Path(arguments.weights).name}; PQ in points")
    print(f"{'':26}{'PQ':>8}{'change':>8}{'things':>8}{'stuff':>8}{'CPU ms':>9}")
    for name, found in results.items():
        print(
            f"{name:26}{found['All']:8.2f}{found['All'] - base['All']:+8.2f}{found['Things']:8.2f}"
            f"{found['Stuff']:8.2f}{found['cpu_ms']:9.1f}"
        )
    weights = Path(arguments.weights).name
    print_result("options", images=len(files), weights=weights, results=results)


ONES = np.ones((ENLARGED, ENLARGED), np.int32)


def jpeg(image: np.ndarray) -> bytes:
    height, width = image.shape[:2]
    out = io.BytesIO()
    large = Image.fromarray(image).resize(
        (width * ENLARGED, height * ENLARGED), Image.Resampling.BICUBIC
    )
    large.save(out, "JPEG", quality=92)
    return out.getvalue()


def segment(model: detr.Predictor, data: bytes, *, draft: bool) -> Panoptic:
    size = header_size(data)
    wanted = model.processed_size(*size) if draft else None
    return model.segment([decode_image(data, at_least=wanted)], [size])[0]


if __name__ == "__main__":
    main()
