"""The whole job from JPEG bytes to shards, against the bare model in a loop.

The claim: in steady state (first and last shard excluded) the job reaches at least 90 % of the
images/s of the model alone, in one process with the same threads, on images decoded beforehand. So
reading, decoding, encoding, Ray and writing cost at most a tenth. Three collections: 640 x 480; 12
megapixels; a long tail of 400 sizes, nearly each image with its own. Ray runs on this machine; the
bare loop runs before and after the job, and its better round counts.

    python benchmarks/throughput.py [--threads 2] [--device cpu] [--images 80] [--only 640x480]
    python benchmarks/throughput.py --device cuda --images 4000 --decode nvjpeg

Weights are random ones that keep about 15 queries, unless --weights names some. A table first; the
last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

TARGET = 0.9
SHARDS = 8
BARE_BYTES = 8_000_000_000  # decoded images of the bare loop
# name: images as a share of --images, arguments of the job
COLLECTIONS: dict[str, tuple[float, dict[str, Any]]] = {
    "640x480": (1.0, {}),
    "12 megapixels": (0.5, {}),
    "12 megapixels, masks as processed": (0.5, {"output_size": "processed"}),
    "long tail of 400 sizes": (5.0, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPUs for Ray")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--decode", default="pil", choices=["pil", "draft", "nvjpeg"])
    parser.add_argument("--weights", help="default: random, R50")
    parser.add_argument("--only", choices=sorted(COLLECTIONS))
    parser.add_argument("--bare", help=argparse.SUPPRESS)  # what the loop's own process runs on
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments)))
        return
    from benchmarks.measure import print_result
    from tests.random_weights import write_official_r50

    with tempfile.TemporaryDirectory() as folder:
        if arguments.weights is None:
            arguments.weights = f"{folder}/r50.pth"
            write_official_r50(arguments.weights)
        results = {
            name: measure(name, Path(folder) / f"{number}", arguments)
            for number, name in enumerate(COLLECTIONS)
            if arguments.only in (None, name)
        }
    print(f"{arguments.device}, {arguments.threads} threads; images/s in steady state")
    print(f"{'':36}{'bare':>8}{'job':>8}{'share':>8}{'model busy':>12}  limited by")
    for name, found in results.items():
        print(
            f"{name:36}{found['bare_images_s']:8.2f}{found['job_images_s']:8.2f}"
            f"{found['share']:8.1%}{found['model_busy']:12.1%}  {found['limited_by']}"
        )
    settings = {"device": arguments.device, "threads": arguments.threads}
    print_result("throughput", **settings, results=results)


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    share, settings = COLLECTIONS[name]
    count = max(SHARDS, int(arguments.images * share))
    write_images(folder / "images", name, count)
    loops = [run_bare(folder / "images", settings, arguments)]
    job = run_job(folder, count, settings, arguments)
    loops.append(run_bare(folder / "images", settings, arguments))
    rate = max(loop["images_s"] for loop in loops)
    return {
        "images": count,
        "bare_images_s": round(rate, 4),
        **job,
        "share": round(job["job_images_s"] / rate, 4),
        "holds": job["job_images_s"] >= TARGET * rate,
    }


def write_images(folder: Path, name: str, count: int) -> None:
    """JPEGs of about photos' detail; a few are drawn, the rest are cut from them."""
    import numpy as np
    from PIL import Image

    from tests.random_weights import made_images

    folder.mkdir(parents=True)
    drawn = [Image.fromarray(image) for image in made_images(8, 5, 480)]
    rng = np.random.default_rng(0)
    for number in range(count):
        image = drawn[number % len(drawn)]
        if name.startswith("12"):
            image = image.resize((4000, 3000), Image.Resampling.BICUBIC)
        elif name.startswith("long"):
            width, height = int(rng.integers(480, 640)), int(rng.integers(360, 480))
            image = image.crop((0, 0, width, height))
        image.save(folder / f"{number:05d}.jpg", quality=92)


def run_bare(
    images: Path, settings: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--bare", json.dumps([str(images), settings])]
    for name in ("threads", "device", "dtype", "weights"):
        command += [f"--{name}", str(getattr(arguments, name))]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def bare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The model alone, on decoded images: on a GPU as many as memory holds, on a CPU six."""
    import detr
    from detr.inference.decode import decode_image

    import torch  # isort: skip  # after detr, which tells its threads how to wait

    folder, settings = json.loads(arguments.bare)
    torch.set_num_threads(arguments.threads)
    files = sorted(Path(folder).iterdir())
    first = decode_image(files[0].read_bytes())
    most = BARE_BYTES // first.nbytes if arguments.device == "cuda" else 6
    images = [decode_image(path.read_bytes()) for path in files[:most]]
    model = detr.load(
        arguments.weights, device=arguments.device, dtype=arguments.dtype, batch_size=32, **settings
    )
    model.segment(images[:2])
    started = time.perf_counter()
    if arguments.device == "cuda":
        model.segment(images)
    else:
        for image in images:
            model.segment([image])
    return {"images_s": len(images) / (time.perf_counter() - started)}


def run_job(
    folder: Path, count: int, settings: dict[str, Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    """One `segment` on local Ray, timed by when its shards appeared."""
    import ray

    from pipeline import make_config, open_run, segment
    from pipeline.cluster.ray_session import start_here

    if not ray.is_initialized():
        gpus = 1 if arguments.device == "cuda" else 0
        start_here(num_cpus=arguments.threads, num_gpus=gpus, log_to_driver=False)
    config = make_config(
        {
            "source": str(folder / "images"),
            "out": str(folder / "run"),
            "weights": arguments.weights,
            "dtype": arguments.dtype,
            "decode": arguments.decode,
            "device": arguments.device,
            "images_per_shard": -(-count // SHARDS),
            **settings,
        }
    )
    summary = segment(config)
    assert summary.error == 0, summary
    shards = shards_as_written(Path(folder / "run" / "segments"))
    images = sum(rows for _, rows in shards[1:-1])
    seconds = shards[-2][0] - shards[0][0]
    run = open_run(str(folder / "run"))
    stats = json.loads(run.storage.read("stats/0001.json"))[-1]
    stages = stats["stage_seconds"]
    actors = stats["placement"]["max_actors"]
    share = images / summary.computed / seconds / actors  # of a stage's seconds in an actor's time
    busy = stages["model"] * share
    waits = {
        "decoding": (stages["total"] - stages["model"]) * share,
        "reading and Ray": 1 - stages["total"] * share,
    }
    return {
        "job_images_s": round(images / seconds, 4),
        "actors": actors,
        "threads_each": stats["placement"]["threads"],
        "model_busy": round(busy, 4),
        "waits": {name: round(share, 4) for name, share in waits.items()},
        "limited_by": "the model" if busy > 0.8 else max(waits, key=lambda name: waits[name]),
        "segments_an_image": round(summary.segments / summary.images, 2),
    }


def shards_as_written(folder: Path) -> Sequence[tuple[float, int]]:
    """(when, rows) of each shard, in the order in which they appeared."""
    import pyarrow.parquet as pq

    paths = folder.rglob("*.parquet")
    return sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in paths)


if __name__ == "__main__":
    main()
