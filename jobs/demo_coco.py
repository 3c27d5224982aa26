"""`panoptic demo --coco FOLDER`: is the published PQ reproduced on COCO val2017?

Takes the files as they are downloaded; nothing is unpacked. FOLDER holds `val2017.zip` and
`panoptic_annotations_trainval2017.zip` (or what they unpack to), and may hold the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from detr.config import RECIPES
from jobs.console import ConsoleReporter
from pipeline.config import RunConfig, load_config
from pipeline.errors import UserError

RECIPE: Final = Path(__file__).parent / "configs" / "coco_val2017.toml"
WEIGHTS: Final = RECIPES["r50"]
PHOTOS: Final = ("val2017.zip", "val2017")
ANNOTATIONS: Final = (
    "panoptic_annotations_trainval2017.zip#panoptic_val2017.json",
    "annotations/panoptic_val2017.json",
    "panoptic_val2017.json",
)
POINTS: Final = 0.1  # between the published PQ, which has one digit, and one that reproduces it


def segment_coco(folder: Path, reporter: ConsoleReporter) -> tuple[str, dict[str, Any]]:
    """Segment and score val2017 in `folder`/panoptic-run; returns the run folder and the result.

    Raises UserError if the photos or the annotations are not in `folder`.
    """
    from pipeline.cluster.ray_session import join_ray
    from pipeline.evaluation.evaluator import evaluate_run
    from pipeline.segmentation.job import segment

    photos, truth = _in(folder, PHOTOS), _in(folder, ANNOTATIONS)
    out = str(folder / "panoptic-run")
    flags = {"source": photos, "out": out, "weights": _weights(folder)}
    try:
        config = load_config(RunConfig, flags, str(RECIPE))
        join_ray(None, verbose=reporter.verbose)
        segment(config, reporter)
        reporter.note("scoring against the truth")
        return out, evaluate_run(out, truth, note=reporter.note)
    finally:
        reporter.close()


def beside_published(pq: float) -> str:
    """A sentence that compares `pq` (0..1) with the published PQ."""
    points = 100 * pq
    word = "reproduced" if abs(points - WEIGHTS.pq) <= POINTS else "NOT reproduced"
    return f"PQ {points:.2f} on COCO val2017: the published {WEIGHTS.pq} is {word}"


def _in(folder: Path, names: tuple[str, ...]) -> str:
    for name in names:
        if (folder / name.partition("#")[0]).exists():
            return str(folder / name)
    raise UserError(
        f"--coco {folder} holds neither {' nor '.join(name.partition('#')[0] for name in names)}: "
        "download it from https://cocodataset.org/#download"
    )


def _weights(folder: Path) -> str:
    """The official file if it lies in the folder, else its name, by which it is downloaded."""
    file = folder / WEIGHTS.url.rpartition("/")[2]
    return str(file) if file.exists() else WEIGHTS.name
