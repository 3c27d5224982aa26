"""`panoptic evaluate`: panoptic quality (PQ) of a run, or of any model's COCO panoptic files."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.amounts import counted, duration
from pipeline.errors import UserError

WORST_CLASSES = 10


def evaluate(
    out: Annotated[
        str | None, typer.Argument(metavar="[OUT]", help="Run folder; any fsspec URL.")
    ] = None,
    truth: Annotated[
        str, typer.Option(help="COCO panoptic JSON, or the truth/ of an earlier evaluation of OUT.")
    ] = "",
    truth_masks: Annotated[
        str | None, typer.Option(help="Folder of the truth's PNGs. Default: the JSON's name.")
    ] = None,
    predictions: Annotated[
        str | None, typer.Option(help="Score this COCO panoptic JSON instead of a run.")
    ] = None,
    prediction_masks: Annotated[
        str | None, typer.Option(help="Folder of its PNGs. Default: the JSON's name.")
    ] = None,
    map_categories: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="TOML with [truth] and [model]: map both label sets to one; "
            "renames, merges or leaves out classes.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the evaluation in OUT/evaluation. Default: the truth's."),
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option(help="Score this snapshot. Default: the published one.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Score each shard when a running job has written it.")
    ] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster. Default: RAY_ADDRESS, else this machine.")
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Storage option of the truth (and of --predictions)."
        ),
    ] = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Score predictions against ground truth: PQ, SQ and RQ with 95 % intervals.

    Ray tasks read and score the shards of a run; figures, per-class and per-image tables go to
    OUT/evaluation/. Of an unfinished run, the existing shards are scored; each shard is a uniform
    sample of the images.

        panoptic evaluate s3://bucket/out --truth s3://bucket/panoptic_val2017.json

        panoptic evaluate runs/photos --truth truth.json --truth-masks pngs/ --follow

        panoptic evaluate --predictions pred.json --truth gt.json        # any model, no Ray

    Exit codes: 0 scored, 2 bad input, or something could not be scored (the rest was).
    """
    note = plain_console(stderr=True).print
    if not truth:
        raise UserError("--truth is missing: give the COCO panoptic JSON of the ground truth")
    if (out is None) == (predictions is None):
        raise UserError("give either a run folder OUT or --predictions FILE")
    truth_options = parse_options(source_option, "--source-option") or None
    from pipeline.evaluation.coco_files import evaluate_files
    from pipeline.evaluation.evaluator import evaluate_run
    from pipeline.panoptic.score import InvalidError

    try:
        if predictions is not None:
            _refuse(name=name, snapshot=snapshot, follow=follow or None, address=address)
            result = evaluate_files(
                predictions,
                truth,
                prediction_masks,
                truth_masks,
                map_categories=map_categories,
                options=truth_options,
                note=note,
            )
        else:
            assert out is not None
            _refuse(prediction_masks=prediction_masks)
            result = evaluate_run(
                out,
                truth,
                truth_masks,
                map_categories=map_categories,
                name=name,
                snapshot=snapshot,
                follow=follow,
                address=address,
                options=parse_options(out_option, "--out-option"),
                truth_options=truth_options,
                note=note,
            )
    except InvalidError as error:
        print_result(error.result, json_output)
        raise
    print_result(result, json_output)


def _refuse(**flags: Any) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise UserError(
                f"--{flag.replace('_', '-')} has no meaning here: a run folder and --predictions "
                "take different options"
            )


def print_result(result: dict[str, Any], json_output: bool) -> None:
    """Print the result as JSON, or as tables."""
    if json_output:
        print_json(result)
        return
    console = plain_console()
    table = Table("", "PQ", "95 % interval", "SQ", "RQ", "classes", box=None)
    for group in ("All", "Things", "Stuff"):
        entry = result[group]
        if not entry["n"]:
            table.add_row(group, "no classes", "", "", "", "0")
            continue
        figures = (_percent(entry["pq"]), _interval(entry["pq_interval"]))
        table.add_row(
            group, *figures, _percent(entry["sq"]), _percent(entry["rq"]), str(entry["n"])
        )
    for size in ("small", "medium", "large"):
        entry = result["sizes"][size]["All"]
        if entry["n"]:
            figures = (_percent(entry["pq"]), "", _percent(entry["sq"]), _percent(entry["rq"]))
            table.add_row(size, *figures, str(entry["n"]))
    console.print(table)
    console.print(_worst_classes(result))
    for line in counts_lines(result):
        console.print(line)
    if run := result.get("run"):
        text = f"look at it: panoptic report {run} --open; beside another run: panoptic compare"
        console.print(f"{text} OTHER {run}")


def _worst_classes(result: dict[str, Any]) -> Table:
    live = {k: c for k, c in result["per_class"].items() if c["tp"] + c["fp"] + c["fn"]}
    worst = sorted(live, key=lambda key: (live[key]["pq"], key))[:WORST_CLASSES]
    title = f"the {len(worst)} worst of {len(live)} classes"
    table = Table("category", "PQ", "95 % interval", "SQ", "RQ", "TP", "FP", "FN", box=None)
    table.title, table.title_justify = title, "left"
    for key in worst:
        entry = live[key]
        table.add_row(
            f"{key} {entry['name']}",
            _percent(entry["pq"]),
            _interval(entry["pq_interval"]),
            _percent(entry["sq"]),
            _percent(entry["rq"]),
            *(f"{entry[count]:,}" for count in ("tp", "fp", "fn")),
        )
    return table


def counts_lines(result: dict[str, Any]) -> list[str]:
    """Lines of text: how many images were scored, failed, or lack a truth or a prediction.

    Some file names are listed. Further lines tell how many true segments have another area in the
    JSON than in the PNG, and that a run isn't finished.
    """
    counts, named = result["images"], result["named"]
    lines = [f"{counted(counts['scored'], 'image')} scored in {duration(result['seconds'])}"]
    for kind, words in {
        "failed": "failed, scored as missing all of their truth",
        "without_truth": "without ground truth",
        "without_prediction": "of the ground truth without a prediction",
        "invalid": "that can't be scored",
    }.items():
        if counts[kind]:
            some = named.get(kind, [])
            more = ["..."] if some and counts[kind] > len(some) else []
            which = f": {', '.join([*some, *more])}" if some else ""
            lines.append(f"{counted(counts[kind], 'image')} {words}{which}")
    if result.get("area_mismatches"):
        lines.append(
            f"{counted(result['area_mismatches'], 'segment')} of the truth with another area in "
            "the JSON than in the PNG: the PNG was counted"
        )
    if not result.get("complete", True):
        lines.append(f"the run isn't finished: scored are {counted(result['shards'], 'shard')}")
    return lines


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _interval(bounds: list[float] | None) -> str:
    return f"{100 * bounds[0]:.2f} .. {100 * bounds[1]:.2f}" if bounds else ""
