"""How fast is the GPU path? The steps of benchmarks/gpu.py whose promise is a rate."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

import detr
from benchmarks.gpu_bench import Bench, Photo, Step, batches_of, stream_of
from detr.inference.decode import Memory
from detr.inference.predictor import MOST_IMAGES
from detr.panoptic import Panoptic
from pipeline.panoptic import rle
from pipeline.segmentation.batches import Decoding, UnitDecoder
from pipeline.segmentation.model_loop import ModelStream

Found = tuple[bool, dict[str, Any]]
UNIT = 512  # images of a shard
LEAST = {"H200": 600.0, "H100": 450.0}  # images/s at one size
LEAST_TAIL, LEAST_BUSY, LEAST_FACTOR = 0.70, 0.85, 10.0


def encode(answer: Any) -> int:
    assert isinstance(answer, Panoptic), answer
    return len(rle.encode(answer.segment_map, [s.id for s in answer.segments]).counts)


def stream(model: Any, photos: Sequence[Photo]) -> tuple[float, float]:
    """(images/s, CPU ms an image of the thread that drives the model), photos to RLE, one unit."""
    driven = stream_of(model)
    started, worked = time.perf_counter(), time.thread_time()
    with ThreadPoolExecutor(8) as pool:
        encoded = [
            pool.submit(encode, answer)
            for _, answers in driven.run(batches_of(driven, photos), Counter())
            for answer in answers
        ]
        worked = time.thread_time() - worked
        for future in encoded:
            future.result()
    return len(photos) / (time.perf_counter() - started), 1000 * worked / len(photos)


def one_size(bench: Bench) -> Found:
    """Decoded photos to RLE in units of one size."""
    model = bench.r50("bf16")
    photos = [bench.photos[i % 16] for i in range(bench.pick(UNIT, 8))]
    stream(model, photos)
    rates, hosts, ends = [], [], time.monotonic() + bench.pick(9, 0)
    while time.monotonic() < ends or not rates:
        rate, host = stream(model, photos)
        rates.append(rate)
        hosts.append(host)
    bench.kept["rate"] = rate = float(np.median(rates))
    busy = share_at_work(bench, lambda: stream(model, photos))
    least = least_rate()
    found = {"images_s": round(rate, 1), "least": least, "host_ms": round(min(hosts), 3)}
    found |= {"images": len(photos) * len(rates), "busy": busy}
    return bench.judge(rate >= least and (busy or 0) >= LEAST_BUSY), found


def least_rate() -> float:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((rate for card, rate in LEAST.items() if card in name), 0.0)


def share_at_work(bench: Bench, run: Any) -> float | None:
    """The share of the time in which a kernel or a copy ran, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    if bench.rehearse:
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        run()
        torch.cuda.synchronize()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    if not spans:
        return None
    worked, end = 0.0, spans[0][0]
    for start, stop in spans:
        worked += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return round(worked / (end - spans[0][0]), 3)


