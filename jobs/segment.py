"""`panoptic segment`: segment all images of a source, one row per image in Parquet shards."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.console import plain_console, print_json
from jobs.json_logs import reporting
from jobs.options import JsonLogs, JsonOutput, Verbose, refuse_absent, takes_settings
from pipeline.amounts import counted, duration
from pipeline.config import RunConfig

if TYPE_CHECKING:
    from pipeline.segmentation.job import Summary


@takes_settings
def segment(
    settings: RunConfig,
    json_output: JsonOutput = False,
    json_logs: JsonLogs = False,
    verbose: Verbose = False,
) -> None:
    """Segment every image of SOURCE into a run folder.

    A run that was stopped or killed is continued by the same command: only missing shards are
    computed, and written shards are kept.

        panoptic segment s3://bucket/images --out s3://bucket/out --weights r50 --limit 200

        panoptic segment photos/ --out runs/photos            # this machine's folder, official R50

        panoptic segment val.json --image-root val2017 --out runs/val --config recipe.toml

    Exit codes: 0 done, 2 bad setting or input, 4 too many images failed, 5 another job writes the
    folder, 75 stopped or the cluster is down: run it again.
    """
    refuse_absent(settings)
    from pipeline.segmentation import job

    with reporting(verbose=verbose, json_logs=json_logs) as reporter:
        summary = job.segment(settings, reporter)
    print_summary(summary, json_output)


def print_summary(summary: Summary, json_output: bool) -> None:
    if json_output:
        print_json(asdict(summary))
        return
    console = plain_console()
    console.print(
        f"{counted(summary.images, 'image')}: {summary.ok:,} ok, "
        f"{counted(summary.error, 'error')}, in {summary.shards_done:,} of "
        f"{counted(summary.shards, 'shard')}"
    )
    if summary.computed:
        console.print(
            f"computed {counted(summary.computed, 'image')} and "
            f"{counted(summary.segments, 'segment')} in {duration(summary.seconds)} "
            f"({summary.images_per_second:.3g} images/s once started)"
        )
    if summary.snapshot is not None:
        done = "published" if summary.published else "made, but did not publish,"
        console.print(f"{done} snapshot {summary.snapshot} of {summary.out}")
    else:
        left = summary.shards - summary.shards_done
        console.print(f"{counted(left, 'shard')} left: run the same command without --shards")
    if summary.error:
        console.print(f"see the errors: panoptic errors {summary.out}")
    if summary.snapshot is not None and summary.ok:
        console.print(
            f"look at it: panoptic report {summary.out} --open, or panoptic view {summary.out} "
            "--random 20",
        )
