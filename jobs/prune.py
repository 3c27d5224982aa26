"""`panoptic prune`: old shards leave the bucket."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from jobs.console import print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.amounts import counted
from pipeline.nightly.prune import plan_prune
from pipeline.nightly.prune import prune as remove

LISTED = 20


def prune(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Run folder, or folder of nights.")],
    keep: Annotated[int, typer.Option(min=1, help="Keep so many of the last publications.")] = 7,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove them. Without it only say what would go.")
    ] = False,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Remove what no kept snapshot of OUT names; says so first.

    Kept are the last publications, the pinned baseline, and what is being made. A rollback reaches
    what is kept.

        panoptic prune s3://bucket/nights --keep 7

        panoptic prune s3://bucket/nights --keep 7 --delete
    """
    options = parse_options(out_option, "--out-option")
    pruning = (remove if delete else plan_prune)(out, keep, options)
    if json_output:
        paths = [entry.path for entry in pruning.objects]
        facts = {"out": pruning.out, "kept": pruning.kept, "bytes": pruning.bytes}
        print_json({**facts, "deleted": delete, "objects": paths})
        return
    console = Console(highlight=False)
    for name in pruning.kept:
        console.print(f"kept: {name}", soft_wrap=True)
    for entry in pruning.objects[:LISTED]:
        console.print(f"  {entry.path}", markup=False, soft_wrap=True)
    if len(pruning.objects) > LISTED:
        console.print(f"  ... and {len(pruning.objects) - LISTED:,} more")
    verb = "removed" if delete else "would be removed (add --delete)"
    console.print(
        f"{counted(len(pruning.objects), 'object')} of {pruning.bytes / 1e6:,.1f} MB {verb}"
    )