def tail_photos(bench: Bench, count: int) -> list[Photo]:
    """Photos of free aspect ratio: nearly every one has a size of its own."""
    rng = np.random.default_rng(0)
    photos = []
    for number in range(count):
        photo = bench.photos[number % 16]
        height, width = photo.shape[:2]
        h, w = int(rng.integers(height * 3 // 4, height)), int(rng.integers(width * 3 // 4, width))
        photos.append(bench.decoded(photo[:h, :w]))
    return photos


def tail(bench: Bench) -> Found:
    """Units of 512 photos of a long tail of sizes, cold and warm, exact and in steps of 32."""
    photos = tail_photos(bench, bench.pick(UNIT, 8))
    found: dict[str, Any] = {}
    for quantum in (32, 1):
        model = bench.r50("bf16", size_quantum=quantum)
        if quantum == 1:
            photos = photos[: bench.pick(128, 4)]  # each of them a new shape: seconds
        shapes = {(model.processed_size(*photo.shape[:2])) for photo in photos}
        cold, _ = stream(model, photos)
        warm = max(stream(model, photos)[0] for _ in range(2))
        seconds = len(photos) / cold - len(photos) / warm
        found[f"quantum_{quantum}"] = {
            "cold_images_s": round(cold, 1),
            "warm_images_s": round(warm, 1),
            "sizes": len(shapes),
            "ms_a_new_size": round(1000 * seconds / len(shapes), 1),
        }
    rate = bench.kept.get("rate") or one_size(bench)[1]["images_s"]
    share = found["quantum_32"]["warm_images_s"] / rate
    return bench.judge(share >= LEAST_TAIL), {"share_of_one_size": round(share, 3), **found}


def files(bench: Bench) -> Found:
    """JPEG bytes to RLE as an actor does it: threads decode ahead, threads encode behind."""
    model = bench.r50("bf16")
    photo = Image.fromarray(bench.photos[0])
    large = photo.resize((bench.pick(4000, 160), bench.pick(3000, 120)))
    found: dict[str, Any] = {}
    device_decodes = bench.device.type == "cuda"
    for name, image, methods in (
        ("photo", photo, ["pil", *(["nvjpeg"] if device_decodes else [])]),
        ("12_megapixels", large, ["pil", "draft", *(["nvjpeg"] if device_decodes else [])]),
    ):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        for method in methods:
            count = bench.pick(UNIT if name == "photo" else 64, 4)
            unit = partial(decode_unit, model, out.getvalue(), method, bench.memory)
            unit(min(count, 32))
            found[f"{name}_{method}"] = round(unit(count), 1)
    return True, {"images_s": found}


def decode_unit(model: Any, data: bytes, method: Any, memory: Memory, count: int) -> float:
    """Images/s of one unit of `count` equal files."""
    driven = ModelStream(model, None)
    decoding = Decoding(exif=True, max_pixels=178_956_970, method=method)
    with ThreadPoolExecutor(16) as pool:
        started = time.perf_counter()
        decoder = UnitDecoder(
            lambda index: data,
            range(count),
            model=model,
            decoding=decoding,
            most=driven.most,
            pool=pool,
            memory=memory,
        )
        encoded = [
            pool.submit(encode, answer)
            for _, answers in driven.run(decoder, Counter())
            for answer in answers
        ]
        for future in encoded:
            future.result()
        assert len(encoded) == count, decoder.errors
        return count / (time.perf_counter() - started)


def reference(bench: Bench) -> Found:
    """transformers in bf16: forward and its own merge, from pixels on the device."""
    from transformers import DetrImageProcessor

    from tests.detr import hugging_face

    sizes = hugging_face.SMALL if bench.rehearse else hugging_face.R50
    model: Any = hugging_face.make(sizes)
    model.to(bench.device, torch.bfloat16)
    processor = DetrImageProcessor()
    shape = (bench.pick(800, 96), bench.pick(1066, 128))

    @torch.inference_mode()
    def run(batch: int) -> None:
        pixels = torch.rand(batch, 3, *shape, device=bench.device).bfloat16()
        outputs = model(pixel_values=pixels)
        for name in ("logits", "pred_masks"):
            outputs[name] = outputs[name].float()
        processor.post_process_panoptic_segmentation(
            outputs,
            threshold=0.85,
            target_sizes=[(bench.side, bench.side * 4 // 3)] * batch,
            label_ids_to_fuse=set(),
        )

    rates = {}
    for batch in (1, 4, 8):
        rates[batch] = 1000 * batch / bench.milliseconds(partial(run, batch), 3)
    rate = bench.kept.get("rate") or one_size(bench)[1]["images_s"]
    factor = rate / max(rates.values())
    said = {f"images_s_{batch}": round(each, 1) for batch, each in rates.items()}
    return bench.judge(factor >= LEAST_FACTOR), {"times_faster": round(factor, 1), **said}


def flights(model: detr.Predictor, batch: Sequence[Photo], count: int) -> None:
    """`count` batches, three in flight."""
    under_way: list[Any] = []
    for _ in range(count):
        under_way.append(model.start(batch))
        if len(under_way) > 1:
            under_way[-2].masks()
        if len(under_way) > 2:
            under_way.pop(0).result()
    under_way[-1].masks()
    for flight in under_way:
        flight.result()


def rates_of(bench: Bench, model: detr.Predictor, sizes: Sequence[int]) -> dict[str, float]:
    rates = {}
    for size in sizes:
        batch, count = (bench.photos * 2)[:size], bench.pick(max(4, 96 // size), 1)
        spent = bench.milliseconds(partial(flights, model, batch, count), 2)
        rates[str(size)] = round(1000 * size * count / spent, 1)
    return rates


def rates(bench: Bench) -> Found:
    """Images/s by batch size, with cuDNN's attention and without; peak memory against the plan."""
    model = bench.r50("bf16")
    sizes = (1, 2) if bench.rehearse else (1, 4, 8, 16, 32)
    found: dict[str, Any] = {"images_s": rates_of(bench, model, sizes)}
    fits = True
    if not bench.rehearse:
        usual = torch.backends.cuda.cudnn_sdp_enabled()
        torch.backends.cuda.enable_cudnn_sdp(not usual)
        try:
            other = rates_of(bench, model, (1, 8, 32))
        finally:
            torch.backends.cuda.enable_cudnn_sdp(usual)
        found |= {"cudnn_attention": usual, "images_s_the_other_way": other}
        size = model.processed_size(*bench.photos[0].shape[:2])
        room = model.images_that_fit(*size)
        torch.cuda.reset_peak_memory_stats()
        flights(model, (bench.photos * 2)[:room], 4)
        peak = torch.cuda.max_memory_allocated() / 1e9
        total = torch.cuda.get_device_properties(0).total_memory / 1e9
        found |= {"images_that_fit": room, "peak_gb": round(peak, 1), "card_gb": round(total, 1)}
        fits = peak < total
    return fits, found


def stages(bench: Bench) -> Found:
    """Milliseconds, launches and bytes of each part, at a batch of 32."""
    from tests.detr.launches import measured

    model, batch = bench.r50("bf16"), (bench.photos * 2)[: bench.pick(MOST_IMAGES, 2)]
    size = model.processed_size(*batch[0].shape[:2])
    found: dict[str, Any] = {}
    with torch.inference_mode():
        pixels = model.to_input(batch, size)
        detection = model.model.detect(pixels)
        image, query = model.choose(detection.logits[-1])[2].nonzero(as_tuple=True)
        pairs = partial(model.model.mask_logits, detection, image, query)
        parts = {
            "input": partial(model.to_input, batch, size),
            "detect": partial(model.model.detect, pixels),
            "masks": partial(pairs, chunk=model.chunk(detection.features[0].tensors)),
        }
        for name, function in parts.items():
            spent = bench.milliseconds(function)
            launches, moved = measured(function, bench.device)
            found[name] = {
                "ms_an_image": round(spent / len(batch), 4),
                "launches": launches,
                "gb_an_image": round(moved / len(batch) / 1e9, 3),
                "gb_s": round(moved / spent / 1e6),
            }
    found["queries"] = len(query)
    return True, found


def compiled(bench: Bench) -> Found:
    """Images/s with backbone and transformer compiled, which takes a minute first."""
    if bench.rehearse:
        return True, {"left_out": "torch's compiler needs a minute"}
    started = time.monotonic()
    model = bench.r50("bf16", compile=True)
    model.segment(bench.photos[:2])
    seconds = round(time.monotonic() - started)
    return True, {"compile_s": seconds, "images_s": rates_of(bench, model, (8, 32))}


STEPS = (
    Step("one_size", "600 images/s on an H200, 450 on an H100; at work 85 %", 20, one_size),
    Step("tail", "a long tail of sizes reaches 70 % of that", 35, tail),
    Step("reference", "10 times transformers in bf16", 25, reference),
    Step("files", "JPEG bytes to RLE runs", 30, files),
    Step("rates", "what is planned to fit the memory fits", 25, rates),
    Step("stages", "each part runs by itself", 10, stages),
    Step("compiled", "--compile runs", 80, compiled),
)
