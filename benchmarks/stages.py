"""Where an image's time goes in DETR-R50 panoptic: stage by stage, beside what the machine allows.

For each stage: seconds, GFLOP and bytes as the operations really ran (a Winograd convolution counts
what it multiplies, not what it replaces; bytes are the inputs and outputs of every operation, as if
nothing stayed in a cache), and the share of the bound: the larger of GFLOP / peak and bytes /
bandwidth, over the seconds. Peak and bandwidth are measured in the same process, by the direct 3x3
convolution of 256 channels and by copying 400 MB. More than 100 % of a bandwidth bound means that
caches served it.

    python benchmarks/stages.py [--threads 2] [--dtype fp32] [--queries 15] [--device cpu]

A table first; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import detr
from benchmarks.measure import print_result
from detr.inference.postprocess import merge
from detr.models.folded import FoldedResNet
from detr.models.fused_ops import convolve
from detr.models.position_encoding import whole_position
from pipeline.panoptic import rle
from tests.random_weights import made_images, write_official_r50

import torch  # isort: skip  # after detr, which tells its threads how to wait
from torch.nn import functional as F  # isort: skip
from torch.utils._python_dispatch import TorchDispatchMode  # isort: skip

ROUNDS = 5


class Counter(TorchDispatchMode):
    """FLOPs of products and convolutions, and bytes of all operations that are no mere view."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out[0] if isinstance(out, tuple) else out
        given = [x for x in args if isinstance(x, torch.Tensor)]
        if not isinstance(made, torch.Tensor) or func.is_view:
            return out
        self.bytes += sum(x.numel() * x.element_size() for x in [*given, made])
        name = func.__name__.partition(".")[0]
        if "conv" in name:
            weight = given[2] if func.__name__.endswith("binary") else given[1]
            self.flop += 2 * made.numel() * weight[0].numel()
        elif name == "linear":
            self.flop += 2 * made.numel() * given[1].shape[-1]
        elif name in ("mm", "bmm"):
            self.flop += 2 * made.numel() * given[0].shape[-1]
        elif name == "addmm":
            self.flop += 2 * made.numel() * given[1].shape[-1]
        elif "scaled_dot_product" in name:
            query, key = given[:2]
            self.flop += 4 * query.numel() * key.shape[-2]
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--queries", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_official_r50(f"{folder}/r50.pth")
        model = detr.load(f"{folder}/r50.pth", device=arguments.device, dtype=arguments.dtype)
    with torch.inference_mode():
        peak, bandwidth = measure_peak(model), measure_bandwidth(model)
        rows = measure(model, arguments.queries)
    bound = 0.0
    for row in rows:
        row["bound_s"] = max(row["gflop"] / peak, row["gbyte"] / bandwidth)
        bound += row["bound_s"]
    total = sum(row["seconds"] for row in rows)
    print(
        f"DETR-R50, 800 x 1066, {arguments.queries} queries, {arguments.dtype}, "
        f"{arguments.threads} threads: peak {peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s"
    )
    print(f"{'':18}{'ms':>9}{'GFLOP':>9}{'GB':>8}{'of bound':>10}")
    for row in rows:
        share = row["bound_s"] / row["seconds"]
        print(
            f"{row['stage']:18}{1000 * row['seconds']:9.1f}{row['gflop']:9.1f}"
            f"{row['gbyte']:8.2f}{share:10.0%}"
        )
    flop = sum(row["gflop"] for row in rows)
    print(f"{'sum':18}{1000 * total:9.1f}{flop:9.1f}{'':8}{bound / total:10.0%}")
    measured = {"peak_gflop_s": round(peak, 1), "bandwidth_gb_s": round(bandwidth, 2)}
    shares = {"stages": rows, "share_of_bound": bound / total}
    print_result("stages", **vars(arguments), **measured, **shares)


def best_seconds(function: Callable[[], Any], device: torch.device) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def measure_peak(model: detr.Predictor) -> float:
    """GFLOP/s of the direct convolution that oneDNN and cuDNN do best."""
    conv = torch.nn.Conv2d(256, 256, 3, padding=1, device=model.device, dtype=model.dtype)
    x = torch.randn(4, 256, 50, 67).to(model.device, model.dtype)
    x = x.to(memory_format=torch.channels_last)
    seconds = best_seconds(lambda: convolve(x, conv, relu=True), model.device)
    return 2 * 9 * 256 * 256 * 4 * 50 * 67 / seconds / 1e9


def measure_bandwidth(model: detr.Predictor) -> float:
    """GB/s, read and written, of a copy."""
    source = torch.ones(100_000_000, device=model.device)
    target = torch.empty_like(source)
    return 2 * 0.4 / best_seconds(lambda: target.copy_(source), model.device)


def measure(model: detr.Predictor, count: int) -> list[dict[str, Any]]:
    """One row a stage, in the order of the computation."""
    rows: list[dict[str, Any]] = []

    def stage(name: str, function: Callable[[], Any]) -> Any:
        with Counter() as counter:
            made = function()
        rows.append(
            {
                "stage": name,
                "seconds": best_seconds(function, model.device),
                "gflop": counter.flop / 1e9,
                "gbyte": counter.bytes / 1e9,
            }
        )
        return made

    image, size = made_images(1, 5, 480)[0], (800, 1066)
    detector, head = model.model.detr, model.model.mask_head
    body: Any = detector.backbone[0].body  # type: ignore[union-attr]
    assert isinstance(body, FoldedResNet)
    x = stage("input", lambda: model.to_input([image], size))
    stem = lambda: F.max_pool2d(convolve(x, body.stem, relu=True), 3, stride=2, padding=1)  # noqa: E731
    features = [stage("stem", stem)]
    for number, layer in enumerate(body.stages, start=2):
        features.append(stage(f"Res{number}", lambda layer=layer: layer(features[-1])))
    projected = stage("projection", lambda: convolve(features[-1], detector.input_proj))
    tokens = projected.flatten(2).transpose(1, 2)
    place = whole_position(*projected.shape[-2:], tokens.shape[-1], tokens.device, tokens.dtype)
    memory = stage("encoder", lambda: detector.transformer.encoder(tokens, place, None))
    queries = detector.query_embed.weight
    decode = lambda: detector.transformer.decoder(queries, memory, place, None, every_layer=False)  # noqa: E731
    found = stage("decoder", decode)[-1, 0]
    stage("class, box, choice", lambda: (model.choose(detector.class_embed(found[None])),
                                         detector.bbox_embed(found)))  # fmt: skip
    index = torch.zeros(count, dtype=torch.int64, device=model.device)
    shares = stage("image's share", lambda: head.prepare(projected, features[3:0:-1]))
    maps = stage(
        "attention maps", lambda: model.model.bbox_attention(found[:count], memory, None, index)
    ).unflatten(-1, projected.shape[-2:])
    masks = stage("mask head", lambda: head(shares, maps, index))
    things = [category.id for category in model.categories if category.isthing][:count]
    panoptic = stage(
        "merge",
        lambda: merge(
            masks,
            things,
            [0.9] * count,
            categories=model.categories,
            processed_size=size,
            original_size=image.shape[:2],
        ),
    )
    ids = [segment.id for segment in panoptic.segments]
    stage("RLE", lambda: rle.encode(panoptic.segment_map, ids))
    return rows


if __name__ == "__main__":
    main()
