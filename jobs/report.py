"""`panoptic report`: a run as one HTML file."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutOptions, PhotoOptions, parse_options
from pipeline.report.page import CARDS, write_report
from pipeline.run.snapshots import open_snapshot
from pipeline.storage.storage import open_file


def report(
    out: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Run folder, or one of its snapshots/000N.parquet."),
    ],
    evaluation: Annotated[
        str | None, typer.Option(help="Name of the evaluation. Default: the newest.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="Earlier run or snapshot with the same truth."),
    ] = None,
    gallery: Annotated[int, typer.Option(min=0, max=100, help="Images per gallery.")] = CARDS,
    output: Annotated[
        str | None, typer.Option(help="Where to write. Default: OUT/report/000N.html.")
    ] = None,
    open_it: Annotated[
        bool, typer.Option("--open", help="Open the report in the browser; from a bucket, a copy.")
    ] = False,
    source_option: PhotoOptions = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Write a run's contents and quality as one HTML file with pictures.

    panoptic report runs/photos --open

    panoptic report s3://bucket/new --compare s3://bucket/old --output new.html
    """
    options = parse_options(out_option, "--out-option")
    console = plain_console(stderr=True)
    written = write_report(
        open_snapshot(out, options),
        evaluation=evaluation,
        other=None if compare is None else open_snapshot(compare, options),
        cards=gallery,
        output=output,
        options=parse_options(source_option, "--source-option") or None,
        note=console.print,
    )
    if json_output:
        print_json({"report": written.url, "bytes": written.bytes})
    else:
        line = f"{written.url}  ({written.bytes / 1e6:.1f} MB)"
        plain_console().print(line)
    if open_it:
        page = _local(written.url, options if output is None else {})
        if not webbrowser.open(page.as_uri()):
            console.print(f"no browser is to be had here: copy {page} to where one is")


def _local(url: str, options: dict[str, str]) -> Path:
    """The file's local path; a file in a bucket is copied to a temporary folder."""
    storage, name = open_file(url, options)
    if storage.is_local:
        return Path(storage.key(name))
    folder = Path(tempfile.mkdtemp(prefix="panoptic-report-"))
    (folder / name).write_bytes(storage.read(name))
    return folder / name
