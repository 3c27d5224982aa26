"""`panoptic rollback`: publish an earlier snapshot (or night) again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.nightly.rollback import rollback as roll_back
from pipeline.storage.storage import Storage


def rollback(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Run folder, or folder of nights.")],
    to: Annotated[
        str | None, typer.Option(help="A snapshot's number, or a run folder of OUT (run-...).")
    ] = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Set OUT back to what was published before.

    In a folder of nights that may be a snapshot of an earlier run. Only the small object that names
    the published snapshot changes; nothing is computed or deleted. Afterwards only --to publishes
    the withdrawn snapshot again.

        panoptic rollback s3://bucket/nights

        panoptic rollback s3://bucket/nights --to 12
    """
    moved = roll_back(Storage(out, parse_options(out_option, "--out-option")), to)
    if json_output:
        print_json(asdict(moved))
        return
    console = plain_console()
    console.print(f"{moved.out}: {moved.before} -> {moved.after}")
