"""`panoptic demo`: segment, evaluate and report synthetic scenes on this machine, no downloads."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.console import ConsoleReporter, plain_console, print_json
from jobs.options import DEMO_WEIGHTS, JsonOutput, Verbose
from pipeline.amounts import counted, duration
from pipeline.config import make_config
from pipeline.errors import UserError
from pipeline.train.synthetic import write_scenes

DEMO_RECORD = DEMO_WEIGHTS.with_suffix(".json")  # what benchmarks/demo_weights.py measured
DEMO_THRESHOLD = 0.5  # the weight file's recommendation; a small model has lower scores than DETR
SEED = 2026  # not a seed of training
BROKEN = 4
POINTS = 5.0  # largest expected difference from the recorded PQ, in points
MARK = "MADE_BY_DEMO.txt"
MARK_TEXT = "`panoptic demo` made scenes/ and run/, and makes them anew for another --images.\n"


def demo(
    folder: Annotated[Path, typer.Option(help="Where the scenes and the run folder go.")] = Path(
        "demo"
    ),
    images: Annotated[int, typer.Option(min=1, help="Number of scenes to make.")] = 60,
    coco: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Score COCO val2017 instead: val2017.zip and "
            "panoptic_annotations_trainval2017.zip lie in FOLDER, as downloaded.",
        ),
    ] = None,
    json_output: JsonOutput = False,
    verbose: Verbose = False,
) -> None:
    """Segment and score synthetic scenes on this machine; start here.

    Needs no bucket, no GPU and no network. The scenes show things and stuff; a few files are
    broken, as in a real bucket. The same command again computes nothing; another --images replaces
    the scenes and the run.

        panoptic demo --images 200

        panoptic demo --coco data/coco
    """
    if coco is not None:
        _coco(coco, json_output=json_output, verbose=verbose)
        return
    from pipeline.cluster.ray_session import join_ray
    from pipeline.evaluation.evaluator import evaluate_run
    from pipeline.report.page import write_report
    from pipeline.run.snapshots import open_snapshot
    from pipeline.segmentation.job import segment

    reporter = ConsoleReporter(verbose=verbose)
    data, out = folder / "scenes", folder / "run"
    photo = data / "images" / "000000.jpg"
    truth = data / "panoptic.json"
    make_demo_scenes(folder, images, reporter.note)
    config = make_config(
        {
            "source": str(data / "images"),
            "out": str(out),
            "weights": str(DEMO_WEIGHTS),
            "images_per_shard": 16,
            "max_error_rate": 1.0,  # there are broken files beside any number of scenes
            "device": "cpu",
        }
    )
    try:
        join_ray(None, verbose=verbose)
        summary = segment(config, reporter)
        reporter.note("scoring against the truth")
        result = evaluate_run(str(out), str(truth), note=reporter.note)
        written = write_report(open_snapshot(str(out)), note=reporter.note)
    finally:
        reporter.close()
    record = json.loads(DEMO_RECORD.read_text())
    if json_output:
        facts = {"images": summary.images, "error": summary.error, "pq": result["All"]}
        print_json({**facts, "recorded": record["All"], "report": written.url})
        return
    console = plain_console()
    table = Table(title="Panoptic quality (%)", box=None)
    for heading in ("", "PQ", "SQ", "RQ", "classes"):
        table.add_column(heading, justify="right")
    for group in ("All", "Things", "Stuff"):
        scores = result[group]
        shares = [f"{100 * scores[name]:.1f}" for name in ("pq", "sq", "rq")]
        table.add_row(group, *shares, str(scores["n"]))
    console.print(table)
    console.print(
        f"{counted(summary.images, 'image')}: {summary.ok:,} ok, "
        f"{counted(summary.error, 'broken file')} as error rows; "
        f"{duration(summary.seconds)}"
    )
    console.print(
        f"by a model of {DEMO_WEIGHTS.stat().st_size / 1e6:.1f} MB, trained on made scenes; "
        + beside_record(result["All"]["pq"], record)
    )
    model = f"--weights {DEMO_WEIGHTS}"
    lines = (
        ("report", written.url),
        ("run folder", str(out)),
        ("one image", f"{sys.argv[0]} view {out} 000000.jpg"),
        ("questions", f"{sys.argv[0]} sql {out}"),
        ("inside the model", f"{sys.argv[0]} inspect {photo} {model}"),
    )
    for name, text in lines:
        console.print(f"{name + ':':<18}{text}")
    console.print(
        "your own photos, with the official weights (165 MB, fetched once):\n"
        f"  {sys.argv[0]} segment PHOTO_FOLDER --out runs/mine --weights r50 --limit 20",
    )


def _coco(folder: Path, *, json_output: bool, verbose: bool) -> None:
    from jobs.demo_coco import beside_published, segment_coco

    out, result = segment_coco(folder, ConsoleReporter(verbose=verbose))
    if json_output:
        print_json({"out": out, "pq": result["All"]})
        return
    console = plain_console()
    console.print(beside_published(result["All"]["pq"]), soft_wrap=True, markup=False)
    console.print(f"report: {sys.argv[0]} report {out}", soft_wrap=True, markup=False)


def beside_record(pq: float, record: Mapping[str, Any]) -> str:
    """A sentence that compares `pq` (0..1) with the recorded PQ: within POINTS of it or not."""
    recorded = 100 * record["All"]["pq"]
    near = abs(100 * pq - recorded) <= POINTS
    return (
        f"PQ {100 * pq:.1f} is {'within' if near else 'NOT within'} {POINTS:g} points of the "
        f"{recorded:.1f} recorded on {record['scenes']} others"
    )


def make_demo_scenes(folder: Path, images: int, note: Callable[[str], None]) -> None:
    """Make `images` scenes in `folder`/scenes, unless the folder already has this number.

    Deletes scenes/ and run/ of an earlier demo with another number, since a run's list of images is
    frozen. Raises UserError if scenes/ or run/ was not made by a demo.
    """
    data, mark = folder / "scenes", folder / MARK
    truth = data / "panoptic.json"
    if truth.exists() and len(json.loads(truth.read_text())["images"]) == images:
        return
    existing = [path for path in (data, folder / "run") if path.exists()]
    if existing and not mark.exists():
        raise UserError(f"{existing[0]} was not made by this demo: choose another --folder")
    for path in existing:
        shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(MARK_TEXT)
    note(f"making {counted(images, 'scene')} and {BROKEN} broken files in {data}")
    write_scenes(data, images, SEED, broken=BROKEN)
