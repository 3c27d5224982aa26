"""`panoptic retry`: compute the failed images of a finished run again, as its next generation."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from jobs.json_logs import reporting
from jobs.options import (
    JsonLogs,
    JsonOutput,
    MovedLabelSet,
    MovedWeights,
    OutFolder,
    OutOptions,
    SourceOptions,
    Verbose,
    parse_options,
    settings_of,
)
from jobs.segment import print_summary
from jobs.status import check_codes, error_rows
from pipeline.amounts import counted
from pipeline.run.run import open_run
from pipeline.schema import ERROR_CODES, TRANSIENT_CODES


def retry(
    out: OutFolder,
    every: Annotated[
        bool, typer.Option("--all", help="Also permanent errors, which only a new file can mend.")
    ] = False,
    code: Annotated[list[str] | None, typer.Option(help="Only this code; repeatable.")] = None,
    weights: MovedWeights = None,
    categories: MovedLabelSet = None,
    max_error_rate: Annotated[float | None, typer.Option(help="As for segment.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="As for segment.")] = None,
    device: Annotated[str | None, typer.Option(help="As for segment.")] = None,
    num_actors: Annotated[str | None, typer.Option(help="As for segment.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster, as for segment.")] = None,
    source_option: SourceOptions = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
    json_logs: JsonLogs = False,
    verbose: Verbose = False,
) -> None:
    """Compute the failed images of OUT again.

    By default only images with transient errors (network, memory, changed files). The new rows are
    written to new shards, and shards with failed rows are copied without those rows.

        panoptic retry s3://bucket/out

        panoptic retry s3://bucket/out --code timeout --code unavailable
    """
    from pipeline.segmentation import job

    check_codes(code)
    options = parse_options(out_option, "--out-option")
    run = open_run(out, options)
    config = settings_of(
        run,
        source_option,
        weights=weights,
        categories=categories,
        max_error_rate=max_error_rate,
        batch_size=batch_size,
        device=device,
        num_actors=num_actors,
        address=address,
        out_options=options,
        out=out,
    )
    codes = sorted(ERROR_CODES) if every else list(code or ())
    with reporting(verbose=verbose, json_logs=json_logs) as reporter:
        summary = job.retry(config, codes, reporter)
    print_summary(summary, json_output)
    if summary.error and not json_output:
        left = Counter(row["error_code"] in TRANSIENT_CODES for row in error_rows(run))
        print(
            f"left: {counted(left[True], 'transient error')} (run this again later), "
            f"{left[False]:,} that only another file can mend (panoptic segment --refresh)"
        )
