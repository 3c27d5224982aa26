"""`panoptic prune`: list the objects that no kept snapshot uses; delete them with `--delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.amounts import counted
from pipeline.nightly.prune import plan_prune
from pipeline.nightly.prune import prune as remove
from pipeline.storage.storage import Storage

LISTED = 20


def prune(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Run folder, or folder of nights.")],
    keep: Annotated[int, typer.Option(min=1, help="Number of published snapshots to keep.")] = 7,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete. Without --delete, only list the objects.")
    ] = False,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """List or delete objects of OUT that no kept snapshot uses.

    The last published snapshots, the pinned baseline and unfinished work are kept. `panoptic
    rollback` can go back to kept snapshots only.

        panoptic prune s3://bucket/nights --keep 7

        panoptic prune s3://bucket/nights --keep 7 --delete
    """
    storage = Storage(out, parse_options(out_option, "--out-option"))
    pruning = (remove if delete else plan_prune)(storage, keep)
    if json_output:
        paths = [entry.path for entry in pruning.objects]
        facts = {"out": pruning.out, "kept": pruning.kept, "bytes": pruning.bytes}
        print_json({**facts, "deleted": delete, "objects": paths})
        return
    console = plain_console()
    for name in pruning.kept:
        console.print(f"kept: {name}")
    for entry in pruning.objects[:LISTED]:
        console.print(f"  {entry.path}")
    if len(pruning.objects) > LISTED:
        console.print(f"  ... and {len(pruning.objects) - LISTED:,} more")
    verb = "removed" if delete else "would be removed (add --delete)"
    console.print(
        f"{counted(len(pruning.objects), 'object')} of {pruning.bytes / 1e6:,.1f} MB {verb}"
    )
