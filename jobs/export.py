"""`panoptic export`: a run as COCO JSON for other tools."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.console import plain_console, print_json
from jobs.options import JsonOutput, OutFolder, OutOptions, parse_options
from pipeline.amounts import counted
from pipeline.errors import UserError
from pipeline.report.coco_writer import ImageIds
from pipeline.report.export import export_run
from pipeline.run.run import open_run


def export(
    out: OutFolder,
    target: Annotated[
        str,
        typer.Argument(metavar="JSON", help="New local file; PNGs go into the folder of its name."),
    ],
    format: Annotated[
        Literal["panoptic", "instances", "results"],
        typer.Option(help="panoptic: JSON and PNGs. instances, results: one RLE per thing."),
    ] = "panoptic",
    truth: Annotated[
        str | None,
        typer.Option(help="COCO JSON with the image ids; default: the number in the file name."),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this image; repeatable. @FILE: one name a line."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most images to export.")] = None,
    snapshot: Annotated[
        int | None, typer.Option(min=1, help="Default: the published snapshot.")
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Storage option of the truth; repeatable."),
    ] = None,
    out_option: OutOptions = None,
    json_output: JsonOutput = False,
) -> None:
    """Write a run as COCO JSON, with PNGs for panopticapi or with RLE for pycocotools.

    panoptic export s3://bucket/out predictions.json --truth panoptic_val2017.json

    panoptic export runs/photos things.json --format instances --limit 1000
    """
    run = open_run(out, parse_options(out_option, "--out-option"))
    ids = None
    if truth is not None:
        ids = ImageIds.of_truth(truth, parse_options(source_option, "--source-option"))
    console = plain_console(stderr=True)
    with console.status("exporting") as status:
        done = export_run(
            run,
            target,
            format=format,
            ids=ids,
            snapshot=snapshot,
            file_names=_names(files),
            limit=limit,
            progress=lambda images: status.update(f"exporting: {counted(images, 'image')}"),
        )
    if json_output:
        print_json(asdict(done))
        return
    console = plain_console()
    console.print(f"{counted(done.images, 'image')}, {counted(done.segments, 'segment')}")
    for count, what in (
        (done.errors, "failed in the run: " + ("all void" if truth else "left out")),
        (done.without_truth, "not in the truth: left out"),
        (done.without_prediction, "of the truth, not in the run"),
    ):
        if count:
            console.print(f"{counted(count, 'image')} {what}")
    console.print(done.output)


def _names(files: list[str] | None) -> list[str]:
    names: list[str] = []
    for value in files or ():
        if not value.startswith("@"):
            names.append(value)
            continue
        try:
            text = Path(value[1:]).read_text("utf-8-sig")
            names += [line for line in text.split("\n") if line]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--files {value}: can't be read as a list of names: {error}") from None
    return names
