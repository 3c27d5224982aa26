"""`panoptic nightly`: the nightly update of a folder of runs, for cron, Kubernetes or Airflow."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.console import ConsoleReporter, print_json
from jobs.options import JsonOutput, Verbose, example_option
from pipeline.errors import EXIT_QUALITY_GATE
from pipeline.nightly.settings import load_nightly


def nightly(
    config: Annotated[str, typer.Argument(metavar="NIGHTLY.TOML", help="The night's settings.")],
    max_removed_rate: Annotated[
        float | None, typer.Option(help="Stop if a larger share of the images was removed.")
    ] = None,
    max_recompute: Annotated[
        float | None, typer.Option(help="Stop if a larger share of the images must be computed.")
    ] = None,
    allow_full: Annotated[
        bool, typer.Option("--allow-full", help="Compute any number of images.")
    ] = False,
    pin: Annotated[
        bool, typer.Option("--pin", help="Make the snapshot published at the end the baseline.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster, as for segment.")] = None,
    example: Annotated[bool, example_option("nightly.toml")] = False,
    json_output: JsonOutput = False,
    verbose: Verbose = False,
) -> None:
    """Bring a folder of nights up to date: list, compute the difference, check, publish.

    Safe to call at any time, any number of times: a stopped night is continued, and without changes
    nothing is computed. Publishing is the last step, and needs a passed release gate.

        panoptic nightly nightly.toml

        panoptic nightly nightly.toml --allow-full        # for new weights

        panoptic nightly --example > nightly.toml

    Exit codes: 0 published or nothing to do, 2 a bad setting or a limit exceeded, 3 the release
    gate failed, 4 too many images failed, 5 another call is running, 75 the store or the cluster is
    down.
    """
    flags = {
        "max_removed_rate": max_removed_rate,
        "max_recompute": max_recompute,
        "allow_full": allow_full or None,
        "address": address,
    }
    settings = load_nightly(config, flags)
    from pipeline.nightly.nightly import nightly as run_night

    reporter = ConsoleReporter(verbose=verbose)
    try:
        summary = run_night(settings, reporter, pin=pin)
    finally:
        reporter.close()
    if json_output:
        print_json(asdict(summary))
    else:
        sys.stdout.write(summary.text())
    if summary.reasons:
        raise typer.Exit(EXIT_QUALITY_GATE)
