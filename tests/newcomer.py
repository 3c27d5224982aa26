"""README walked as written, with real servers: what tests/newcomer.sh runs.

Each command is a process of its own. Prints a line a step (seconds, and what is odd about it), then
one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from detr.categories import COCO_PANOPTIC
from pipeline.run.run import open_run
from pipeline.train.synthetic import SCENE_CATEGORIES, write_scenes
from tests.documents import README, ROOT, blocks
from tests.random_weights import made_images, write_official_r50
from tests.ray_heads import ray_head
from tests.servers import S3Server, moto_server

PHOTOS: Final = 24
# Training on the official weights for as long as it takes is for another machine.
SHORT: Final = ("--steps", "2", "--size", "64", "--batch-size", "2", "--validate-images", "2")
NEXT_STEP: Final = {  # verb -> what its last lines must name
    "demo": "panoptic segment",
    "segment": "panoptic report",
    "evaluate": "panoptic report",
    "train": "next: ",
}
ODD: Final = {
    "a traceback": r"Traceback \(most recent call last\)",
    "bytes as Python writes them": r"\bb'[^']",
    "a store's XML": r"<\?xml|</\w+>",
    "a wrong plural": r"(?<![\d,.])1 (images|shards|segments|errors|rows|files|classes)\b(?!/)",
    "a logging line of Ray": r"\b(INFO|WARNING|ERROR) \S+\.py:\d+",
    "more digits than a duration has": r"\d\.\d{3,} s\b",
}
TWINS: Final = {  # made kinds as COCO's
    "ball": "sports ball", "crate": "suitcase", "tent": "umbrella", "star": "kite",
    "cross": "frisbee", "sky": "sky-other-merged", "grass": "grass-merged",
    "water": "water-other", "sand": "sand",
}  # fmt: skip


def coco_truth(made: Path, target: Path) -> None:
    """The truth of made scenes in COCO's label set, which is that of the official weights."""
    data = json.loads((made / "panoptic.json").read_text())
    ids = {category.name: category.id for category in COCO_PANOPTIC}
    same = {c.id: ids[TWINS[c.name]] for c in SCENE_CATEGORIES}
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = same[segment["category_id"]]
    data["categories"] = COCO_PANOPTIC.to_json()
    target.write_text(json.dumps(data))
    shutil.copytree(made / "panoptic", target.with_suffix(""))


def prepare(home: Path, server: S3Server) -> None:
    """What README says that one has: photos here and in a bucket, their truth, a data set."""
    made = home.parent / "made"
    write_scenes(made, PHOTOS, seed=3, broken=1)
    whole = shutil.ignore_patterns("broken*")
    for name in ("PHOTO_FOLDER", "photos"):
        shutil.copytree(made / "images", home / name, ignore=whole)
    shutil.copytree(made, home / "data")
    for name in ("panoptic_val2017", "gt", "pred"):
        coco_truth(made, home / f"{name}.json")
    write_official_r50(home.parent / "r50.pth", photos=made_images(2, 0, 240))
    client = server.client()
    client.create_bucket(Bucket="bucket")
    for photo in sorted((made / "images").iterdir()):
        client.put_object(Bucket="bucket", Key=f"images/{photo.name}", Body=photo.read_bytes())


def commands() -> Iterator[list[str]]:
    """The commands of README in order; `make demo` is what it runs, `make test` is left out."""
    for block in blocks("sh", README):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["make", "demo"]:
                yield ["demo"]
            elif words[:1] == ["panoptic"]:
                yield [*words[1:], *(SHORT if words[1] == "train" else ())]


def oddities(words: list[str], code: int, out: str, err: str) -> list[str]:
    """What a person would stumble over."""
    found = [] if code == 0 else [f"exit code {code}"]
    lines = (out + err).splitlines()
    for name, pattern in ODD.items():
        shown = next((line for line in lines if re.search(pattern, line)), None)
        found += [] if shown is None else [f"{name}: {shown[:200]}"]
    # Files of another model have no run folder that one could look at next.
    wanted = None if "--predictions" in words else NEXT_STEP.get(words[0])
    if code == 0 and wanted and wanted not in " ".join(out.split()[-60:]):
        found.append(f"no next step ({wanted.strip()})")
    if code:
        last = (err.strip().splitlines() or [""])[-1]
        found.append(last[:200])
    return found


def walk(home: Path, environment: dict[str, str], dashboard: str) -> list[dict[str, Any]]:
    names = {
        "r50": str(home.parent / "r50.pth"),
        "PHOTO": "PHOTO_FOLDER/000000.jpg",
        "http://head:8265": dashboard,
    }
    program = [str(Path(sys.executable).parent / "panoptic")]
    steps: list[dict[str, Any]] = []
    for words in commands():
        if words[0] == "compare":  # README's "before": the run as it was evaluated
            shutil.copytree(home / "runs/mine", home / "runs/before")
        given = [names.get(word, word) for word in words]
        started = time.monotonic()
        done = subprocess.run(
            [*program, *given],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - started
        odd = oddities(words, done.returncode, done.stdout, done.stderr)
        steps.append({"command": " ".join(words), "seconds": round(seconds, 1), "odd": odd})
        print(f"{seconds:7.1f} s  {'; '.join(odd) or 'ok'}  panoptic {' '.join(words)}", flush=True)
        if words[0] == "segment" and "FILE_NAME" not in names and done.returncode == 0:
            run = open_run(str(home / "runs/mine"))  # it says which images --limit took
            names["FILE_NAME"] = run.table(["file_name"])["file_name"][0].as_py()
    return steps


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="newcomer-") as folder, moto_server() as server:
        home = Path(folder) / "home"
        home.mkdir()
        print("preparing: a bucket, a head, weights", flush=True)
        prepare(home, server)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            **server.environment(),
            "BROWSER": "true",  # nobody looks
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        code = {"PYTHONPATH": "", **server.environment()}
        with ray_head(["--num-cpus=2"], code) as head:
            steps = walk(home, environment, head.dashboard)
    odd = [step for step in steps if step["odd"]]
    print(
        json.dumps({"steps": len(steps), "seconds": sum(s["seconds"] for s in steps), "odd": odd})
    )
    assert len(steps) > 20, f"README lies at {ROOT}: has it lost its commands?"
    if odd:
        sys.exit(1)


if __name__ == "__main__":
    main()
