"""`panoptic compare`: the change of PQ from run A to run B, with intervals and a quality gate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.amounts import counted
from pipeline.errors import EXIT_QUALITY_GATE, UserError
from pipeline.evaluation.agreement import SAMPLE, Agreement, agree
from pipeline.evaluation.compare import Change, Comparison, shared_evaluation
from pipeline.evaluation.compare import compare as compare_snapshots
from pipeline.evaluation.quality_gate import MIN_SEGMENTS, GateResult, judge
from pipeline.run.snapshots import open_snapshot

LISTED = 10


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run folder, or OUT/snapshots/N.parquet.")],
    b: Annotated[
        str, typer.Argument(metavar="B", help="The candidate: run folder, or snapshot as for A.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the evaluation. Default: the only one that A and B both have."),
    ] = None,
    max_pq_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Fail unless a drop of PQ by more points than this is ruled out."),
    ] = None,
    max_class_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Fail if a class has surely dropped by more points than this."),
    ] = None,
    decide_by: Annotated[
        str, typer.Option(help="interval, or estimate: ignore intervals, use measured differences.")
    ] = "interval",
    min_class_segments: Annotated[
        int, typer.Option(min=1, help="Least true segments of a class for --max-class-drop.")
    ] = MIN_SEGMENTS,
    without_truth: Annotated[
        bool, typer.Option("--without-truth", help="Compare the segments of A and B directly.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, help="Without truth: size of the uniform sample, in images.")
    ] = SAMPLE,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Compare B with A: PQ by class with paired intervals, and a quality gate.

    If A and B have evaluations of the same truth: differences on the images scored in both, the
    images that changed most, and exit 3 if B dropped by more than allowed. Otherwise: the agreement
    of B with A, the change in the classes' shares, and the images worth labelling.

        panoptic compare s3://bucket/old s3://bucket/new --max-pq-drop 0.5

        panoptic compare OUT/snapshots/0001.parquet OUT/snapshots/0002.parquet --without-truth

    Exit codes: 0 compared (and the gate passed), 2 bad input, 3 the gate failed.
    """
    if decide_by not in ("interval", "estimate"):
        raise UserError(f"--decide-by {decide_by!r} must be interval or estimate")
    options = parse_options(out_option, "--out-option")
    snapshot_a, snapshot_b = open_snapshot(a, options), open_snapshot(b, options)
    judged = max_pq_drop is not None or max_class_drop is not None
    if without_truth or (name is None and shared_evaluation(snapshot_a, snapshot_b) is None):
        if judged:
            raise UserError(
                "--max-pq-drop and --max-class-drop need ground truth: run `panoptic evaluate` on "
                "both first"
            )
        show_agreement(agree(snapshot_a, snapshot_b, limit), json_output)
        return
    comparison = compare_snapshots(snapshot_a, snapshot_b, name)
    gate = judge(
        comparison,
        max_pq_drop=max_pq_drop,
        max_class_drop=max_class_drop,
        decide_by="estimate" if decide_by == "estimate" else "interval",
        min_segments=min_class_segments,
    )
    show_comparison(comparison, gate if judged else None, json_output)
    if not gate.passed:
        raise typer.Exit(EXIT_QUALITY_GATE)


def show_comparison(comparison: Comparison, gate: GateResult | None, json_output: bool) -> None:
    if json_output:
        print_json({**asdict(comparison), **({"verdict": asdict(gate)} if gate else {})})
        return
    console = plain_console()
    table = Table("", "PQ of A", "PQ of B", "change", "95 % interval", box=None)
    for group, figures in comparison.groups.items():
        table.add_row(group, *_cells(figures["pq"]))
    console.print(table)
    moved = [entry for entry in comparison.classes if entry.pq.difference]
    classes = Table("category", "PQ of A", "PQ of B", "change", "95 % interval", box=None)
    worst, rest = moved[:LISTED], moved[LISTED:][::-1]
    best = [entry for entry in rest if entry.pq.difference > 0]  # type: ignore[operator]
    for entry in [*worst, *best[:LISTED][::-1]]:
        classes.add_row(f"{entry.category_id} {entry.name}", *_cells(entry.pq))
    if moved:
        console.print(classes)
    console.print(
        f"{counted(comparison.images, 'image')} scored in both against {comparison.truth} "
        f"({comparison.only_a:,} in A only, {comparison.only_b:,} in B only)",
    )
    for image in comparison.changed[:LISTED]:
        text = f"  {100 * image.a:.1f} -> {100 * image.b:.1f}  {image.file_name}"
        console.print(text)
    if gate is not None:
        console.print("verdict: good enough" if gate.passed else "verdict: not good enough")
        for reason in gate.reasons:
            console.print(f"  {reason}")


def show_agreement(agreement: Agreement, json_output: bool) -> None:
    if json_output:
        print_json(asdict(agreement))
        return
    console = plain_console()
    for group, figures in agreement.groups.items():
        text = "no classes"
        if figures["n"]:
            text = f"{100 * figures['pq']:.2f} ({figures['n']} classes)"
        console.print(f"{group}: PQ of B with A as truth {text}")
    before, after = agreement.drift.empty_rate
    console.print(
        f"{counted(agreement.images, 'image')} ok in both ({agreement.unpaired:,} not); empty "
        f"{100 * before:.1f} % -> {100 * after:.1f} %"
    )
    table = Table("category", "images of A", "of B", "pixels of A", "of B", box=None)
    for entry in agreement.drift.classes[:LISTED]:
        parts = (entry.before, entry.after, entry.pixels_before, entry.pixels_after)
        shown = (f"{100 * part:.2f} %" for part in parts)
        table.add_row(f"{entry.category_id} {entry.name}", *shown)
    console.print(table)
    if agreement.disagreements:
        console.print("worth labelling, most disagreement first:")
    for image in agreement.disagreements[:LISTED]:
        text = f"  {image.segments:.2f} segments  {image.file_name}"
        console.print(text)


def _cells(change: Change) -> tuple[str, str, str, str]:
    if change.a is None or change.b is None or change.difference is None:
        return "", "", "no classes", ""
    bounds = change.interval
    interval = f"{100 * bounds[0]:+.2f} .. {100 * bounds[1]:+.2f}" if bounds else ""
    return (
        f"{100 * change.a:.2f}",
        f"{100 * change.b:.2f}",
        f"{100 * change.difference:+.2f}",
        interval,
    )
