"""`panoptic compare`: is B better or worse than A, how surely, and on which images?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, parse_options
from pipeline.amounts import counted
from pipeline.errors import EXIT_QUALITY_GATE, UserError
from pipeline.evaluation.agreement import SAMPLE, Agreement, agree
from pipeline.evaluation.compare import Change, Comparison, shared_evaluation
from pipeline.evaluation.compare import compare as compare_editions
from pipeline.evaluation.quality_gate import MIN_SEGMENTS, Verdict, judge
from pipeline.run.snapshots import open_snapshot

LISTED = 10


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Run folder, or OUT/snapshots/N.parquet.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to be judged, named alike.")],
    name: Annotated[
        str | None, typer.Option(help="Which evaluation. Default: the only one that both have.")
    ] = None,
    max_pq_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Fail unless a drop of PQ by more points than this is ruled out."),
    ] = None,
    max_class_drop: Annotated[
        float | None,
        typer.Option(min=0, help="Fail if a class is shown to have dropped by more points."),
    ] = None,
    decide_by: Annotated[
        str, typer.Option(help="interval, or estimate: take the differences as measured.")
    ] = "interval",
    min_class_segments: Annotated[
        int, typer.Option(min=1, help="Judge only classes with so many true segments.")
    ] = MIN_SEGMENTS,
    without_truth: Annotated[
        bool, typer.Option("--without-truth", help="Compare the segments themselves.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, help="Without truth: about so many images, a uniform sample.")
    ] = SAMPLE,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Compare B with A: PQ by class with paired intervals, and a verdict.

    With evaluations of the same truth: differences on the images that both scored, the images that
    changed most, and exit 3 if B dropped by more than allowed. Without: how far B agrees with A,
    how the shares of classes moved, and the images worth labelling.

        panoptic compare s3://bucket/old s3://bucket/new --max-pq-drop 0.5

        panoptic compare OUT/snapshots/0001.parquet OUT/snapshots/0002.parquet --without-truth

    Exit codes: 0 compared (and good enough), 2 bad input, 3 not good enough.
    """
    if decide_by not in ("interval", "estimate"):
        raise UserError(f"--decide-by {decide_by!r} must be interval or estimate")
    options = parse_options(out_option, "--out-option")
    one, two = open_snapshot(a, options), open_snapshot(b, options)
    judged = max_pq_drop is not None or max_class_drop is not None
    if without_truth or (name is None and shared_evaluation(one, two) is None):
        if judged:
            raise UserError(
                "--max-pq-drop and --max-class-drop need ground truth: run `panoptic evaluate` on "
                "both first"
            )
        show_agreement(agree(one, two, limit), json_output)
        return
    comparison = compare_editions(one, two, name)
    verdict = judge(
        comparison,
        max_pq_drop=max_pq_drop,
        max_class_drop=max_class_drop,
        decide_by="estimate" if decide_by == "estimate" else "interval",
        min_segments=min_class_segments,
    )
    show_comparison(comparison, verdict if judged else None, json_output)
    if not verdict.passed:
        raise typer.Exit(EXIT_QUALITY_GATE)


def show_comparison(comparison: Comparison, verdict: Verdict | None, json_output: bool) -> None:
    if json_output:
        found = {"verdict": verdict.to_json()} if verdict else {}
        print_json({**comparison.to_json(), **found})
        return
    console = plain_console()
    table = Table("", "PQ of A", "PQ of B", "change", "95 % interval", box=None)
    for group, figures in comparison.groups.items():
        table.add_row(group, *_cells(figures["pq"]))
    console.print(table)
    moved = [own for own in comparison.classes if own.pq.difference]
    classes = Table("category", "PQ of A", "PQ of B", "change", "95 % interval", box=None)
    worst, best = moved[:LISTED], [own for own in moved[LISTED:][::-1] if own.pq.difference > 0]  # type: ignore[operator]
    for own in [*worst, *best[:LISTED][::-1]]:
        classes.add_row(f"{own.category_id} {own.name}", *_cells(own.pq))
    if moved:
        console.print(classes)
    console.print(
        f"{counted(comparison.images, 'image')} scored in both against {comparison.truth} "
        f"({comparison.only_a:,} in A only, {comparison.only_b:,} in B only)",
        soft_wrap=True,
    )
    for image in comparison.changed[:LISTED]:
        text = f"  {100 * image.a:.1f} -> {100 * image.b:.1f}  {image.file_name}"
        console.print(text, markup=False, soft_wrap=True)
    if verdict is not None:
        console.print("verdict: good enough" if verdict.passed else "verdict: not good enough")
        for reason in verdict.reasons:
            console.print(f"  {reason}", markup=False, soft_wrap=True)


def show_agreement(agreement: Agreement, json_output: bool) -> None:
    if json_output:
        print_json(agreement.to_json())
        return
    console = plain_console()
    for group, own in agreement.groups.items():
        text = f"{100 * own['pq']:.2f} ({own['n']} classes)" if own["n"] else "no classes"
        console.print(f"{group}: PQ of B with A as truth {text}")
    before, after = agreement.drift.empty_rate
    console.print(
        f"{counted(agreement.images, 'image')} ok in both ({agreement.unpaired:,} not); empty "
        f"{100 * before:.1f} % -> {100 * after:.1f} %"
    )
    table = Table("category", "images of A", "of B", "pixels of A", "of B", box=None)
    for own in agreement.drift.classes[:LISTED]:
        parts = (own.before, own.after, own.pixels_before, own.pixels_after)
        shown = (f"{100 * part:.2f} %" for part in parts)
        table.add_row(f"{own.category_id} {own.name}", *shown)
    console.print(table)
    if agreement.disagreements:
        console.print("worth labelling, most disagreement first:")
    for image in agreement.disagreements[:LISTED]:
        text = f"  {image.segments:.2f} segments  {image.file_name}"
        console.print(text, markup=False, soft_wrap=True)


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
