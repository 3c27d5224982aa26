"""The model as its actor drives it, from decoded uint8 to RLE: images/s, without Ray or files.

The claims, on an H200 with R50 in bf16: 1,000 images/s or more at 800 x 1066 (photos of 640 x 480);
at least half of that where nearly every photo has a size of its own (400 of them); and 8 times
transformers' DetrForSegmentation in bf16 on the same device, whose best batch size counts. On a CPU
the same code runs; there images go one by one, and benchmarks/model.py is the comparison.

    python benchmarks/stream.py --device cuda --dtype bf16 --images 4000
    python benchmarks/stream.py --images 8 --no-reference

Weights are random ones that keep about 15 queries. A table first; the last line of stdout is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the weights come from tests/

import detr  # isort: skip  # before torch, whose threads it tells how to wait
import numpy as np
import torch
from numpy.typing import NDArray

from detr.inference.device_errors import is_out_of_memory
from pipeline.panoptic import rle
from pipeline.segmentation.batches import Batch
from pipeline.segmentation.model_loop import ModelStream

Photos = Sequence[NDArray[np.uint8]]
ENCODERS = 8  # threads that encode, as an actor's
REFERENCE_BATCHES = (1, 4, 8, 16)
ONE, MANY = "one size", "a long tail of sizes"
TARGETS = {"images_s": 1000.0, "tail": 0.5, "reference": 8.0}


def main() -> None:
    from benchmarks.made_maps import machine
    from tests.random_weights import write_official_r50

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts")
    parser.add_argument("--no-reference", action="store_true", help="leave transformers out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/r50.pth"
        write_official_r50(weights)
        model = detr.load(weights, device=arguments.device, dtype=arguments.dtype)
        rates = {}
        for name in (ONE, MANY):
            photos = made_photos(arguments.images, varied=name == MANY)
            rates[name] = best(lambda photos=photos: stream(model, photos), arguments)
        if not arguments.no_reference:
            photos = made_photos(arguments.images, varied=False)
            rates["transformers"] = reference_rate(weights, photos, arguments)
    for name, rate in rates.items():
        print(f"{name:24}{rate:10.2f} images/s")
    checks = {"images_s": rates[ONE], "tail": rates[MANY] / rates[ONE]}
    if "transformers" in rates:
        checks["reference"] = rates[ONE] / rates["transformers"]
    for name, value in checks.items():
        print(f"{name:24}{value:10.2f}, target on an H200 {TARGETS[name]:g}")
    report = {"benchmark": "stream", **machine(), "device": arguments.device}
    print(json.dumps({**report, "dtype": str(model.dtype), "rates": rates, "checks": checks}))


def best(run: Callable[[], object], arguments: argparse.Namespace) -> float:
    """Images/s of the best round, after one that warms up."""
    run()
    seconds = []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return arguments.images / min(seconds)


def made_photos(count: int, *, varied: bool) -> Photos:
    """640 x 480, or cut to 400 sizes and more; few are drawn, for 4,000 would take gigabytes."""
    from tests.random_weights import made_images

    drawn = made_images(8, 5, 480)
    rng = np.random.default_rng(0)
    photos = []
    for number in range(count):
        photo = drawn[number % len(drawn)]
        height, width = int(rng.integers(360, 480)), int(rng.integers(480, 640))
        photos.append(photo[:height, :width] if varied else photo)
    return photos


def stream(model: Any, photos: Photos) -> None:
    """All photos through the model and the encoder, in the batches that an actor would make."""
    holder = ModelStream(model, None)
    with ThreadPoolExecutor(ENCODERS) as pool:
        encoded = [
            pool.submit(rle.encode, answer.segment_map, [s.id for s in answer.segments])
            for _, answers in holder.run(batches(model, holder, photos), Counter())
            for answer in answers
            if isinstance(answer, detr.Panoptic)
        ]
        assert len(encoded) == len(photos), "an image did not fit the device"
        for future in encoded:
            future.result()


def batches(model: detr.Predictor, holder: ModelStream, photos: Photos) -> Iterator[Batch]:
    waiting: dict[tuple[int, int], Batch] = defaultdict(Batch)
    for index, photo in enumerate(photos):
        height, width = photo.shape[:2]
        processed = model.processed_size(height, width)
        batch = waiting[processed]
        batch.indices.append(index)
        batch.images.append(photo)
        batch.sizes.append((height, width))
        if len(batch.images) >= holder.most(processed):
            yield waiting.pop(processed)
    yield from waiting.values()


def reference_rate(weights: str, photos: Photos, arguments: argparse.Namespace) -> float:
    """Images/s of transformers at its best batch size: from uint8 on the device to segment maps."""
    run = reference(weights, arguments)
    rates = []
    for size in REFERENCE_BATCHES if arguments.device != "cpu" else (1,):
        parts = [photos[start : start + size] for start in range(0, len(photos), size)]
        try:
            rates.append(best(lambda parts=parts: [run(part) for part in parts], arguments))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    return max(rates)


def reference(weights: str, arguments: argparse.Namespace) -> Callable[[Photos], Any]:
    """Its forward and its own merge, after a resize on the device, which its processor lacks."""
    from transformers import DetrImageProcessor

    from detr.inference.preprocess import normalize
    from detr.weights.checkpoint import open_checkpoint
    from tests.detr import hugging_face

    own = open_checkpoint(weights).weights()
    model = hugging_face.make(hugging_face.R50)
    model.load_state_dict(hugging_face.from_official(own, model.state_dict()))
    dtype = torch.bfloat16 if arguments.dtype == "bf16" else torch.float32
    model.to(arguments.device, dtype)
    processor = DetrImageProcessor()

    @torch.inference_mode()
    def run(photos: Photos) -> Any:
        pixels = torch.from_numpy(np.stack(photos)).to(arguments.device)
        resized = torch.nn.functional.interpolate(
            normalize(pixels), size=(800, 1066), mode="bilinear", antialias=True
        )
        outputs = model(pixel_values=resized.to(dtype))
        for name in ("logits", "pred_masks"):
            outputs[name] = outputs[name].float()
        return processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.85,
            target_sizes=[photo.shape[:2] for photo in photos],
            label_ids_to_fuse=set(),
        )

    return run


if __name__ == "__main__":
    main()
