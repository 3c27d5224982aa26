"""`panoptic verify`: check that a snapshot has exactly one row for every image of its manifest."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from jobs.console import plain_console, print_json
from jobs.options import (
    JsonOutput,
    MovedLabelSet,
    MovedWeights,
    OutFolder,
    OutOptions,
    SourceOptions,
    parse_options,
    settings_of,
)
from pipeline.amounts import counted
from pipeline.config import RunConfig
from pipeline.errors import EXIT_QUALITY_GATE
from pipeline.nightly.verify import verify as verify_run
from pipeline.run.run import Run, open_run


def verify(
    out: OutFolder,
    sample: Annotated[
        int, typer.Option(min=0, help="Segment this many images again here, and compare.")
    ] = 0,
    max_difference: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the sample's pixels that may differ."),
    ] = 0.002,
    seed: Annotated[int, typer.Option(help="Draws the sample.")] = 0,
    snapshot: Annotated[
        int | None, typer.Option(help="Another snapshot than the published one.")
    ] = None,
    weights: MovedWeights = None,
    categories: MovedLabelSet = None,
    source_option: SourceOptions = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Check that every image of OUT's manifest has exactly one row.

    Reads the shards and checks names, URIs, ETags, order, footers and sizes. With --sample, images
    are also fetched and segmented again on this machine's CPU in fp32.

        panoptic verify s3://bucket/out

        panoptic verify runs/photos --sample 50

    Exit codes: 0 every check holds, 3 a check failed.
    """
    run = open_run(out, parse_options(out_option, "--out-option"))
    result = verify_run(run, snapshot)
    facts: dict[str, Any] = {**asdict(result), "holds": result.holds}
    if sample:
        config = settings_of(run, source_option, weights=weights, categories=categories)
        facts["sample"] = _recompute(run, config, sample, result.snapshot, seed)
        facts["holds"] &= (
            not facts["sample"]["other"] and facts["sample"]["mean_difference"] <= max_difference
        )
    if json_output:
        print_json(facts)
    else:
        _print(facts)
    if not facts["holds"]:
        raise typer.Exit(EXIT_QUALITY_GATE)


def _recompute(run: Run, config: RunConfig, images: int, number: int, seed: int) -> dict[str, Any]:
    # Loads torch, which counting doesn't need.
    from pipeline.nightly.recompute import check_weights, recompute

    check_weights(run, config)
    again = recompute(run, config, images, number=number, seed=seed)
    return {**asdict(again), "compared": again.compared, "mean_difference": again.mean_difference}


def _print(facts: dict[str, Any]) -> None:
    console = plain_console()
    console.print(
        f"snapshot {facts['snapshot']}: {counted(facts['images'], 'image')} in the manifest, "
        f"{counted(facts['rows'], 'row')} in {counted(facts['shards'], 'shard')} "
        f"({facts['ok']:,} ok, {counted(facts['error'], 'error')})"
    )
    for example in facts["examples"]:
        console.print(f"  {example}")
    for kind, count in facts["findings"].items():
        console.print(f"{kind}: {count:,}")
    sample = facts.get("sample")
    if sample:
        console.print(
            f"{counted(sample['compared'], 'image')} computed again: {sample['same']} the same "
            f"to the last pixel, {sample['close']} with other pixels "
            f"(mean {sample['mean_difference']:.4%} of all), {len(sample['other'])} with another "
            f"outcome; {sample['skipped']} skipped, "
            "whose files can't be had or have changed"
        )
        if sample["note"]:
            console.print(f"  {sample['note']}")
        for name, part in sorted(sample["differences"].items(), key=lambda item: -item[1])[:5]:
            console.print(f"  {part:.4%} of {name}")
        for words in sample["other"]:
            console.print(f"  {words}")
    console.print("every image has exactly one row" if facts["holds"] else "NOT as promised")
