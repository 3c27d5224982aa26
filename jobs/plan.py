"""`panoptic plan`: the images, shards, hours and cost of `segment` with the same arguments."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs.console import ConsoleReporter, plain_console, print_json
from jobs.options import JsonOutput, takes_settings
from pipeline.amounts import counted, duration
from pipeline.config import RunConfig
from pipeline.planning.generations import stage_listing
from pipeline.planning.scratch_db import Staging
from pipeline.planning.source import Source
from pipeline.run.run import Run, find_run
from pipeline.run.stats import read_stats
from pipeline.segmentation.pending import owed
from pipeline.sharding import shard_count
from pipeline.storage.storage import Storage


@takes_settings
def plan(
    settings: RunConfig,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Images per second, to estimate the hours.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Price of the whole cluster per hour.")
    ] = None,
    json_output: JsonOutput = False,
) -> None:
    """Show what `segment` would do; write nothing.

    Shows the numbers of images and shards, how many are done, and why the others are not; with
    --rate also the hours, with --price also the cost. Without --rate, an existing run's measured
    rate is used.

        panoptic plan s3://bucket/images --out s3://bucket/out --rate 120 --price 4.10
    """
    storage = Storage(settings.out, settings.out_options)
    run = find_run(storage)
    reporter = ConsoleReporter()
    try:
        facts = _planned(run, settings, reporter) if run and run.generations() else None
        facts = facts or _listed(settings, reporter)
    finally:
        reporter.close()
    speed = rate or facts["images_per_second"]
    hours = facts["images_to_do"] / speed / 3600 if speed else None
    facts["hours"] = hours
    facts["cost"] = hours * price if hours is not None and price is not None else None
    if json_output:
        print_json(facts)
        return
    console = plain_console()
    console.print(
        f"{counted(facts['images'], 'image')} in {counted(facts['shards'], 'shard')}, "
        f"{facts['shards_done']:,} done; {counted(facts['images_to_do'], 'image')} to do"
    )
    for reason, images in facts["why"].items():
        console.print(f"  {counted(images, 'image')}: {reason}")
    if hours is None:
        console.print("how long? give --rate IMAGES_PER_SECOND, or run --shards 0:1 to measure it")
    elif facts["images_to_do"]:
        cost = f", about {facts['cost']:.2f} at {price:g} an hour" if price is not None else ""
        console.print(f"about {duration(hours * 3600)} at {speed:.3g} images/s{cost}")


def _listed(settings: RunConfig, reporter: ConsoleReporter) -> dict[str, Any]:
    """The facts of a new run: all images of the source are to do."""
    with Staging() as staging:
        images, size = stage_listing(
            staging, Source.of(settings), settings.limit, reporter.listed, reporter.note
        )
    return {
        "images": images,
        "bytes": size,
        "shards": shard_count(images, size, settings.images_per_shard),
        "shards_done": 0,
        "images_to_do": images,
        "why": {"new: the run folder does not exist yet": images},
        "images_per_second": 0.0,
    }


def _planned(run: Run, settings: RunConfig, reporter: ConsoleReporter) -> dict[str, Any]:
    """The facts of an existing run's newest generation, whose list of images is frozen."""
    generation = run.generation(max(run.generations()))
    todo = owed(run, generation, run.present(), settings.shards)
    stats = read_stats(run, generation.number)
    seconds = sum(entry["seconds"] for entry in stats)
    why: dict[str, int] = {}
    for number, units in todo.units.items():
        images = sum(unit.images for unit in units)
        lost = generation.number in run.snapshot_numbers() or number < generation.number
        reason = "lost: their shard was there and is gone" if lost else "not computed yet"
        why[f"{reason} (generation {number}, {generation.reason})"] = images
    shards = sum(1 for _ in generation.units())
    pending = len(todo.units.get(generation.number, ()))
    if settings.refresh:
        reporter.note("--refresh lists the source when it runs: what it finds is not counted here")
    return {
        "images": generation.images,
        "bytes": generation.bytes,
        "shards": shards,
        "shards_done": shards - pending,
        "images_to_do": todo.images,
        "why": why,
        "images_per_second": sum(e["done"] for e in stats) / seconds if seconds else 0.0,
    }
