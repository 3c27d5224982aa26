"""Is the GPU path right? The steps of benchmarks/gpu.py whose promise is an answer, not a speed."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import detr
from benchmarks.gpu_bench import Bench, Photo, Step, alike, answers_of, stream_of
from detr.inference.decode import decode_image
from detr.inference.nvjpeg import decode_nvjpeg
from detr.inference.preprocess import normalize, resize, resize_mixed, resize_on_device

Found = tuple[bool, dict[str, Any]]
MOST_PIXELS = 178_956_970


def machine(bench: Bench) -> Found:
    found: dict[str, Any] = {
        **{name: version(name) for name in ("torch", "torchvision", "transformers")},
        "card": "none: a rehearsal" if bench.rehearse else torch.cuda.get_device_name(),
    }
    if not bench.rehearse:
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {"driver": driver or "unknown", "memory_gb": round(memory / 1e9)}
    side = bench.pick(8192, 256)
    block = torch.empty(bench.pick(2 << 30, 1 << 20), dtype=torch.uint8, device=bench.device)
    other = torch.empty_like(block)
    a = torch.randn(side, side, device=bench.device).bfloat16()
    found["copy_gb_s"] = round(2e-6 * len(block) / bench.milliseconds(lambda: other.copy_(block)))
    found["bf16_tflop_s"] = round(2e-9 * side**3 / bench.milliseconds(lambda: a @ a), 1)
    return True, found


def resizing(bench: Bench) -> Found:
    """The integer resize to the bit, and the normalised values to the last place."""
    shapes = [(480, 640), (640, 480), (427, 640), (333, 500), (1, 900), (3000, 4000), (97, 61)]
    targets = [(800, 1066), (1066, 800), (800, 1199), (800, 1201), (3, 1333), (800, 1066), (96, 61)]
    rng = np.random.default_rng(0)
    wrong, steps = [], 0
    for shape, size in zip(shapes, targets, strict=True):
        if bench.rehearse and shape[0] > 1000:
            shape = (300, 400)
        photo = torch.from_numpy(rng.integers(0, 256, (1, *shape, 3), np.uint8))
        wanted = resize(photo, size)
        found = resize_on_device(photo.to(bench.device), size)
        if not torch.equal(found.cpu(), wanted):
            wrong.append([shape, size])
        one, other = normalize(wanted), normalize(found).cpu()
        steps = max(steps, int((one.view(torch.int32) - other.view(torch.int32)).abs().max()))
    photos = [torch.from_numpy(rng.integers(0, 256, (*s, 3), np.uint8)) for s in shapes[:5]]
    mixed = resize_mixed([photo.to(bench.device) for photo in photos], targets[0]).cpu()
    for shape, photo, found in zip(shapes, photos, mixed, strict=False):
        if not torch.equal(found, resize(photo[None], targets[0])[0]):
            wrong.append([shape, targets[0], "among others"])
    return not wrong and steps <= 1, {"sizes_wrong": wrong, "normalize_last_places": steps}


def jpegs(photo: Photo) -> dict[str, tuple[bytes, float | None]]:
    """Files by kind, with the mean difference in levels that is allowed; None: left to PIL."""

    def encode(**settings: Any) -> bytes:
        out = io.BytesIO()
        Image.fromarray(photo).save(out, "JPEG", **settings)
        return out.getvalue()

    grey = io.BytesIO()
    Image.fromarray(photo).convert("L").save(grey, "JPEG", quality=95)
    coded = encode(quality=95, subsampling=0, keep_rgb=True)
    return {
        "4:4:4": (encode(quality=95, subsampling=0), 2.0),
        "4:2:0": (encode(quality=90, subsampling=2), 6.0),  # nearest chroma: no level off
        "progressive": (encode(quality=90, subsampling=0, progressive=True), 2.0),
        "grey": (grey.getvalue(), 2.0),
        "RGB-coded": (coded, None),
        "truncated": (encode(quality=90)[:400], None),
    }


def nvjpeg(bench: Bench) -> Found:
    files = jpegs(bench.photos[1])
    pixels = decode_nvjpeg(
        [data for data, _ in files.values()], bench.device, max_pixels=MOST_PIXELS, exif=True
    )
    bench.wait()
    differences: dict[str, Any] = {}
    holds = True
    for (kind, (data, limit)), image in zip(files.items(), pixels, strict=True):
        if image is None or limit is None:
            holds &= (image is None) == (limit is None)
            differences[kind] = "left to PIL" if image is None else "decoded, which PIL should"
            continue
        level = float(np.abs(image.cpu().numpy().astype(int) - decode_image(data)).mean())
        differences[kind] = round(level, 2)
        holds &= level <= limit
    return holds, {"mean_levels_off": differences}


def nvjpeg_race(bench: Bench) -> Found:
    """Decoding into memory that queued kernels of the model's stream still use."""
    files = [jpegs(photo)["4:4:4"][0] for photo in bench.photos[:8]]

    def decoded() -> list[Tensor]:
        images = decode_nvjpeg(files, bench.device, max_pixels=MOST_PIXELS, exif=True)
        return [image for image in images if image is not None]

    wanted = [image.clone() for image in decoded()]
    bench.wait()
    side = bench.pick(8192, 64)
    matrix = torch.randn(side, side, device=bench.device)
    wrong = 0
    for _ in range(bench.pick(20, 2)):
        blocks = [torch.empty_like(image) for image in wanted for _ in range(4)]
        for _ in range(3):
            matrix = (matrix @ matrix).clamp_(-1, 1)  # the device is busy for a while
        torch._foreach_zero_(blocks)  # queued behind that
        blocks.clear()  # so the allocator may hand the memory out
        found = decoded()
        wrong += sum(not torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    return wrong == 0 and len(wanted) == len(files), {"images_wrong": wrong}


def parity(bench: Bench) -> Found:
    """CPU in fp32 against the device: logits of R50, and pixels of the demo model on its scenes."""
    photos = bench.photos[: bench.pick(8, 2)]
    found: dict[str, Any] = {}

    def logits(model: detr.Predictor) -> Tensor:
        size = model.processed_size(*photos[0].shape[:2])
        with torch.inference_mode():
            return model.model.detect(model.to_input(photos, size)).logits[-1].float().cpu()

    cpu, device = bench.r50("fp32", device="cpu"), bench.r50("fp32")
    wanted, got = logits(cpu), logits(device)
    usual = wanted > -1e3  # the random weights rule classes out by a bias of -1e4
    off = float((got - wanted)[usual].abs().max() / wanted[usual].abs().max())
    kept = [torch.as_tensor(cpu.choose(each)[2]) for each in (wanted, got)]
    same = int((kept[0] == kept[1]).sum()) / kept[0].numel()
    found |= {"logits_relative": off, "choices_same": round(same, 5), "kept": int(kept[0].sum())}
    holds = off < 1e-3 and same >= 0.999
    maps = bench.demo("fp32", device="cpu").segment(bench.scenes)
    bench.kept["scenes"] = maps
    for dtype, least in (("fp32", 0.999), ("bf16", 0.98)):
        share = alike(bench.demo(dtype).segment(bench.scenes), maps)
        found[f"pixels_alike_{dtype}"] = round(share, 5)
        holds &= share >= least
    return holds, found


def batches(bench: Bench) -> Found:
    """An image's answer doesn't depend on its batch, nor on whether the batch is in flight."""
    found: dict[str, Any] = {}
    holds = True
    scenes = [np.ascontiguousarray(scene[:128, :128]) for scene in bench.scenes[: bench.pick(8, 2)]]
    scenes *= bench.pick(4, 2)
    for dtype, least in (("fp32", 0.999), ("bf16", 0.98)):
        model = bench.demo(dtype)
        model.batch_size = 1
        one = model.segment(scenes)
        for size in (3, 8, 32):
            model.batch_size = size
            share = alike(model.segment(scenes), one)
            flight = alike(answers_of(stream_of(model, size), scenes), one)
            found[f"{dtype}_{size}"] = [round(share, 5), round(flight, 5)]
            holds &= min(share, flight) >= least
    return holds, {"pixels_alike": found}


def odd_sizes(bench: Bench) -> Found:
    """Nothing kept, odd sides, one pixel, twelve megapixels."""
    model = bench.r50("fp32")
    photo = bench.photos[0]
    large = bench.pick(3000, 300), bench.pick(4000, 400)
    shapes = [(1, 1), (37, 91), (bench.side - 1, 3), (bench.side, bench.side // 3), large]
    holds, found = True, {}
    for shape in shapes:
        height, width = shape
        image = np.asarray(Image.fromarray(photo).resize((width, height)))
        [plain] = model.segment([image])
        [flying] = answers_of(stream_of(model), [image])
        found["x".join(map(str, shape))] = len(plain.segments)
        holds &= plain.segment_map.shape == flying.segment_map.shape == shape
        holds &= len(plain.segments) == len(flying.segments)
    usual, model.threshold = model.threshold, 1.0
    none = model.segment([photo] * 3) + answers_of(stream_of(model), [photo] * 3)
    model.threshold = usual
    holds &= all(not answer.segments and not answer.segment_map.any() for answer in none)
    return holds, {"segments": found}


class Counted:
    """A model that counts how often memory ran out, and in a rehearsal runs out of it itself.

    `room` images may be in flight at a time, each batch until its answers are read.
    """

    works_alone = True

    def __init__(self, model: detr.Predictor, room: int | None) -> None:
        self._model, self._room, self._flying, self.failures = model, room, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def start(self, images: Sequence[Any], sizes: Any = None) -> Any:
        flight = self._guard(len(images), lambda: self._model.start(images, sizes))
        self._flying += len(images)
        finish = flight.result

        def result() -> Any:
            self._flying -= len(images)
            return finish()

        flight.result = result
        return flight

    def segment(self, images: Sequence[Any], sizes: Any = None) -> Any:
        self._flying = 0  # the stream computes one after the other only once it dropped the rest
        return self._guard(len(images), lambda: self._model.segment(images, sizes))

    def _guard(self, images: int, function: Callable[[], Any]) -> Any:
        try:
            if self._room is not None and self._flying + images > self._room:
                self._flying = 0
                raise torch.OutOfMemoryError("CUDA out of memory")
            return function()
        except torch.OutOfMemoryError:
            self.failures += 1
            raise


def memory(bench: Bench) -> Found:
    """With less and less memory: the same answers, and only so many failures on the way."""
    model = bench.r50("bf16")
    photos = bench.photos * bench.pick(16, 2)
    wanted = answers_of(stream_of(model), photos)
    bench.rest()
    found: dict[str, Any] = {}
    holds = True
    # Two batches fit but not three; one fits but not two; half a batch.
    for images in (80, 40, 12):
        counted = Counted(model, bench.pick(0, images // 4) or None)
        if not bench.rehearse:
            limit_memory(model, images)
        try:
            answers = answers_of(stream_of(counted, bench.pick(0, 8) or 32), photos)
        finally:
            if not bench.rehearse:
                torch.cuda.set_per_process_memory_fraction(1.0)
        errors = [str(a) for a in answers if isinstance(a, detr.ImageError)]
        share = 0.0 if errors else alike(answers, wanted)
        found[f"room_for_{images}"] = [counted.failures, round(share, 5), *errors[:1]]
        holds &= counted.failures <= 8 and share >= 0.97
        bench.rest()
    return holds, {"failures_and_pixels_alike": found}


def limit_memory(model: detr.Predictor, images: int) -> None:
    """Leave room for about so many photos' activations in all batches in flight together."""
    torch.cuda.empty_cache()
    image = 0.09e9 * model.dtype.itemsize  # what R50 was seen to need at 800 x 1066
    total = torch.cuda.get_device_properties(0).total_memory
    wanted = torch.cuda.memory_allocated() + images * image
    torch.cuda.set_per_process_memory_fraction(min(1.0, wanted / total))


class _NothingAsked(TorchDispatchMode):
    """Stands for the driver's own check where there is no driver: refuses to ask for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.partition(".")[0] in ("_local_scalar_dense", "nonzero", "bincount"):
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def waits(bench: Bench) -> Found:
    """No step of a batch in flight waits for the device where it isn't meant to."""
    model, photos = bench.r50("bf16"), bench.photos[: bench.pick(16, 2)]
    answers_of(stream_of(model), photos)  # fills the caches by size
    if bench.rehearse:
        with _NothingAsked():
            flight = model.start(photos)
        flight.masks()
    else:
        torch.cuda.set_sync_debug_mode("error")
        try:
            flight = model.start(photos)
            flight.masks()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return len(flight.result()) == len(photos), {}


STEPS = (
    Step("machine", "the card copies and multiplies", 10, machine),
    Step("resize", "resize is PIL's to the bit, normalise within a last place", 10, resizing),
    Step("nvjpeg", "nvJPEG's pixels are PIL's but for rounding; PIL gets the rest", 8, nvjpeg),
    Step("race", "nvJPEG writes into no memory that the model still uses", 6, nvjpeg_race),
    Step("parity", "the CPU's answers: logits < 1e-3, pixels 99.9 % (bf16 98 %)", 45, parity),
    Step("batches", "the same answers in batches of 1, 3, 8, 32 and in flight", 15, batches),
    Step("odd", "odd sizes, one pixel, 12 megapixels, nothing kept", 15, odd_sizes),
    Step("memory", "little memory costs no row and at most 8 failures", 15, memory),
    Step("waits", "start and masks wait for nothing else", 5, waits),
)
